"""A load that waits for signs of life of others says so, and how long."""

from __future__ import annotations

from qdrant_sink.loading import LoadRecord
from service.operations.life_wait import LifeWait

KILLED = LoadRecord("first", "0" * 16, "running", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z")


def test_a_wait_is_said_at_its_beginning_at_intervals_and_at_its_end() -> None:
    """A terminal that would be silent for a minute has a line every ten seconds."""
    said: list[str] = []
    now = [100.0]
    wait = LifeWait(said.append, 60.0, lambda: now[0])
    wait.end()
    while now[0] < 125.0:
        wait.go_on([KILLED])
        now[0] += 0.5
    wait.end()
    wait.end()
    assert said.pop(0).startswith("waiting for a sign of life of load 'first' (begun 2026-01-01T00:00:00Z, last sign")
    assert said == [
        "still waiting, 10 of at most 60 s",
        "still waiting, 20 of at most 60 s",
        "the wait has ended after 25 s",
    ]


def test_a_second_wait_is_said_again() -> None:
    """The wait before the first line and that before the graph are two."""
    said: list[str] = []
    now = [0.0]
    wait = LifeWait(said.append, 60.0, lambda: now[0])
    for _ in range(2):
        wait.go_on([KILLED])
        now[0] += 3.0
        wait.end()
    assert [text.split(" of ")[0] for text in said] == ["waiting for a sign", "the wait has ended after 3 s"] * 2
