"""`bge-m3-qdrant healthcheck`: the command of Docker's HEALTHCHECK, which starts it every few seconds."""

from __future__ import annotations

import json
import os

import click

from service.transports.cli.healthcheck import check
from service.transports.cli.options import CONTEXT, examples, json_option


@click.command("healthcheck", context_settings=CONTEXT, epilog=examples("PORT=8000 bge-m3-qdrant healthcheck"))
@json_option
def command(as_json: bool) -> int:  # noqa: FBT001 - click passes it by name
    """Ask the HTTP server on PORT of this machine whether it is ready, as Docker's HEALTHCHECK does.

    A server that loads its model, or shuts down, is not ready. A process without a server (PORT is unset, or a RunPod
    queue is named) counts as healthy.

    Exit status: 0 if the server is ready, 1 if it is not.
    """
    health = check(os.environ)
    if as_json:
        click.echo(json.dumps({"healthy": health.healthy, "reason": health.reason}))
    else:
        click.echo(f"{'healthy' if health.healthy else 'not healthy'}: {health.reason}")
    return 0 if health.healthy else 1
