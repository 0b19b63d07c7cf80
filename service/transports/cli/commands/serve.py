"""`bge-m3-qdrant serve`: the HTTP server."""

from __future__ import annotations

import click

from service.shutdown import exit_on_signals
from service.transports.cli.options import CONTEXT, examples


@click.command(
    "serve",
    context_settings=CONTEXT,
    epilog=examples(
        "MODEL_ID=mini PORT=8000 bge-m3-qdrant serve",
        "API_KEY=choose-one QDRANT_URL=http://127.0.0.1:6333 bge-m3-qdrant serve",
    ),
)
def command() -> int:
    """Serve the operations over HTTP on PORT (default 8000), with a search page at `/`.

    The port answers immediately: `/ping` with 204 while the model loads, and with 200 when it is ready. SIGTERM and
    Ctrl-C finish the requests that run, and refuse new ones with 503; a second signal ends the process immediately.

    Exit status: 0 after a signal, 1 if the process is unfit to serve or its last device is lost, 2 if the settings are
    invalid.
    """
    exit_on_signals()
    from service.transports.http.server import main

    return main()
