"""`embed` writes vectors into files, in parts that are whole, and goes on after them."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.bulk.line import BadLine, Line, WrongFileError
from service.bulk.vector_files.embed_run import EmbedRun
from service.bulk.vector_files.parts import ROW_GROUP_MAX_BYTES, PartFolder
from service.operations import Operations
from service.settings import Settings
from service.transports.cli.bulk import load
from service.transports.cli.options import Failure
from tests.command_line import PROGRAM, bulk_options, invoke
from tests.service.client import ENVIRONMENT, PATIENCE
from tests.service.vector_files import (
    LINES,
    LONG,
    MANY,
    VectorLoad,
    embedded,
    parts_of,
    raw,
    rows_of,
    three_texts,
    told_by_texts,
)

ROOT = Path(__file__).parents[2]
SMALL = ("--vectors", "dense", "--part-mb", "0.005", "--chunk-tokens", "64")


def _broken_off(after: int) -> Iterator[Line | BadLine]:
    """Lines that end with a fault."""
    for number, line in enumerate(raw(MANY)):
        if number == after:
            raise WrongFileError("lines", "it breaks off")
        yield line


@pytest.mark.slow
def test_a_run_that_broke_off_goes_on(
    embedder: Embedder, store: EdgeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command keeps the whole parts, and embeds only what follows them; the rows are those of one run."""
    monkeypatch.setattr("service.bulk.vector_files.embed_run.BATCH_MAX_TEXTS", 4)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert embedded(embedder, whole, raw(MANY), *SMALL)["status"] == 0
    broken = embedded(embedder, out, _broken_off(after=21), *SMALL)
    assert (broken["status"], broken["error"]) == (2, "lines: it breaks off")
    before = {path: path.read_bytes() for path in parts_of(out)}
    assert 1 < len(before) < len(parts_of(whole))
    partial = VectorLoad(store, "--collection", "a", "--alias", "live", str(out))
    assert any(f"{out}: embed has not come to the end of its input" in text for text in partial.said)
    assert (partial.report.status, partial.report.alias, partial.report.rejected) == (1, False, 1)
    assert 0 < partial.report.points <= 21
    taken = VectorLoad(store, "--collection", "b", "--alias", "partial", "--allow-rejected", str(out))
    assert (taken.report.status, taken.report.alias) == (1, True)
    (out / "part-00099.parquet.tmp").write_bytes(b"left by a kill")
    rest = embedded(embedder, out, raw(MANY), *SMALL)
    assert (rest["status"], rest["rows"]) == (0, len(MANY))
    assert 0 < rest["skipped"] <= 21
    again = VectorLoad(store, "--collection", "a", "--alias", "live", str(out))
    assert (again.report.status, again.report.alias, again.report.points) == (0, True, len(MANY))
    assert {path: path.read_bytes() for path in before} == before
    assert all(path.suffix == ".parquet" for path in parts_of(out))
    assert [row["id_integer"] for row in rows_of(out)] == [row["id_integer"] for row in rows_of(whole)]
    for own, other in zip(rows_of(out), rows_of(whole), strict=True):
        np.testing.assert_allclose(own.pop("dense"), other.pop("dense"), atol=1e-5)
        assert own == other
    repeated = embedded(embedder, out, raw(MANY), *SMALL)
    assert (repeated["status"], repeated["rows"], repeated["tokens"]) == (0, len(MANY), 0)
    assert repeated["skipped"] == len(MANY)
    complete = VectorLoad(store, "--collection", "a", str(out))
    assert (complete.report.stored, complete.report.status) == (len(MANY), 0)
    assert not any("embed has not come" in text for text in complete.said)


