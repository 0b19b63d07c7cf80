"""Vectors in files: `embed` writes them, and `bulk --vectors-in` stores the points that `bulk` would have stored."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.bulk.line import BadLine, InputError, Line, WrongFileError
from service.bulk.report import LoadReport
from service.bulk.vector_files import vector_reading
from service.bulk.vector_files.parts import ROW_GROUP_MAX_BYTES, PartFolder
from service.operations.finish import Finish
from service.settings import Settings
from service.transports.cli.finish import finished
from tests.command_line import PROGRAM, invoke
from tests.service.client import ENVIRONMENT, PATIENCE
from tests.service.vector_files import VectorLoad, embedded, loaded_texts, points, raw, rewritten, told_by_texts

ROOT = Path(__file__).parents[2]
DENSE_SIZE = 192
FLOAT16_ERROR = 1e-3
"""Maximum error of a component of a unit vector that was rounded to float16 and normalised."""

MEMORY_GROWTH_MAX_BYTES = 80_000_000
"""Maximum growth of memory in the second half of a run: that of allocators and threads, and less than its vectors."""

LINES: Sequence[dict[str, Any]] = [
    {"text": "rsync copies the changed parts of files", "id": 7, "payload": {"lang": "en", "deep": {"n": [1, None]}}},
    {"text": "sqlite keeps a database in one file", "id": "seven"},
    {
        "text": "0f2f4a3e is the start of a UUID",
        "id": "0f2f4a3e-5a70-4c5e-9a53-1b7f7b8f2c11",
        "payload": {"note": None},
    },
    {"text": "a text without an id", "payload": {"größe": "ß", "big": 2**62}},
    {"text": "", "id": 2**64 - 1},
]
LONG = " ".join(f"Sentence number {n} speaks of topic {n % 7} and of nothing else." for n in range(30))
DOCUMENTS: Sequence[dict[str, Any]] = [
    {"text": LONG, "id": "book", "payload": {"lang": "en"}},
    {"text": "A short one.", "id": 5},
    {"text": LONG[::-1].strip(), "payload": {"n": 1}},
]


@pytest.fixture
def out(embedder: Embedder, tmp_path: Path) -> Path:
    """A folder with the vectors of three texts."""
    lines = [{"text": f"text number {n}", "id": n, "payload": {"n": n}} for n in range(3)]
    assert embedded(embedder, tmp_path / "out", raw(lines))["status"] == 0
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("lines", "chunks"),
    [(LINES, ()), (DOCUMENTS, ("--chunk-tokens", "64", "--chunk-overlap", "8"))],
    ids=["texts", "chunks"],
)
@pytest.mark.parametrize("colbert", ["float16", "float32"])
def test_the_points_are_those_of_bulk(
    embedder: Embedder, store: EdgeStore, tmp_path: Path, *, lines: Any, chunks: tuple[str, ...], colbert: str
) -> None:
    """Ids, payloads and all vectors are the same bit for bit, whatever type the collection has for ColBERT rows."""
    config = {"QDRANT_COLLECTION_CONFIG": json.dumps({"colbert": {"datatype": colbert}})}
    bulk = loaded_texts(embedder, store, lines, "--collection", "a", "--alias", "live", *chunks, **config)
    wanted = points(store, "a")
    summary = embedded(embedder, tmp_path / "out", raw(lines), *chunks)
    assert (summary["status"], summary["rows"]) == (0, bulk.stored)
    load = VectorLoad(store, "--collection", "b", "--alias", "live", str(tmp_path / "out"), **config)
    assert (load.report.status, load.report.stored, load.report.alias) == (0, bulk.stored, True), load.said
    assert points(store, "b") == wanted
    assert store.describe("b").model == store.describe("a").model
    assert store.description("b") == store.description("a")


def test_float16_keeps_the_vectors_within_its_rounding(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """Dense and ColBERT numbers take two bytes; sparse weights stay exact."""
    loaded_texts(embedder, store, LINES[:2], "--collection", "a", "--alias", "live")
    embedded(embedder, tmp_path / "out", raw(LINES[:2]), "--dtype", "float16")
    schema = pq.read_schema(tmp_path / "out" / "part-00000.parquet")
    assert str(schema.field("dense").type).startswith("fixed_size_list<element: halffloat")
    assert schema.field("sparse_values").type == pa.list_(pa.float32())
    assert VectorLoad(store, "--collection", "b", "--alias", "live", str(tmp_path / "out")).report.status == 0
    stored, wanted = points(store, "b"), points(store, "a")
    for key, (identity, payload, dense, sparse, colbert) in wanted.items():
        assert stored[key][:2] + stored[key][3:4] == (identity, payload, sparse)
        for own, other in ((stored[key][2], dense), (stored[key][4], colbert)):
            error = np.abs(np.frombuffer(own, np.float32) - np.frombuffer(other, np.float32)).max()
            assert error < FLOAT16_ERROR


def test_a_file_replaces_the_chunks_of_a_document(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """A document that was embedded by `bulk` is replaced as a whole by its shorter version from a file, and back."""
    chunks = ("--chunk-tokens", "64")
    loaded_texts(embedder, store, DOCUMENTS, "--collection", "a", *chunks)
    before = store.count("a")
    shorter = [{**DOCUMENTS[0], "text": LONG[:200]}]
    embedded(embedder, tmp_path / "out", raw(shorter), *chunks)
    report = VectorLoad(store, "--collection", "a", str(tmp_path / "out")).report
    assert (report.status, report.stored) == (0, 1)
    whole = loaded_texts(embedder, store, DOCUMENTS[:1], "--collection", "b", *chunks).stored
    assert store.count("a") == before - whole + 1
    loaded_texts(embedder, store, DOCUMENTS[:1], "--collection", "a", *chunks)
    assert store.count("a") == before


def test_the_account_is_that_of_bulk(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """Replaced and repeated rows, and those that differ from kept points, are counted and named by file and row."""
    lines = [{"text": "a", "id": 1}, {"text": "b", "id": 2}, {"text": "c", "id": 1}, {"text": "b", "id": 2}]
    bulk = loaded_texts(embedder, store, lines, "--collection", "a")
    assert embedded(embedder, tmp_path / "out", raw(lines))["lines"] == 4
    load = VectorLoad(store, "--collection", "b", str(tmp_path / "out"))
    fields = ("lines", "stored", "rejected", "repeated", "replaced", "points", "status")
    assert [getattr(load.report, name) for name in fields] == [getattr(bulk, name) for name in fields]
    assert (load.report.repeated, load.report.replaced, load.report.status, load.report.tokens) == (1, 1, 1, 0)
    reason = "replaced by row 3 of part-00000.parquet, which has the same id, and another text or payload"
    assert f"part-00000.parquet, row 1: {reason}" in load.said
    kept = VectorLoad(store, "--collection", "b", "--insert-only", str(tmp_path / "out"))
    assert (kept.report.skipped, kept.report.differing, kept.report.status) == (4, 1, 1)
    allowed = VectorLoad(store, "--collection", "b", "--insert-only", "--allow-differing", str(tmp_path / "out"))
    assert (allowed.report.differing, allowed.report.status) == (
        1,
        0,
    )  # the row that another row of its id differs from
    assert VectorLoad(store, "--collection", "b", "--replace", str(tmp_path / "out")).report.status == 0


def test_documents_are_the_lines_of_a_file_of_chunks(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """One with other chunks replaces it; rejected chunks belong to their document, even if none is valid."""
    embedded(embedder, tmp_path / "a", raw(DOCUMENTS), "--chunk-tokens", "64")
    embedded(embedder, tmp_path / "b", raw(DOCUMENTS[:1]), "--chunk-tokens", "32")
    report = VectorLoad(store, "--collection", "a", str(tmp_path / "a"), str(tmp_path / "b")).report
    assert (report.lines, report.replaced, report.repeated) == (4, 1, 0)
    assert report.points == store.count("a")
    part = tmp_path / "a" / "part-00000.parquet"
    table = pq.read_table(part)
    dense = table.column("dense").to_pylist()
    short = table.column("id_integer").to_pylist().index(5)
    for row in (0, 1, short):
        dense[row] = [0.0] * DENSE_SIZE
    rewritten(part, dense=pa.array(dense, pa.list_(pa.float32(), DENSE_SIZE)))
    load = VectorLoad(store, "--collection", "c", str(tmp_path / "a"))
    assert (load.report.lines, load.report.rejected) == (3, 3)
    assert load.report.points == store.count("c") == table.num_rows - 3


@pytest.mark.usefixtures("signals")
def test_shards_divide_the_documents_of_vector_files(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """Each document and each rejection belongs to one shard, and the finish compares them as it does those of texts."""
    embedded(embedder, tmp_path / "a", raw(DOCUMENTS), "--chunk-tokens", "64")
    part = tmp_path / "a" / "part-00000.parquet"
    dense = pq.read_table(part).column("dense").to_pylist()
    dense[1] = [0.0] * DENSE_SIZE
    rewritten(part, dense=pa.array(dense, pa.list_(pa.float32(), DENSE_SIZE)))
    options = ("--collection", "a", "--alias", "live", "--allow-rejected", str(tmp_path / "a"))
    reports = [VectorLoad(store, *options, "--shard", f"{index}/2").report for index in (1, 2)]
    assert [(report.failure, report.read, report.alias) for report in reports] == [(None, 3, None)] * 2
    assert sum(report.lines for report in reports) == 3
    assert sum(report.rejected for report in reports) == 1
    assert sum(report.points for report in reports) == store.count("a") == len(dense) - 1
    assert store.aliases() == {}
    finish = Finish(Settings.from_environment(ENVIRONMENT), store)
    assert finished(finish, "a", "live", []).alias is True
    assert store.aliases() == {"live": "a"}


@pytest.mark.usefixtures("signals")
def test_a_dry_run_says_what_the_load_does(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """Without a model and a store: the same counts and status, the sizes of the vectors, and no rate or tokens."""
    lines = [*LINES, {"text": "replaced", "id": 7}, {"text": "x", "payload": {"text": "y"}}]
    embedded(embedder, tmp_path / "out", raw(lines))
    load = VectorLoad(store, "--collection", "a", str(tmp_path / "out"))
    ended = invoke("bulk", "--vectors-in", str(tmp_path / "out"), "--collection", "b", "--dry-run", "--json")
    forecast, report = json.loads(ended.out), load.report.summary("b")
    forecast["seconds"] = report["seconds"] = 0
    assert ended.status == load.report.status == 1
    assert report == {name: value for name, value in forecast.items() if name in report}
    assert (forecast["dry_run"], forecast["tokens"]) == (True, 0)
    assert "tokens_per_s" not in forecast
    assert set(forecast["kinds_bytes"]) == {"dense", "sparse", "colbert"}
    assert store.collection_of("b") is None


def test_points_that_exist_are_skipped(embedder: Embedder, store: EdgeStore, out: Path) -> None:
    """`--insert-only` keeps what is stored, as it does for texts."""
    del embedder
    VectorLoad(store, "--collection", "a", str(out))
    report = VectorLoad(store, "--collection", "a", "--insert-only", str(out)).report
    assert (report.stored, report.skipped, report.status) == (3, 3, 0)


def _changed(path: Path, column: str, change: Any) -> None:
    """Change the second row of a column of lists."""
    values = pq.read_table(path).column(column).to_pylist()
    values[1] = change(values[1])
    rewritten(path, **{column: pa.array(values, pa.list_(pa.list_(pa.float32())) if column == "colbert" else None)})


@pytest.mark.parametrize(
    ("column", "change", "reason"),
    [
        ("dense", lambda row: [float("nan"), *row[1:]], "dense must have finite numbers, got 1 that are not"),
        ("dense", lambda row: [None, *row[1:]], "dense must have finite numbers, got 1 that are not"),
        ("dense", lambda row: [1e300, *row[1:]], "dense must have finite numbers, got 1 that are not"),
        ("dense", lambda row: row[1:], f"dense must have {DENSE_SIZE} numbers, got {DENSE_SIZE - 1}"),
        ("dense", lambda row: [2 * number for number in row], "dense must have the norm 1 (within 0.01), got 2"),
        ("dense", lambda _row: None, "dense is required"),
        ("sparse_indices", lambda row: row[::-1], "sparse_indices must ascend, and none may be there twice"),
        ("sparse_indices", lambda row: [row[0], *row[:-1]], "sparse_indices must ascend, and none may be there twice"),
        ("sparse_indices", lambda row: [-1, *row[1:]], "sparse_indices must be token ids, integers from 0 to"),
        ("sparse_indices", lambda row: row[1:], "sparse_indices and sparse_values must have as many numbers, got "),
        ("sparse_values", lambda row: [float("inf"), *row[1:]], "sparse_values must have finite numbers, got 1"),
        ("colbert", lambda _row: [], "colbert must have at least 1 row, got 0"),
        ("colbert", lambda row: [row[0], row[1][1:]], f"colbert must have rows of {DENSE_SIZE} numbers"),
        ("colbert", lambda row: [row[0], None], f"colbert must have rows of {DENSE_SIZE} numbers"),
        ("colbert", lambda row: [row[0], [0.0] * len(row[0])], "a row of colbert must have the norm 1 (within 0.01)"),
        ("text", lambda _row: None, "text is required"),
        ("payload", lambda _row: "{", "payload is not valid JSON"),
        ("payload", lambda _row: "[1]", "payload must be an object, got a list"),
        ("payload", lambda _row: '{"n": NaN}', "payload.n: must be a finite number, got nan"),
    ],
)
def test_a_row_that_is_not_sound_costs_no_other(
    store: EdgeStore, out: Path, column: str, change: Any, reason: str
) -> None:
    """It is named by its file and number with the reason, and the rows around it are stored."""
    _changed(out / "part-00000.parquet", column, change)
    load = VectorLoad(store, "--collection", "a", str(out))
    assert (load.report.stored, load.report.rejected, load.report.status) == (2, 1, 1), load.said
    (rejection,) = load.rejected
    assert rejection.startswith(f"part-00000.parquet, row 2: {reason}")


def test_an_invalid_id_of_a_row_is_rejected(store: EdgeStore, out: Path) -> None:
    """As it would be in a line, with its row."""
    ids = pa.array(["", None, None])
    rewritten(out / "part-00000.parquet", id=ids, id_integer=pa.array([None, 1, 2], pa.uint64()))
    load = VectorLoad(store, "--collection", "a", str(out))
    assert load.rejected == ["part-00000.parquet, row 1: id: must have at least 1 character, got 0"]
    assert load.report.stored == 2


@pytest.mark.parametrize(
    ("columns", "reasons"),
    [
        ({"chunk": [0, 0, 2]}, ["row 2: chunk must be greater than that of the row before (0), got 0"]),
        ({"start": [0, 5, 20]}, ["row 2: text must be characters 5 to 20 of the document"]),
        ({"end": [10, 99, 30]}, ["row 2: start and end must be a span of the document (0 to 30), got 10 to 99"]),
        ({"document": [None, None, None]}, [f"row {n}: document is required: the first chunk" for n in (1, 2, 3)]),
        ({"chunk": [0, None, 2]}, ["row 2: chunk is required", "row 3: its document is rejected (row 2)"]),
    ],
)
def test_a_chunk_that_is_not_sound_costs_no_other(
    store: EdgeStore, tmp_path: Path, columns: dict[str, Any], reasons: list[str]
) -> None:
    """Chunks must be spans of their document, in order, and the first has the text of the whole."""
    document = "abcdefghijklmnopqrstuvwxyzABCD"
    path = tmp_path / "a.parquet"
    table = {
        "id": ["d"] * 3,
        "text": [document[:10], document[10:20], document[20:]],
        "document": [document, None, None],
        "chunk": [0, 1, 2],
        "start": [0, 10, 20],
        "end": [10, 20, 30],
        "dense": np.eye(3, DENSE_SIZE).tolist(),
        **columns,
    }
    if columns.get("document"):
        table["document"] = pa.array(columns["document"], pa.string())
    pq.write_table(pa.table(table), path)
    load = VectorLoad(store, "--collection", "a", str(path))
    assert len(load.rejected) == len(reasons)
    for rejection, reason in zip(load.rejected, reasons, strict=True):
        assert rejection.startswith(f"a.parquet, {reason}")
    assert load.report.stored == 3 - len(reasons)


def test_a_document_beyond_the_limit_is_rejected_as_a_whole(
    store: EdgeStore, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row of it is named, and the documents around it are stored."""
    monkeypatch.setattr(vector_reading, "DOCUMENT_MAX_BYTES", 100_000)
    embedded(embedder, tmp_path / "out", raw([DOCUMENTS[1], DOCUMENTS[0], DOCUMENTS[1]]), "--chunk-tokens", "64")
    rows = pq.read_metadata(tmp_path / "out" / "part-00000.parquet").num_rows
    load = VectorLoad(store, "--collection", "a", str(tmp_path / "out"))
    assert (load.report.stored, load.report.rejected) == (2, rows - 2)
    assert "the vectors of a document must have at most 100000 bytes, got more" in load.rejected[0]


