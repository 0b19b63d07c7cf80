"""Long runs of blanks in a text, looked for in steps: a pattern holds the interpreter until it has read the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from embedder.cancellation import check_cancelled

SPACE: Final = r"[^\S\x1c-\x1f]"
"""Pattern of a character that the `tokenizers` library takes for white space."""

RUN_MIN_CHARACTERS: Final = 9
"""Fewest characters of a long run."""

STEP_CHARACTERS: Final = 131_072
"""Characters that are read in one step, in about 5 ms; more if a run goes on there."""

_VISIBLE: Final = re.compile(r"\S")


class LongBlanks:
    """Every run of over 8 characters, white space among them, that one space can stand for: the tokens stay.

    For BGE-M3 they consist of white space, zero-width spaces and control characters.

    Args:
        blank: the characters of such runs; empty if no run is one.
    """

    def __init__(self, blank: str) -> None:
        blanks = f"[{re.escape(blank)}]" if blank else "(?!)"
        within = RUN_MIN_CHARACTERS - 1
        self._run = re.compile(rf"(?={blanks}{{0,{within}}}{SPACE}){blanks}{{{RUN_MIN_CHARACTERS},}}")
        self._rest = re.compile(rf"(?:{blanks})*+")

    def runs(self, text: str) -> Iterator[re.Match[str]]:
        """Yield the long runs of a text in their order.

        Raises:
            Cancelled: nobody waits for the text any more; before any step.
        """
        for start, end in self._steps(text):
            yield from self._run.finditer(text, start, end)

    def shortened(self, text: str, most: int) -> str:
        """Return the text with a space in place of every long run, as far as it is read.

        Args:
            text: the text.
            most: most characters of the result that are read. If there are more, the result has at least one of them,
                and one that is visible if the rest of the text has one.

        Raises:
            Cancelled: nobody waits for the text any more; before any step.
        """
        parts: list[str] = []
        length = 0
        for start, end in self._steps(text):
            parts.append(self._run.sub(" ", text[start:end]))
            length += len(parts[-1])
            if length > most:
                visible = _VISIBLE.search(text, end)
                if visible is not None:
                    parts.append(visible[0])
                break
        return "".join(parts)

    def _steps(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the spans of a text, none of which ends within a run."""
        start = 0
        while start < len(text):
            check_cancelled()
            end = min(len(text), start + STEP_CHARACTERS)
            rest = self._rest.match(text, end)
            end = end if rest is None else rest.end()
            yield start, end
            start = end
