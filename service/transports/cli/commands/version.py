"""`bge-m3-qdrant version`: the versions that a bug report needs."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version

import click

from service import __version__
from service.transports.cli.options import CONTEXT, examples, json_option

_LIBRARIES = ("torch", "tokenizers", "qdrant-client", "qdrant-edge-py", "runpod", "fastapi", "uvicorn")


@click.command("version", context_settings=CONTEXT, epilog=examples("bge-m3-qdrant version"))
@json_option
def command(as_json: bool) -> int:  # noqa: FBT001 - click passes it by name
    """Show the versions of the program, of Python and of the main libraries.

    Exit status: 0.
    """
    versions = {"bge-m3-qdrant": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "missing"
    if as_json:
        click.echo(json.dumps(versions))
    else:
        for name, number in versions.items():
            click.echo(f"{name} {number}")
    return 0