def test_files_of_other_programs_are_loaded_by_documented_columns(store: EdgeStore, tmp_path: Path) -> None:
    """Lists of any float, ids of either type, payload columns or the rest; no model is recorded."""
    path = tmp_path / "a.parquet"
    dense = np.eye(2, 8)
    table = pa.table(
        {
            "key": [3, 4],
            "body": ["a", "b"],
            "lang": ["en", None],
            "dense": dense.tolist(),
            "sparse_indices": pa.array([[1, 5], []], pa.list_(pa.int64())),
            "sparse_values": pa.array([[0.5, 0.25], []], pa.list_(pa.float64())),
        }
    )
    pq.write_table(table, path)
    load = VectorLoad(store, "--collection", "a", "--id-field", "key", "--text-field", "body", str(path))
    assert (load.report.status, load.report.stored) == (0, 2), load.said
    stored = points(store, "a")
    assert stored["//a"][:2] == (3, {"text": "a", "lang": "en"})
    assert stored["//a"][3] == ([1, 5], [0.5, 0.25])
    assert stored["//b"][1] == {"text": "b"}
    assert store.describe("a").model is None
    assert set(store.description("a").vectors) == {"dense", "sparse"}


def test_vectors_of_another_model_are_refused(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """By name and by revision, before a point is stored; and files that name no model need `--vectors-model`."""
    loaded_texts(embedder, store, LINES[:1], "--collection", "a")
    strange = tmp_path / "strange"
    embedded(embedder, strange, raw(LINES[:1]))
    part = strange / "part-00000.parquet"
    table = pq.read_table(part)
    description = json.loads(pq.read_metadata(part).metadata[b"bge_m3_qdrant_vectors"])

    def said(**changes: Any) -> LoadReport:
        metadata = {b"bge_m3_qdrant_vectors": json.dumps({**description, **changes})}
        pq.write_table(table.replace_schema_metadata(metadata), part)
        return VectorLoad(store, "--collection", "a", str(strange)).report

    revision, name = said(revision="0123456789abcdef"), said(model="other/model")
    assert "'a' was made for revision " in str(revision.failure)
    assert "and the files have vectors of revision 0123456789ab" in str(revision.failure)
    assert "was made for the model 'mini', and the files have vectors of 'other/model'" in str(name.failure)
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "plain.parquet")
    plain = VectorLoad(store, "--collection", "a", str(tmp_path / "plain.parquet")).report
    assert "the files do not say whose vectors they have; name it with --vectors-model" in str(plain.failure)
    assert [(report.stored, report.status) for report in (revision, name, plain)] == [(0, 2)] * 3
    assert store.count("a") == 1
    given = VectorLoad(store, "--collection", "a", "--vectors-model", "mini", str(tmp_path / "plain.parquet")).report
    assert (given.status, given.stored) == (0, 1)
    vouched = {"QDRANT_COLLECTION_CONFIG": '{"verifyModel": false}'}
    assert VectorLoad(store, "--collection", "a", str(strange), **vouched).report.status == 0


