"""The names that operators rely on, as a record: settings, the collection block, build arguments, options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from tests.contract import records
from tests.contract.compare import differences
from tests.contract.world import collection_fields, command_help, settings

Json = dict[str, Any]

_ROOT: Final = Path(__file__).parents[2]
_OPTION: Final = re.compile(r"(?<![\w-])--[a-z][a-z_-]*")
_BUILD_ARGUMENT: Final = re.compile(r"^ARG (\w+)", re.MULTILINE)
_RULES: Final = ("default", "enum", "minimum", "maximum", "pattern", "minLength", "maxLength")


def configuration() -> Json:
    """Return the settings, collection fields, build arguments and options with their defaults and limits."""
    schema = collection_fields()
    return {
        "settings": settings(),
        "collection": _fields(schema, schema.get("$defs", {}), ""),
        "build_arguments": sorted(_BUILD_ARGUMENT.findall((_ROOT / "Dockerfile").read_text(encoding="utf-8"))),
        "options": {command: sorted(set(_OPTION.findall(text))) for command, text in command_help().items()},
    }


def compared() -> list[str]:
    """Return the differences from the recorded configuration."""
    return differences(records.read("configuration"), configuration(), "configuration")


def recorded() -> None:
    """Record the configuration."""
    records.write("configuration", configuration())


def _fields(schema: Json, named: Json, path: str) -> Json:
    """Return the rules by path, such as `dense.onDisk`."""
    rules: Json = {}
    for name, described in schema.get("properties", {}).items():
        block = named.get(described.get("$ref", "").rpartition("/")[2])
        if block is not None and "properties" in block:
            rules |= _fields(block, named, f"{path}{name}.")
        else:
            options = [described, *described.get("anyOf", ())]
            rules[path + name] = {rule: option[rule] for option in options for rule in _RULES if rule in option}
    return rules
