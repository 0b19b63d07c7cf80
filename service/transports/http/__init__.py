"""The HTTP transport.

server       the process: port, signals, exit status
state        the state of the server: model loaded, running requests, shutdown
gate         middleware of every request: request id, API key, pages of other origins (cors), log line, metrics
compression  middleware of large answers
routes       the paths, with body (and its decoder), jobs, probes, openapi and page
"""
