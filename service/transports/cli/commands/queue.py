"""`bge-m3-qdrant queue`: the RunPod worker, the same as `python handler.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from service.shutdown import exit_on_signals
from service.transports.cli.options import CONTEXT, examples


@click.command(
    "queue",
    context_settings={**CONTEXT, "ignore_unknown_options": True},
    epilog=examples(
        "MODEL_ID=mini bge-m3-qdrant queue -- --test_input "
        """'{"input": {"texts": ["hello"], "vectors": ["dense"]}}'""",
        "MODEL_ID=mini bge-m3-qdrant queue -- --rp_serve_api",
    ),
)
@click.argument("sdk_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- SDK_ARGUMENTS...]")
def command(sdk_arguments: Sequence[str]) -> int:
    """Serve the RunPod queue that the platform names, as `python handler.py` does.

    What follows `--` is handed to the RunPod SDK: `--test_input JSON` runs one job, `--rp_serve_api` opens the SDK's
    local API. Where no queue is named and PORT is set, the process serves HTTP.

    Exit status: 0 after a signal, 1 if the worker is unfit to serve or its last device is lost, 2 if the settings or
    the arguments are invalid.
    """
    exit_on_signals()
    sys.argv[1:] = sdk_arguments  # where the SDK reads them
    from service.transports.queue.handler import build, handler
    from service.transports.queue.worker import serve

    return serve(handler, build)
