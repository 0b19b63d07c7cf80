"""Parsing and rendering in threads: small values never wait behind large ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Final, TypeVar

import numpy as np

from embedder import BODIES, QUICK

T = TypeVar("T")

LIGHT_MAX_UNITS: Final = 2000
"""Weight up to which a value is parsed or rendered in a few milliseconds."""

CHARACTERS_PER_UNIT: Final = 100
"""Characters, or numbers of an array, that weigh as much as one value."""

_NUMBERS: Final = frozenset({int, float, bool, type(None)})


async def beside(call: Callable[[], T], *values: object) -> T:
    """Run a call that parses or renders these values among quick work if they are light, else in the other threads."""
    return await (QUICK if is_light(*values) else BODIES).run(call)


def is_light(*values: object) -> bool:
    """Whether values weigh at most `LIGHT_MAX_UNITS` together. Of heavier ones no more than that is looked at.

    Each item of a list, key or value of an object and field of a dataclass weighs one unit; texts and arrays by length.
    """
    left = LIGHT_MAX_UNITS
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        kind: Any = type(value)
        if kind in _NUMBERS:  # nearly all values are of a few exact types, which are told apart in no time
            continue
        if isinstance(value, str | bytes):
            left -= len(value) // CHARACTERS_PER_UNIT
        elif isinstance(value, np.ndarray):
            left -= value.size // CHARACTERS_PER_UNIT
        elif isinstance(value, list | tuple):
            left -= len(value)
            waiting += value if left >= 0 else []
        elif names := _field_names(kind):
            left -= len(names)
            waiting += [getattr(value, name) for name in names]
        elif isinstance(value, Mapping):
            left -= 2 * len(value)
            waiting += [*value.keys(), *value.values()] if left >= 0 else []
        elif isinstance(value, Sequence | AbstractSet):
            left -= len(value)
            waiting += value if left >= 0 else []
        if left < 0:
            return False
    return True


@cache
def _field_names(kind: Any) -> tuple[str, ...] | None:
    """The names of the fields of a dataclass; None for another type."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else None