def _wrong(store: EdgeStore, *files: Path) -> str:
    with pytest.raises(InputError) as raised:
        VectorLoad(store, "--collection", "a", *map(str, files))
    assert store.collection_of("a") is None
    return str(raised.value)


def test_a_wrong_file_ends_the_load_before_it_begins(
    store: EdgeStore, out: Path, embedder: Embedder, tmp_path: Path
) -> None:
    """One message names the file and what it lacks, and no collection is made."""
    part = out / "part-00000.parquet"
    table = pq.read_table(part)
    for change, reason in (
        (table.drop_columns(["text"]), "there is no column 'text'"),
        (table.select(["text"]), "it has no column dense, sparse_indices or colbert"),
        (pa.table({"text": ["a"], "dense": ["a"]}), "the column dense must have lists of numbers, got string"),
    ):
        pq.write_table(change.replace_schema_metadata(None), tmp_path / "a.parquet")
        assert f"a.parquet: {reason}" in _wrong(store, tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(part.read_bytes()[:-50])
    assert "a.parquet: it is not valid Parquet, or damaged" in _wrong(store, tmp_path / "a.parquet")
    description = {b"bge_m3_qdrant_vectors": b'{"format": 2}'}
    pq.write_table(table.replace_schema_metadata(description), tmp_path / "a.parquet")
    assert "a.parquet: it has version 2 of the format, and this program reads 1" in _wrong(
        store, tmp_path / "a.parquet"
    )
    embedded(embedder, tmp_path / "dense", raw(LINES[:1]), "--vectors", "dense")
    assert "its vectors differ from those of" in _wrong(store, part, tmp_path / "dense" / "part-00000.parquet")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), change=st.integers(1, 255))
