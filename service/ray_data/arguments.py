"""The arguments of Python by the names that messages about a load have for them on the wire and on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_ARGUMENTS: Final[Mapping[str, str]] = {
    "--load-id": "load_id",
    "--drop-load": "`bulk --finish --drop-load`",
    "loadId": "load_id",
    "insertOnly": "insert_only",
    "idScope": "alias",
    "textKey": "text_key",
    "colbertPooling": "pool_colbert",
    "chunk.maxTokens": "chunk.max_tokens",
    "maxLength": "PASSAGE_MAX_LENGTH",
    "input.id-field": "fields.id",
    "input.text-field": "fields.texts",
    "input.payload-fields": "fields.payload",
}

_NAMES: Final = re.compile(rf"(?<![\w.'\"-])(?:qdrant\.)?({'|'.join(map(re.escape, _ARGUMENTS))})(?![\w'\"-])")
"""A quoted name is a user's own."""


def in_python(message: str) -> str:
    """A message in terms of the arguments of `load` and `QdrantDatasink`."""
    return _NAMES.sub(lambda match: _ARGUMENTS[match[1]], message)
