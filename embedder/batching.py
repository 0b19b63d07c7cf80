"""Which texts go into the next forward pass. Pure: lengths and a budget in, a plan out.

Rules, in the order in which they apply:

1. Queries go before passages, and a batch never mixes the two: a query that rides with passages
   waits for all of them. But passages that one batch of queries has passed over come next, so that a
   stream of queries without end starves nobody; they give way to queries while they run.
2. Jobs of one priority take turns text by text, and the job that opened a batch goes to the back of
   the line, so a small job is not stuck behind a large one and no job starves.
3. A batch holds at most `budget` tokens, except that a longer text goes alone.
4. A job's `cap` bounds how many of its texts share a batch.
5. Jobs that stream share a `window`: while it is used up, by tokens that were taken and not released again,
   their texts wait. So results never pile up in front of slow consumers, however many there are. The last text
   taken may exceed it.
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
    streams: bool
    next: int = 0

    @property
    def waiting(self) -> bool:
        return self.next < len(self.lengths)

    @property
    def tokens(self) -> int:
        return sum(self.lengths[self.next :])


@dataclass(slots=True)
class BatchQueue(Generic[JobKey]):
    """The texts that wait for a forward pass, and how many tokens they hold. Not thread-safe.

    Attributes:
        window: tokens of streaming jobs that may be out of the queue and not released.
        tokens: of all texts that wait.
    """

    window: float = math.inf
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
        return any(self._ready(line) for line in self._lines[priority])

    def add(
        self, key: JobKey, lengths: Sequence[int], priority: Priority, *, cap: int = 0, streams: bool = False
    ) -> None:
        """Queue a job's texts, given by their lengths in tokens; `cap` 0 means none."""
        if lengths:
            self._lines[priority].append(_Line(key, lengths, cap or len(lengths), streams))
            self.tokens += sum(lengths)

    def release(self, tokens: int) -> None:
        """So many tokens of streaming jobs, taken before, are done with."""
        self.window += tokens

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
        open_lines = [line for line in lines if self._ready(line)]
        opener = open_lines[:1]
        turn = 0
        while open_lines:
            turn += 1
            still_open = []
            for line in open_lines:
                length = line.lengths[line.next]
                if (length > left and picks) or not self._ready(line):
                    continue
                picks.append(Pick(line.key, line.next))
                line.next += 1
                left -= length
                if line.streams:
                    self.window -= length
                self.tokens -= length
                if self._ready(line) and turn < line.cap:
                    still_open.append(line)
            open_lines = still_open
        for line in opener:
            lines.remove(line)
            lines.append(line)
        for line in [line for line in lines if not line.waiting]:
            lines.remove(line)
        return picks

    def _ready(self, line: _Line[JobKey]) -> bool:
        return line.waiting and (not line.streams or self.window > 0)
