"""Environment variables as templates, shells and secret files write them: the plain value, and names near a known one.

Imports nothing but the standard library, since the health check starts every few seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

TYPING_ERRORS_MAX: Final = 2
"""Maximum edits between an unknown variable and the setting that it is likely to mean."""

_LONG_NAME: Final = 9
"""Length from which no other program has a name within `TYPING_ERRORS_MAX` edits; `MODEL_DIR` is 2 from `MODEL_ID`."""

_COMMON_NAME: Final = 7
"""Length up to which other programs have names within one edit: `TYPE`, `ENGINES`, `API_KEYS`."""

_TINY_NAME: Final = 4
"""Length up to which nothing can be said: `PORT`."""


def plain(text: str) -> str:
    """The value of a variable without blanks and line breaks around it, and without one pair of matching quotes.

    Quotes are removed once, so a value that has quotes of its own is written in another pair: `'"a"'` is `"a"`.
    """
    text = text.strip().removeprefix("\ufeff").strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text


def misspelled(names: Collection[str], settings: Collection[str]) -> Iterator[tuple[str, str]]:
    """The names that are probably misspelled settings, each with the setting that it is nearest to.

    Args:
        names: names of variables in upper case.
        settings: names of the settings in upper case.
    """
    for name in sorted(names):
        if name in settings:
            continue
        edits, setting = min((edit_distance(name, setting), setting) for setting in settings)
        if _is_typing_error(name, setting, edits):
            yield name, setting


def _is_typing_error(name: str, setting: str, edits: int) -> bool:
    """Whether a name means a setting rather than something of another program."""
    if len(setting) >= _LONG_NAME:
        return edits <= TYPING_ERRORS_MAX
    if len(setting) <= _COMMON_NAME:  # only a letter that is missing or swapped, and never the first
        missing_or_swapped = len(name) < len(setting) or sorted(name) == sorted(setting)
        return len(setting) > _TINY_NAME and edits == 1 and name[0] == setting[0] and missing_or_swapped
    return edits == 1


def edit_distance(a: str, b: str) -> int:
    """Number of letters to insert, delete, replace or swap with their neighbour to make one text of the other.

    The distance stops at `TYPING_ERRORS_MAX + 1`, which stands for every larger one.
    """
    limit = TYPING_ERRORS_MAX + 1
    if abs(len(a) - len(b)) >= limit:
        return limit
    letters, others = set(a), set(b)
    if len(letters - others) >= limit or len(others - letters) >= limit:  # an edit removes and adds one letter at most
        return limit
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, other in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return min(row[-1], limit)
