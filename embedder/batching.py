"""Which texts go into the next forward pass. Pure: lengths and a budget in, a plan out.

Rules, in the order in which they apply:

1. Queries go before passages, and a batch never mixes the two: a query that rides with passages
   waits for all of them. But passages that one batch of queries has passed over come next, so that a
   stream of queries without end starves nobody; they give way to queries while they run.
2. Jobs of one priority take turns text by text, and the job that opened a batch goes to the back of
   the line, so a small job is not stuck behind a large one and no job starves.
3. A batch holds at most `budget` tokens, except that a longer text goes alone.
4. A job's `cap` bounds how many of its texts share a batch.
5. A job with a `window` has at most so many tokens out of the queue at once, or one longer text; what its
   consumer is done with is granted again. So results never pile up in front of a slow consumer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, TypeVar

JobKey = TypeVar("JobKey", bound=Hashable)


class Priority(IntEnum):
    """Lower goes first."""

    QUERY = 0
    PASSAGE = 1


@dataclass(frozen=True, slots=True)
class Pick(Generic[JobKey]):
    """Text number `index` of the job `key` is in the batch."""

    key: JobKey
    index: int


@dataclass(slots=True, eq=False)
class _Line(Generic[JobKey]):
    """The texts of one job that still wait."""

    key: JobKey
    lengths: Sequence[int]
    cap: int
    credit: float
    next: int = 0

    @property
    def waiting(self) -> bool:
        return self.next < len(self.lengths)

    @property
    def ready(self) -> bool:
        return self.waiting and self.credit > 0

    @property
    def tokens(self) -> int:
        return sum(self.lengths[self.next :])


@dataclass(slots=True)
class BatchQueue(Generic[JobKey]):
    """The texts that wait for a forward pass, and how many tokens they hold. Not thread-safe."""

    tokens: int = field(default=0, init=False)
    _passed_over: bool = field(default=False, init=False)
    _lines: dict[Priority, deque[_Line[JobKey]]] = field(
        default_factory=lambda: {priority: deque() for priority in Priority}, init=False
    )

    def __bool__(self) -> bool:
        """Whether a text waits, be it for its turn or for its job's window."""
        return any(self._lines.values())

    def waits(self, priority: Priority) -> bool:
        """Whether a text of this priority waits for its turn."""
        return any(line.ready for line in self._lines[priority])

    def add(self, key: JobKey, lengths: Sequence[int], priority: Priority, *, cap: int = 0, window: int = 0) -> None:
        """Queue a job's texts, given by their lengths in tokens; `cap` and `window` 0 mean none."""
        if lengths:
            self._lines[priority].append(_Line(key, lengths, cap or len(lengths), window or math.inf))
            self.tokens += sum(lengths)

    def grant(self, key: JobKey, tokens: int) -> None:
        """So many tokens of the job left its window."""
        for lines in self._lines.values():
            for line in lines:
                if line.key == key:
                    line.credit += tokens

    def drop(self, key: JobKey) -> None:
        """Forget what still waits of a job."""
        for lines in self._lines.values():
            for line in [line for line in lines if line.key == key]:
                lines.remove(line)
                self.tokens -= line.tokens

    def drain(self) -> list[Pick[JobKey]]:
        """Remove and return everything that waits."""
        picks = [
            Pick(line.key, index)
            for lines in self._lines.values()
            for line in lines
            for index in range(line.next, len(line.lengths))
        ]
        for lines in self._lines.values():
            lines.clear()
        self.tokens = 0
        return picks

    def take(self, budget: int) -> list[Pick[JobKey]]:
        """Remove and return the next batch; empty only if nothing waits for its turn."""
        passages = self.waits(Priority.PASSAGE)
        queries = self.waits(Priority.QUERY) and not (self._passed_over and passages)
        self._passed_over = queries and passages
        return self._take(self._lines[Priority.QUERY if queries else Priority.PASSAGE], budget)

    def take_queries(self, budget: int) -> list[Pick[JobKey]]:
        """Remove and return a batch of queries, out of turn; empty if none waits."""
        return self._take(self._lines[Priority.QUERY], budget)

    def _take(self, lines: deque[_Line[JobKey]], budget: int) -> list[Pick[JobKey]]:
        picks: list[Pick[JobKey]] = []
        left = budget
        open_lines = [line for line in lines if line.ready]
        opener = open_lines[:1]
        turn = 0
        while open_lines:
            turn += 1
            still_open = []
            for line in open_lines:
                length = line.lengths[line.next]
                if length > left and picks:
                    continue
                picks.append(Pick(line.key, line.next))
                line.next += 1
                left -= length
                line.credit -= length
                self.tokens -= length
                if line.ready and turn < line.cap:
                    still_open.append(line)
            open_lines = still_open
        for line in opener:
            lines.remove(line)
            lines.append(line)
        for line in [line for line in lines if not line.waiting]:
            lines.remove(line)
        return picks
