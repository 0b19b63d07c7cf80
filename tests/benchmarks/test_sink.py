"""The sink benchmark runs end to end and reports what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.ingest import Ingest, passages
from benchmarks.messages import Way
from benchmarks.sink import Findings, render, write_report
from benchmarks.spans import Recorder, Span, Timeline, covered, merged, rows, shared

ROOT = Path(__file__).parents[2]
MODEL = [Span(0.0, 2.0, 10), Span(2.5, 4.0, 10)]
STORE = [Span(1.0, 3.0, 5), Span(1.5, 2.0, 5), Span(3.0, 3.5, 5), Span(5.0, 6.0, 5)]


def test_time_that_spans_share_is_counted_once() -> None:
    """The time of concurrent upserts is counted once."""
    assert merged(STORE) == [(1.0, 3.5), (5.0, 6.0)]
    assert covered(STORE) == 3.5
    assert shared(MODEL, STORE) == pytest.approx(1.0 + 1.0)
    assert shared(STORE, MODEL) == shared(MODEL, STORE)
    assert covered([]) == shared(MODEL, []) == 0.0


def test_the_overlap_is_a_share_of_the_store() -> None:
    """The overlap is the share of store time beside the model, and undefined for an idle store."""
    timeline = Timeline(7.0, MODEL, STORE)
    assert timeline.hidden == pytest.approx(2.0 / 3.5)
    assert timeline.idle == pytest.approx(0.5)
    assert Timeline(7.0, MODEL, STORE[-1:]).hidden == pytest.approx(0.0)
    assert Timeline(7.0, MODEL, [Span(0.5, 1.5, 1)]).hidden == pytest.approx(1.0)
    assert Timeline(7.0, MODEL, []).hidden is None


def test_concurrent_spans_are_drawn_in_separate_rows() -> None:
    """Concurrent spans are drawn in separate rows, and free rows are reused."""
    assert rows(STORE) == [0, 1, 0, 0]


def test_a_run_has_its_own_spans_alone() -> None:
    """Spans count from the start of their run and do not appear in the next one."""
    recorder = Recorder(model=[Span(11.0, 12.0, 3)], store=[Span(13.0, 14.0, 2), Span(12.0, 13.0, 1)])
    timeline = recorder.take(10.0, 15.0)
    assert (timeline.seconds, timeline.model) == (5.0, [Span(1.0, 2.0, 3)])
    assert timeline.store == [Span(2.0, 3.0, 1), Span(3.0, 4.0, 2)]
    assert recorder.take(15.0, 16.0).model == []


def test_the_texts_are_as_many_as_asked_for_and_distinct() -> None:
    """The requested number of distinct texts is the same at every run."""
    texts = passages(500)
    assert len(texts) == len(set(texts)) == 500
    assert texts == passages(500)


def _findings(*, build: float, whole: float) -> Findings:
    ways = [Way("REST", build, 0.2, 9_000_000), Way("gRPC", 0.4, 0.1, 3_000_000), Way("ours", 0.02, 0.0, 3_000_000)]
    timeline = Timeline(whole, MODEL, STORE)
    ingests = [Ingest("Edge", 100, [5.0, 4.0, 6.0], [2.0] * 3, [whole] * 3, timeline)]
    return Findings(
        "2020-01-02T03:04:05+00:00", False, "mini", 32, ways, ingests, {"CPU": "Example 9000", "cores": "2"}
    )


@pytest.mark.parametrize(
    ("build", "whole", "expected_lines"),
    [
        (
            0.2,
            5.5,
            [
                "it is 20.0 times: met",
                "| REST | 200.0 | 400.0 | 9.0 | 10.0 x | 20.0 x |",
                "| Edge | 20 | 50 | 18 | 91 % | 91 % | met | 57 % | 36 % |",
            ],
        ),
        (0.1, 6.0, ["it is 15.0 times: missed", "| Edge | 20 | 50 | 17 | 83 % | 83 % | missed | 57 % | 42 % |"]),
    ],
)
def test_goals_are_met_or_missed(build: float, whole: float, expected_lines: list[str]) -> None:
    """The report shows the verdicts beside the figures and the machine."""
    text = render(_findings(build=build, whole=whole), notes="", picture="")
    for part in [*expected_lines, "Example 9000, 2 cores", "2020-01-02", "| REST | "]:
        assert part in text


def test_what_was_written_by_hand_stays(tmp_path: Path) -> None:
    """A new run replaces the figures and keeps the handwritten notes."""
    report = tmp_path / "report.md"
    report.write_text("old <!-- notes -->\nby hand\n<!-- /notes --> old", encoding="utf-8")
    write_report(_findings(build=0.2, whole=5.0), report)
    text = report.read_text(encoding="utf-8")
    assert "by hand" in text
    assert "old" not in text
    if find_spec("matplotlib"):
        assert "(report.svg)" in text
        assert "model" in (tmp_path / "report.svg").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_command_measures_both_stores(tmp_path: Path) -> None:
    """Every figure is present, and the spans lie within the run and cover every text."""
    command = [sys.executable, "-m", "benchmarks.sink", "--quick", "--texts", "16", "--dtype", "float32"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "sink.json").read_text(encoding="utf-8"))
    assert [ingest["store"] for ingest in report["ingests"]] == ["Qdrant Edge", "gRPC double"]
    for ingest in report["ingests"]:
        assert min(ingest["model"] + ingest["alone"] + ingest["whole"]) > 0
        for spans in (ingest["timeline"]["model"], ingest["timeline"]["store"]):
            assert sum(span["texts"] for span in spans) == 16
            assert all(0 <= span["start"] <= span["end"] <= ingest["timeline"]["seconds"] for span in spans)
    assert len(report["ways"]) == 3
    assert "## Ingest of 16 passages" in (tmp_path / "benchmarks-sink.md").read_text(encoding="utf-8")
