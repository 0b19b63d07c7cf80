"""The operations over HTTP.

server    the process: port, signals, exit status
state     whether the model is there, what runs, whether the server is closing
gate      what every request passes: id, key, log line, count
routes    the paths; body, openapi and page belong to them
"""
