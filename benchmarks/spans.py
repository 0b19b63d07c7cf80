"""When the model computed and when the store wrote: spans of time, taken by wrapping both."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedder import BatchReport, Embedder
    from qdrant_sink import Point, Store


@dataclass(frozen=True, slots=True)
class Span:
    """Something took from `start` to `end`, in seconds; it was about so many `texts`."""

    start: float
    end: float
    texts: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """The spans of a run that took `seconds`, counted from its start.

    Attributes:
        seconds: of the run.
        model: passes of the encoder, one after the other.
        store: upserts; several may be under way concurrently.
    """

    seconds: float
    model: Sequence[Span]
    store: Sequence[Span]

    @property
    def hidden(self) -> float | None:
        """The share of the store's time in which the model computed too; None if the store did nothing."""
        both, store = shared(self.model, self.store), covered(self.store)
        return both / store if store else None

    @property
    def idle(self) -> float:
        """The share of the run in which the model did not compute."""
        return 1 - covered(self.model) / self.seconds


@dataclass
class Recorder:
    """Collects the spans of one run after another. Thread-safe: appending to a list is."""

    model: list[Span] = field(default_factory=list)
    store: list[Span] = field(default_factory=list)

    def take(self, start: float, end: float) -> Timeline:
        """The spans of a run that lasted from `start` to `end`, on `time.perf_counter`; forgets them."""
        found = [
            sorted((Span(s.start - start, s.end - start, s.texts) for s in spans), key=lambda span: span.start)
            for spans in (self.model, self.store)
        ]
        self.model.clear()
        self.store.clear()
        return Timeline(end - start, *found)


@contextmanager
def _recorded(spans: list[Span], texts: int) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        spans.append(Span(start, time.perf_counter(), texts))


def watch_model(embedder: Embedder, recorder: Recorder) -> None:
    """Record every batch that an embedder computes."""

    def record(batch: BatchReport) -> None:
        end = time.perf_counter()
        recorder.model.append(Span(end - batch.seconds, end, batch.texts))

    embedder.observe(record)


class WatchedStore:
    """A store that records its upserts; in all else the store that it is given."""

    def __init__(self, store: Store, recorder: Recorder) -> None:
        self._store = store
        self._recorder = recorder

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """See `Store.upsert`."""
        with _recorded(self._recorder.store, len(points)):
            self._store.upsert(collection, points, insert_only=insert_only)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def merged(spans: Sequence[Span]) -> list[tuple[float, float]]:
    """The times at which at least one of the spans was under way, in order, without overlaps."""
    found: list[tuple[float, float]] = []
    for span in sorted(spans, key=lambda one: one.start):
        if found and span.start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], span.end))
        else:
            found.append((span.start, span.end))
    return found


def covered(spans: Sequence[Span]) -> float:
    """Seconds in which at least one of the spans was under way."""
    return sum(end - start for start, end in merged(spans))


def shared(first: Sequence[Span], second: Sequence[Span]) -> float:
    """Seconds in which one of each was under way."""
    return covered(first) + covered(second) - covered([*first, *second])


def rows(spans: Sequence[Span]) -> list[int]:
    """The row of each span, in order of start: the lowest that is free, so that concurrent spans lie side by side."""
    ends: list[float] = []
    chosen = []
    for span in spans:
        free = next((row for row, end in enumerate(ends) if end <= span.start), len(ends))
        ends[free : free + 1] = [span.end]
        chosen.append(free)
    return chosen