def test_a_damaged_file_is_an_error_of_the_input(store: EdgeStore, out: Path, place: float, change: int) -> None:
    """A byte that differs leads to a load, rejections or one message, never to a crash of the program."""
    content = bytearray((out / "part-00000.parquet").read_bytes())
    content[min(int(place * len(content)), len(content) - 1)] ^= change
    damaged = out.parent / "damaged.parquet"
    damaged.write_bytes(content)
    try:
        report = VectorLoad(store, "--collection", "damaged", str(damaged)).report
    except InputError:
        return
    assert "internal" not in str(report.failure)


def _parts(out: Path) -> list[Path]:
    return sorted(out.iterdir())


def _rows(out: Path) -> list[dict[str, Any]]:
    return [row for path in _parts(out) for row in pq.read_table(path).to_pylist()]


def test_a_load_of_texts_refuses_files_that_have_vectors(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --vectors-in the vectors would become payload, and integers as ids would be lost."""
    monkeypatch.setenv("MODEL_ID", "/no/such/model")
    monkeypatch.setenv("QDRANT_PATH", str(tmp_path / "edge"))
    ended = invoke("bulk", "--collection", "a", str(out))
    assert ended.status == 2
    assert "part-00000.parquet: `embed` wrote it, and it has vectors: load it with bulk --vectors-in" in ended.err


MANY: Sequence[dict[str, Any]] = [{"text": f"text number {n}", "id": n} for n in range(40)]
SMALL = ("--vectors", "dense", "--part-mb", "0.005", "--chunk-tokens", "64")


@pytest.mark.usefixtures("signals")
def test_vectors_are_not_looked_for_in_other_files(tmp_path: Path) -> None:
    """The message says which files are needed, and not that there is none."""
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "a"}\n', encoding="utf-8")
    ended = invoke("bulk", "--vectors-in", "--collection", "notes", str(path))
    assert (ended.status, ended.out) == (2, "")
    assert "--vectors-in needs the Parquet files that `embed` writes, and no FILE is one" in ended.err


def _broken_off(after: int) -> Iterator[Line | BadLine]:
    """Lines that end with a fault."""
    for number, line in enumerate(raw(MANY)):
        if number == after:
            raise WrongFileError("lines", "it breaks off")
        yield line


def test_a_run_that_broke_off_goes_on(
    embedder: Embedder, store: EdgeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command keeps the whole parts, and embeds only what follows them; the rows are those of one run."""
    monkeypatch.setattr("service.bulk.vector_files.embed_run.BATCH_MAX_TEXTS", 4)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert embedded(embedder, whole, raw(MANY), *SMALL)["status"] == 0
    broken = embedded(embedder, out, _broken_off(after=21), *SMALL)
    assert (broken["status"], broken["error"]) == (2, "lines: it breaks off")
    before = {path: path.read_bytes() for path in _parts(out)}
    assert 1 < len(before) < len(_parts(whole))
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
    assert all(path.suffix == ".parquet" for path in _parts(out))
    assert [row["id_integer"] for row in _rows(out)] == [row["id_integer"] for row in _rows(whole)]
    for own, other in zip(_rows(out), _rows(whole), strict=True):
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
    before = {path: path.read_bytes() for path in _parts(tmp_path / "out")}
    summary = embedded(embedder, tmp_path / "out", raw(lines), *options)
    assert summary["status"] == 2
    assert summary["error"].startswith(reason)
    assert {path: path.read_bytes() for path in _parts(tmp_path / "out")} == before


def test_changed_options_are_refused(embedder: Embedder, tmp_path: Path, out: Path) -> None:
    """The message names the option, and what the folder has."""
    del tmp_path
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


def test_what_only_a_collection_can_tell_is_rejected_when_it_is_loaded(
    embedder: Embedder, store: EdgeStore, tmp_path: Path
) -> None:
    """A payload key where the collection has the text: `embed` knows no collection, and both loads say the same."""
    lines = [{"text": "a", "payload": {"text": "b"}}, {"text": "c", "payload": {"text": "c"}}]
    bulk, said = told_by_texts(embedder, store, lines, "--collection", "a")
    assert embedded(embedder, tmp_path / "out", raw(lines))["rows"] == 2
    load = VectorLoad(store, "--collection", "b", str(tmp_path / "out"))
    assert (bulk.stored, bulk.rejected) == (load.report.stored, load.report.rejected) == (1, 1)
    (reason,) = (text for text in said if text.startswith("line 1: "))
    assert load.rejected == [reason.replace("line 1", "part-00000.parquet, row 1")]


@pytest.mark.usefixtures("small_multivectors")
def test_colbert_rows_beyond_the_limit_are_rejected_or_pooled(embedder: Embedder, tmp_path: Path) -> None:
    """As `bulk` does with `--colbert-pooling`."""
    refused = embedded(embedder, tmp_path / "a", raw([{"text": LONG}, {"text": "short"}]))
    assert (refused["status"], refused["rows"], refused["rejected"]) == (1, 1, 1)
    assert "line 1: colbert: must have at most 20 rows of 192" in refused["said"]
    pooled = embedded(embedder, tmp_path / "b", raw([{"text": LONG}]), "--colbert-pooling", "mean")
    assert (pooled["status"], pooled["rows"]) == (0, 1)
    assert len(_rows(tmp_path / "b")[0]["colbert"]) == 20


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
    assert (summary["status"], summary["error"]) == (2, "--out cannot be written (No space left on device)")
    assert not list(out.glob("*.parquet"))


PROBE = """
import sys
from service.transports.cli.main import main
try:
    main()
except SystemExit as end:
    loaded = {"torch", "transformers", "tokenizers"} & set(sys.modules)
    print(end.code, sorted(loaded), file=sys.stderr)
"""


def test_a_load_needs_no_model(embedder: Embedder, out: Path, tmp_path: Path) -> None:
    """In a process of its own: no torch is imported, no checkpoint is needed, and the points are there."""
    del embedder
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "bulk", "--vectors-in", str(out), "--collection", "notes", "--json"],
        cwd=ROOT,
        env={
            "MODEL_ID": "/no/such/checkpoint",
            "QDRANT_PATH": str(tmp_path / "edge"),
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python" / "src")]),
        },
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr
    assert json.loads(done.stdout)["stored"] == 3
    store = EdgeStore(tmp_path / "edge")
    assert store.count("notes") == 3
    store.close()


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
    assert [row["id_integer"] for row in _rows(out)] == list(range(3000))