@pytest.mark.parametrize(
    ("lines", "options", "reason"),
    [
        ([{**MANY[0], "text": "changed"}, *MANY[1:]], SMALL, "the first 40 lines of the input, or the fields that are"),
        (MANY[:5], SMALL, "the input has 5 lines, and the parts in the folder were embedded from its first 40"),
        ([*MANY, {"text": "more"}], SMALL, "the folder is complete, and the input has more than its 40 lines"),
    ],
)
def test_a_changed_input_is_refused(
    embedder: Embedder, tmp_path: Path, lines: Any, options: tuple[str, ...], reason: str
) -> None:
    """Rows of two inputs are never mixed in one folder."""
    embedded(embedder, tmp_path / "out", raw(MANY), *SMALL)
    before = {path: path.read_bytes() for path in parts_of(tmp_path / "out")}
    summary = embedded(embedder, tmp_path / "out", raw(lines), *options)
    assert summary["status"] == 2
    assert summary["error"].startswith(reason)
    assert {path: path.read_bytes() for path in parts_of(tmp_path / "out")} == before


def test_changed_options_are_refused(embedder: Embedder, tmp_path: Path) -> None:
    """The message names the option, and what the folder has."""
    out = three_texts(embedder, tmp_path / "out")
    for options, difference in (
        (["--dtype", "float16"], "dtype float16, not float32"),
        (["--vectors", "dense"], "kinds dense, not dense, sparse, colbert"),
        (["--chunk-tokens", "64"], "chunk tokens 64, not 0"),
    ):
        with pytest.raises(Exception, match="was embedded with other options") as raised:
            embedded(embedder, out, raw(MANY), *options)
        assert difference in str(raised.value)


def test_rejected_lines_are_those_of_bulk(embedder: Embedder, tmp_path: Path) -> None:
    """Wrong lines, ids, payloads and texts with too many ColBERT rows are named; the status says so, also later."""
    lines = [*LINES[:1], {"text": "b", "id": -1}, {"text": "c", "payload": []}, {"txt": "d"}]
    for _ in range(2):
        summary = embedded(embedder, tmp_path / "out", raw(lines))
        assert (summary["status"], summary["rows"], summary["rejected"]) == (1, 1, 3)
        for reason in (
            "line 2: id: an integer id must be 0 to",
            "line 3: payload: must be an object, got a list",
            "line 4: text is required; unknown field 'txt'",
        ):
            assert reason in summary["said"]


HOSTILE = st.fixed_dictionaries(
    {"text": st.one_of(st.sampled_from(["", "a", "\ud800", "b\udfff", "\0"]), st.text(max_size=5))},
    optional={
        "id": st.sampled_from([0, -1, 2**64, 1.5, True, "", "x" * 2000, "\ud800", [], "seven"]),
        "payload": st.sampled_from([{}, [], "p", {"n": float("inf")}, {"\ud800": 1}, {"": 1}, {"a": {"b": 2**70}}]),
    },
)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(lines=st.lists(HOSTILE, min_size=1, max_size=6))
def test_both_reject_the_same_lines(
    embedder: Embedder, store: EdgeStore, tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]]
) -> None:
    """With the same words: who corrects the lines for `embed` has corrected them for `bulk`."""
    _, said = told_by_texts(embedder, store, lines, "--collection", f"c{len(store.collections())}")
    summary = embedded(embedder, tmp_path_factory.mktemp("out") / "out", raw(lines))
    assert _rejections(summary["said"].splitlines()) == _rejections(said)


def _rejections(said: Sequence[str]) -> list[str]:
    """The lines that were named, but for those that were replaced in the collection."""
    return sorted(text for text in said if re.match(r"line \d+: (?!replaced by)", text))


