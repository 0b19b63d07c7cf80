"""Unknown fields of requests, and the known field that their callers probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, get_args

from pydantic import BaseModel

from embedder import FieldError
from service.validation import field_path

Path = tuple[str, ...]

_SIMILARITY_MIN: Final = 0.8
"""Minimum similarity of a name to the known one, as `difflib` measures it; `text` and `textKey` have 0.73."""

_NAME_MAX: Final = 64
"""Maximum characters of a name that is compared."""


def unknown_field(location: Sequence[int | str], kind: type[BaseModel], raw: Mapping[str, Any]) -> FieldError:
    """The error of an unknown field, with the field that was probably meant.

    Args:
        location: location of the field in the request.
        kind: type of the request.
        raw: the request.
    """
    field = field_path(location)
    message = f"unknown field '{field}'"
    if tuple(location) == ("input",) and isinstance(raw["input"], dict):
        return FieldError(field, f"{message}: its fields must stand one level higher, in place of it")
    meant = _meant(tuple(str(part) for part in location), kind, raw)
    return FieldError(field, message if meant is None else f"{message}: did you mean '{'.'.join(meant)}'?")


def unknown_names(kind: type[BaseModel], raw: Mapping[str, Any]) -> list[str]:
    """The names of the unknown fields at the top of a request."""
    names = {path[0] for path in _paths(kind)}
    return [name for name in raw if name not in names]


def _meant(unknown: Path, kind: type[BaseModel], raw: Mapping[str, Any]) -> Path | None:
    """The known path that is most like an unknown one: a field that is not given beside it, or one elsewhere."""
    *above, name = unknown
    if len(name) > _NAME_MAX:
        return None
    block: Any = raw
    for part in above:
        block = block[part]
    plain = _plain(name)
    beside = {_plain(path[-1]): path for path in _paths(kind) if [*path[:-1]] == above and block.get(path[-1]) is None}
    for match in difflib.get_close_matches(plain, beside, n=1, cutoff=_SIMILARITY_MIN):
        return beside[match]
    return next((path for path in _paths(kind) if _plain(path[-1]) == plain and [*path[:-1]] != above), None)


def _plain(name: str) -> str:
    """A name in lower case, without separators and in the singular: `queries`, `Query` and `QUERY` are one."""
    plain = name.replace("_", "").replace("-", "").lower()
    return plain.removesuffix("ies") + "y" if plain.endswith("ies") else plain.removesuffix("s")


@lru_cache(maxsize=16)
def _paths(kind: type[BaseModel]) -> tuple[Path, ...]:
    """The paths of all fields of a type and of its blocks, by their names in JSON."""
    paths: list[Path] = []
    for name, field in kind.model_fields.items():
        path = (field.alias or name,)
        paths.append(path)
        for block in (field.annotation, *get_args(field.annotation)):
            if isinstance(block, type) and issubclass(block, BaseModel):
                paths += [path + inner for inner in _paths(block)]
    return tuple(paths)