def _anonymous_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    sizes = re.findall(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(sizes[0]) * 1024 if sizes else 0  # none of a process that has ended


def _growth(arguments: Sequence[str], environment: dict[str, str]) -> int:
    """By how much the memory of a command has a higher peak in the second half of its time, in bytes."""
    sizes: list[int] = []
    with subprocess.Popen(
        [*PROGRAM, *arguments], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            sizes.append(_anonymous_bytes(process.pid))
            time.sleep(0.02)
    assert process.returncode == 0
    middle = len(sizes) // 2
    return max(sizes[middle:]) - max(sizes[:middle])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from /proc")
def test_the_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Of 20 000 rows with 280 MB of vectors the second half takes hardly more memory than the first, in both."""
    lines, out = tmp_path / "lines.jsonl", tmp_path / "out"
    texts = (f"text number {n} of many, and a few words more that say nothing" for n in range(20_000))
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    environment = {**ENVIRONMENT, "QDRANT_PATH": str(tmp_path / "edge"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python" / "src")])
    for arguments in (
        ["embed", str(lines), "--out", str(out), "--part-mb", "20"],
        ["bulk", "--vectors-in", str(out), "--collection", "notes"],
    ):
        assert _growth(arguments, environment) < MEMORY_GROWTH_MAX_BYTES, arguments[0]


def test_two_runs_do_not_write_into_one_folder(embedder: Embedder, tmp_path: Path) -> None:
    """The second says so, and the first goes on."""
    out = tmp_path / "out"

    def lines() -> Iterator[Line | BadLine]:
        yield from raw(MANY[:1])
        with pytest.raises(Exception, match="another process writes into it"):
            embedded(embedder, out, raw(MANY))

    assert embedded(embedder, out, lines())["status"] == 0


def test_options_without_effect_are_refused() -> None:
    """`bulk --vectors-in` names the option, and the command that takes it."""
    ended = invoke("bulk", "--vectors-in", "a.parquet", "--collection", "notes", "--chunk-tokens", "64")
    assert (ended.status, "--chunk-tokens has no effect with --vectors-in; give it to embed" in ended.err) == (2, True)
    ended = invoke("bulk", "a.jsonl", "--collection", "notes", "--vectors-model", "mini")
    assert (ended.status, "--vectors-model needs --vectors-in" in ended.err) == (2, True)


@pytest.mark.parametrize("command", [("embed", "a.jsonl", "--out"), ("bulk", "--collection", "notes", "--vectors-in")])
def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    """The message says what to install, before a model is loaded."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QDRANT_PATH", str(tmp_path / "edge"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    for module in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, module, None)
    target = "out" if command[0] == "embed" else "b.parquet"
    ended = invoke(*command, target, build=lambda _settings: pytest.fail("the model is loaded"))
    assert ended.status == 2
    assert "needs pyarrow, which is not installed: pip install '.[files]'" in ended.err


def test_row_groups_are_bounded(embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader needs the memory of a few rows, however large the parts are."""
    assert ROW_GROUP_MAX_BYTES <= 16_000_000
    monkeypatch.setattr("service.bulk.vector_files.parts.ROW_GROUP_MAX_BYTES", 10_000)
    embedded(embedder, tmp_path / "out", raw(MANY), "--vectors", "dense")
    metadata = pq.read_metadata(tmp_path / "out" / "part-00000.parquet")
    assert metadata.num_row_groups > 3
    assert all(metadata.row_group(n).total_byte_size < 20_000 for n in range(metadata.num_row_groups))