@pytest.mark.usefixtures("small_multivectors")
def test_colbert_rows_beyond_the_limit_are_rejected_or_pooled(embedder: Embedder, tmp_path: Path) -> None:
    """As `bulk` does with `--colbert-pooling`."""
    refused = embedded(embedder, tmp_path / "a", raw([{"text": LONG}, {"text": "short"}]))
    assert (refused["status"], refused["rows"], refused["rejected"]) == (1, 1, 1)
    assert "line 1: colbert: must have at most 20 rows of 192" in refused["said"]
    pooled = embedded(embedder, tmp_path / "b", raw([{"text": LONG}]), "--colbert-pooling", "mean")
    assert (pooled["status"], pooled["rows"]) == (0, 1)
    assert len(rows_of(tmp_path / "b")[0]["colbert"]) == 20


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to write to")
def test_a_disk_that_is_full_is_said(embedder: Embedder, tmp_path: Path) -> None:
    """One line with the reason, status 2, and no file that looks whole."""
    out = tmp_path / "out"
    take_over = PartFolder._take_over

    def full(folder: PartFolder) -> None:
        take_over(folder)
        (out / "part-00000.parquet.tmp").symlink_to("/dev/full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartFolder, "_take_over", full)
        summary = embedded(embedder, out, raw(MANY))
    reason = "--out cannot be written (No space left on device), and the part that was open is lost"
    assert summary["status"] == 2
    assert summary["error"] == f"{reason}; once it can be written, the same command begins again"
    assert (summary["rows"], summary["parts"]) == (0, 0)
    assert not list(out.glob("*.parquet"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to write to")
def test_a_disk_that_fills_up_keeps_whole_parts(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The summary counts their rows alone, and says after which line the same command goes on, as it does."""
    monkeypatch.setattr("service.bulk.vector_files.embed_run.BATCH_MAX_TEXTS", 4)
    out = tmp_path / "out"
    out.mkdir()
    (out / "part-00001.parquet.tmp").symlink_to("/dev/full")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda _path: None)
        full = embedded(embedder, out, raw(MANY), *SMALL)
    kept = pq.read_metadata(out / "part-00000.parquet").num_rows
    assert (full["status"], full["rows"], full["parts"]) == (2, kept, 1)
    assert full["error"].endswith(f"the same command goes on after line {kept} of the input")
    rest = embedded(embedder, out, raw(MANY), *SMALL)
    assert (rest["status"], rest["rows"], rest["skipped"]) == (0, len(MANY), kept)
    assert f"going on after line {kept} of the input" in rest["said"]


def test_a_disk_that_fills_up_within_a_part_is_said(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is that of the write that failed, and not that of an attempt to finish the file."""
    monkeypatch.setattr("service.bulk.vector_files.parts.ROW_GROUP_MAX_BYTES", 10_000)
    out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        summary = embedded(embedder, out, raw([*MANY] * 10))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert summary["status"] == 2
    assert summary["error"].startswith("--out cannot be written (File too large), and the part that was open is lost")
    assert not list(out.glob("*.parquet*"))


def test_a_run_that_fails_at_its_end_is_not_complete(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault after the last line was read leaves a folder with which the same command goes on, and no row is lost."""
    monkeypatch.setattr("service.bulk.vector_files.embed_run.BATCH_MAX_TEXTS", len(MANY) - 1)
    added, add = [], EmbedRun._add

    def failing(run: EmbedRun, *arguments: Any) -> None:
        added.append(1)
        if len(added) == 2:
            raise RuntimeError("a fault")
        add(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(EmbedRun, "_add", failing)
        failed = embedded(embedder, tmp_path / "out", raw(MANY))
    assert (failed["status"], failed["error"], len(added)) == (2, "internal error (RuntimeError)", 2)
    rest = embedded(embedder, tmp_path / "out", raw(MANY))
    assert (rest["status"], rest["rows"]) == (0, len(MANY))


@pytest.mark.parametrize(("lines", "status"), [([], 0), ([{"txt": "no text"}], 1)])
def test_an_input_without_documents_is_said(
    embedder: Embedder, store: EdgeStore, tmp_path: Path, lines: Any, status: int
) -> None:
    """By `embed` and by the load of its folder, which is complete; another input may take the folder over."""
    out = tmp_path / "out"
    summary = embedded(embedder, out, raw(lines))
    assert (summary["status"], summary["rows"], summary["parts"]) == (status, 0, 1)
    load = VectorLoad(store, "--collection", "a", str(out))
    assert (load.report.status, load.report.lines) == (0, 0)
    assert f"{out}: no rows; embed has found no valid document in its input" in load.said
    assert embedded(embedder, out, raw(MANY), *SMALL)["rows"] == len(MANY)


def test_a_summary_without_rows_is_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedder: Embedder
) -> None:
    """It says so rather than count to 0."""
    monkeypatch.setenv("MODEL_ID", "mini")
    (tmp_path / "a.jsonl").write_bytes(b"")
    core = Operations(Settings.from_environment(ENVIRONMENT), embedder)
    monkeypatch.setattr(core, "close", lambda: None)
    ended = invoke("embed", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out"), build=lambda _settings: core)
    assert ended.status == 0
    assert "out: no rows, as the input has no valid document, in 1 part, 0 rejected, 0 tokens in " in ended.out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--chunk-tokens", "0"), "--chunk-tokens must be at least 32, got 0"),
        (("--chunk-tokens", "-1"), "--chunk-tokens must be at least 32, got -1"),
        (("--chunk-tokens", "9000"), "--chunk-tokens must be at most 512 tokens, the limit of the model, got 9000"),
        (("--chunk-tokens", "64", "--chunk-overlap", "33"), "at most half of --chunk-tokens (32)"),
    ],
)
def test_chunks_out_of_their_limits_are_refused(
    embedder: Embedder, store: EdgeStore, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    """By `embed`, `bulk` and `plan`, with the option and its limit."""
    with pytest.raises(Failure, match=re.escape(reason)):
        embedded(embedder, tmp_path / "out", raw(MANY), *options)
    core = Operations(Settings.from_environment(ENVIRONMENT), embedder, store)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    out = StringIO()
    with redirect_stdout(out):
        assert load(core, bulk_options("--collection", "a", *options), raw(MANY)) == 2
    assert reason in out.getvalue()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL_ID", "mini")
        ended = invoke("plan", str(tmp_path / "a.jsonl"), *options)
    assert (ended.status, reason in ended.err) == (2, True), ended.err


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    """`kill -9` at any time leaves whole parts, after which the same command goes on."""
    lines = tmp_path / "lines.jsonl"
    many = "".join(json.dumps({"text": f"text number {n} " + "word " * 40, "id": n}) + "\n" for n in range(3000))
    lines.write_text(many, encoding="utf-8")
    out = tmp_path / "out"
    arguments = [*PROGRAM, "embed", str(lines), "--out", str(out), "--part-mb", "0.2", "--vectors", "dense", "--json"]
    environment = {**ENVIRONMENT, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for parts in (2, 5):
        with subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + PATIENCE
            while len(list(out.glob("*.parquet"))) < parts and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        whole = [pq.read_metadata(path).num_rows for path in sorted(out.glob("*.parquet"))]
        assert parts <= len(whole)
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=4 * PATIENCE, check=True
    )
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["skipped"]) == (3000, sum(whole))
    assert [row["id_integer"] for row in rows_of(out)] == list(range(3000))


def test_two_runs_do_not_write_into_one_folder(embedder: Embedder, tmp_path: Path) -> None:
    """The second says so, and the first goes on."""
    out = tmp_path / "out"

    def lines() -> Iterator[Line | BadLine]:
        yield from raw(MANY[:1])
        with pytest.raises(Exception, match="another process writes into it"):
            embedded(embedder, out, raw(MANY))

    assert embedded(embedder, out, lines())["status"] == 0


def test_row_groups_are_bounded(embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader needs the memory of a few rows, however large the parts are."""
    assert ROW_GROUP_MAX_BYTES <= 16_000_000
    monkeypatch.setattr("service.bulk.vector_files.parts.ROW_GROUP_MAX_BYTES", 10_000)
    embedded(embedder, tmp_path / "out", raw(MANY), "--vectors", "dense")
    metadata = pq.read_metadata(tmp_path / "out" / "part-00000.parquet")
    assert metadata.num_row_groups > 3
    assert all(metadata.row_group(n).total_byte_size < 20_000 for n in range(metadata.num_row_groups))
