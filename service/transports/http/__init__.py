"""The HTTP transport.

server    the process: port, signals, exit status
state     the state of the server: model loaded, running requests, shutdown
gate      middleware of every request: request id, API key, log line, metrics
routes    the paths, with body, openapi and page
"""
