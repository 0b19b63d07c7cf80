"""`bge-m3-qdrant demo`: the main job on the bundled corpus."""

from __future__ import annotations

import click

from service.transports.cli.options import CONTEXT, Failure, configure_logs, examples, json_option


class StepFailed(Failure):
    """A step of the demo failed."""

    exit_code = 1


@click.command(
    "demo",
    context_settings=CONTEXT,
    epilog=examples(
        "MODEL_ID=mini bge-m3-qdrant demo",
        more="MODEL_ID=mini is a small model that ships with the program: no download, no GPU, no server.",
    ),
)
@json_option
def command(as_json: bool) -> int:  # noqa: FBT001 - click passes it by name
    """Embed and store the bundled corpus in the collection `demo`, then ask it the bundled questions.

    Exit status: 0, or 1 if a step failed.
    """
    from embedder import ConfigurationError, WorkerError

    try:
        configure_logs()
        from service.transports.cli.demo import run

        run(as_json=as_json)
    except (ConfigurationError, WorkerError, RuntimeError) as error:
        raise StepFailed(str(error)) from None
    return 0
