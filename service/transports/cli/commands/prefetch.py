"""`bge-m3-qdrant prefetch`: a model into the hub's cache."""

from __future__ import annotations

import json
import os

import click

from service.transports.cli.options import CONTEXT, configure_logs, examples, json_option, renamed


@click.command(
    "prefetch",
    context_settings=CONTEXT,
    epilog=examples("bge-m3-qdrant prefetch mini", "bge-m3-qdrant prefetch BAAI/bge-m3"),
)
@click.argument("model", required=False, metavar="[MODEL]")
@click.option("--revision", metavar="COMMIT", help="Commit of a hub model.  [default: the one that the service pins]")
@json_option
def command(model: str | None, revision: str | None, as_json: bool) -> int:  # noqa: FBT001 - click passes it by name
    """Download MODEL into the hub's cache (HF_HOME), ready to load offline, and print its directory.

    MODEL is a hub name such as BAAI/bge-m3, a directory, which stays unchanged, or `mini`. Without it, MODEL_ID and
    MODEL_REVISION apply. The Docker build runs this command to put the weights into the image.

    Exit status: 0, or 2 if the model cannot be used.
    """
    configure_logs()
    from embedder import DEFAULT_MODEL, ConfigurationError
    from embedder.checkpoint.prefetch import prefetch
    from service.variables import plain

    names = {}
    if model is None:
        model = plain(os.environ.get("MODEL_ID", "")) or DEFAULT_MODEL
        revision = revision or plain(os.environ.get("MODEL_REVISION", "")) or None
    else:
        names = {"MODEL_ID": "MODEL", "MODEL_REVISION": "--revision"}
    try:
        path = prefetch(model, revision)
    except ConfigurationError as error:
        raise renamed(error, names) from None
    click.echo(json.dumps({"model": model, "path": str(path)}) if as_json else path)
    return 0
