"""The recorded answers: files of JSON that read well in a diff.

| file | content |
|---|---|
| `AREA.ENGINE.json` | the answers over Qdrant Edge, by case |
| `AREA.ENGINE-server.json` | those over a server, where they differ; no file where none does |
| `messages.json` | the texts for a person, by engine (or `ENGINE-server`), case and path |
| `configuration.json` | settings, the collection block, build arguments and options |
| `openapi.json` | the OpenAPI document without its answers |
| `openapi-answers.json` | its answers, and the schemas that only these name |
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

FOLDER: Final = Path(__file__).parent / "records"

LINE_CHARACTERS_MAX: Final = 110
"""Length of an object on one line. A list of numbers is on one line, whatever its length."""


def read(name: str) -> Json:
    """Return a file of records, or an empty object if it does not exist."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return {}
    content: Json = json.loads(path.read_text(encoding="utf-8"))
    return content


def write(name: str, content: Json) -> None:
    """Replace a file of records; an empty object removes it."""
    path = FOLDER / f"{name}.json"
    if content:
        path.write_text(_dumped(content, 0) + "\n", encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def _dumped(value: Any, depth: int) -> str:
    line = json.dumps(value, ensure_ascii=False, sort_keys=True)
    if not isinstance(value, list | dict) or not value or (depth and len(line) <= LINE_CHARACTERS_MAX):
        return line
    if isinstance(value, list) and all(isinstance(part, int | float) for part in value):
        return line
    inner, outer = " " * (depth + 1), " " * depth
    if isinstance(value, list):
        parts = [f"{inner}{_dumped(part, depth + 1)}" for part in value]
        return "[\n" + ",\n".join(parts) + f"\n{outer}]"
    parts = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_dumped(value[key], depth + 1)}" for key in sorted(value)]
    return "{\n" + ",\n".join(parts) + f"\n{outer}}}"
