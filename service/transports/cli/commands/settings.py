"""`bge-m3-qdrant settings`: what the environment sets."""

from __future__ import annotations

import json
from typing import Any

import click

from service.transports.cli.options import CONTEXT, examples, json_option


@click.command(
    "settings",
    context_settings=CONTEXT,
    epilog=examples("MODEL_ID=mini bge-m3-qdrant settings", "bge-m3-qdrant settings --json"),
)
@json_option
def command(as_json: bool) -> int:  # noqa: FBT001 - click passes it by name
    """Read and check the settings of the environment, and show each value; * marks those that are set.

    Keys are shown as ***. --json prints every setting as `{"value", "set"}`.

    Exit status: 0, or 2 if a setting is invalid.
    """
    from service.settings import SECRETS, Settings

    settings = Settings.from_environment()
    values = settings.model_dump(mode="json", by_alias=True)
    for name in SECRETS:
        values[name] = None if values[name] is None else "***"
    if as_json:
        report = {
            name.upper(): {"value": value, "set": name in settings.model_fields_set} for name, value in values.items()
        }
        click.echo(json.dumps(report, ensure_ascii=False))
        return 0
    width = max(map(len, values))
    for name, value in values.items():
        mark = "*" if name in settings.model_fields_set else " "
        click.echo(f"{mark} {name.upper():<{width}}  {_shown(value)}")
    return 0


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "(unset)"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
