"""What a user sees while a collection is copied or completed."""

from __future__ import annotations

from functools import partial

from service.operations import CompletionProgress, ReindexProgress
from service.transports.cli import complete, reindex
from service.transports.cli.progress_lines import ProgressLines


def test_the_time_of_a_rate_begins_with_the_copy() -> None:
    """A wait for other loads before it makes no copy slow; every new stage has a line."""
    said: list[str] = []
    now = [0.0]
    lines = ProgressLines(said.append, lambda: now[0])

    def show(at_s: float, progress: ReindexProgress) -> None:
        now[0] = at_s
        lines.show(progress.stage, partial(reindex.progress_line, progress))

    show(60.0, ReindexProgress("copy", 0, 900, 0))
    show(61.0, ReindexProgress("copy", 100, 900, 100))
    show(62.0, ReindexProgress("copy", 300, 900, 200))
    show(63.0, ReindexProgress("copy", 900, 900, 800))
    show(63.5, ReindexProgress("index", 900, 900, 800))
    show(99.0, ReindexProgress("check", 500, 900, 800))
    assert said == [
        "points: 300 of 900, copied: 200, per second: 100",
        "copied: 800; building the index",
        "checked: 500 of 900, copied: 800",
    ]


def test_a_completion_has_a_rate_too() -> None:
    """With the copied points if it copies."""
    assert complete.progress_line(CompletionProgress(30, 90), 2.0) == "points: 30 of 90, per second: 15"
    copying = complete.progress_line(CompletionProgress(30, 90, 50), 2.0)
    assert copying == "copied: 50, points: 30 of 90, per second: 15"
