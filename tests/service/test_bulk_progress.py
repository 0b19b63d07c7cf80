"""What a user sees while a load runs."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qdrant_sink.loading import Shard
from service.bulk import LoadReport
from service.bulk.reading import Reader, ReadOptions, ReadProgress
from service.bulk.sources import sources_of
from service.transports.cli.progress_line import ProgressLine, described


class Terminal(io.StringIO):
    """A standard error that is a terminal."""

    def isatty(self) -> bool:
        """See `io.StringIO.isatty`."""
        return True


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time in seconds."""
        return self.now


def test_a_terminal_has_one_line_that_is_rewritten() -> None:
    """Messages stand above it, and it is gone at the end, before the summary."""
    terminal, clock = Terminal(), Clock()
    progress = ProgressLine(ReadProgress(), terminal, clock)
    report = LoadReport(lines=1, stored=1)
    progress.show(report)
    assert not terminal.getvalue()
    clock.now = 1.0
    progress.show(report)
    progress.show(report)
    (line,) = terminal.getvalue().split("\r\x1b[K")[1:]
    assert line.startswith("1 lines, 1 points, ")
    progress.say("the HNSW graph will be built at the end")
    progress.close()
    assert terminal.getvalue().endswith(f"{line}\r\x1b[Kthe HNSW graph will be built at the end\n{line}\r\x1b[K")


def test_a_log_has_a_line_at_intervals() -> None:
    """Without a terminal nothing is rewritten, and a line comes every ten seconds."""
    log, clock = io.StringIO(), Clock()
    progress = ProgressLine(ReadProgress(), log, clock)
    for second in range(41):
        clock.now = float(second)
        progress.show(LoadReport(lines=second))
    progress.close()
    lines = log.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["10 lines", "20 lines", "30 lines", "40 lines"]
    assert "\r" not in log.getvalue()


def test_the_part_that_is_done_and_the_time_that_is_left_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of half of the input that is read, half is stored: a quarter is done."""
    report = LoadReport(lines=50, stored=60, tokens=1200)
    monkeypatch.setattr(LoadReport, "working_seconds", 30.0)
    read = ReadProgress()
    read.lines, read.fraction = 100, 0.5
    assert described(report, read) == "25 %, 50 lines, 60 points, 2 points/s, 40 tokens/s, 0:01:30 left"
    report.passed = 30
    assert described(report, read).endswith(", 0:03:45 left")
    read.fraction = None
    assert described(report, read) == "50 lines, 60 points, 2 points/s, 40 tokens/s"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_part_that_is_read_grows_to_all(tmp_path: Path, suffix: str) -> None:
    """By bytes over all files, by rows within Parquet; never backwards, and half after the first of two files."""
    texts = [f"{number} ".ljust(400, "x") for number in range(4000)]
    for name in ("a", "b"):
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.table({"text": texts, "n": list(range(4000))}), path)
        else:
            rows = (f'{{"text": "{text}"}}' for text in texts)
            path.write_text("\n".join(["text", *texts] if suffix == "csv" else rows) + "\n", encoding="utf-8")
    reader = Reader(ReadOptions(), print)
    seen = []
    for _ in reader.lines(sources_of([str(tmp_path)], any_format=False, say=print)):
        assert reader.progress.fraction is not None
        seen.append(reader.progress.fraction)
    assert seen == sorted(seen)
    assert len(seen) == reader.progress.lines == 8000
    assert seen[3999] == pytest.approx(0.5, abs=0.001)
    assert seen[1000] < 0.3
    assert seen[-1] == pytest.approx(1.0, abs=0.001)


def test_the_part_of_a_pipe_is_unknown() -> None:
    """A size that nobody knows gives no percentage."""
    assert ReadProgress().fraction is None


def test_the_progress_of_a_shard_is_that_of_its_part() -> None:
    """A quarter of the lines that were read is all that a shard of four has to store of them."""
    read = ReadProgress()
    read.lines, read.fraction = 1000, 0.5
    assert described(LoadReport(shard=Shard(1, 4), lines=250), read).startswith("50 %")
