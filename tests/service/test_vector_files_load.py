"""`bulk --vectors-in` stores the points that `bulk` would have stored, without a model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.bulk.line import InputError
from service.bulk.report import LoadReport
from service.bulk.vector_files.description import Part
from service.operations.finish import Finish
from service.settings import Settings
from service.transports.cli.finish import finished
from tests.command_line import PROGRAM, invoke
from tests.service.client import ENVIRONMENT, PATIENCE
from tests.service.vector_files import (
    DENSE_SIZE,
    DOCUMENTS,
    LINES,
    LONG,
    VectorLoad,
    embedded,
    loaded_texts,
    points,
    raw,
    rewritten,
    three_texts,
    told_by_texts,
)

ROOT = Path(__file__).parents[2]
FLOAT16_ERROR = 1e-3
"""Maximum error of a component of a unit vector that was rounded to float16 and normalised."""

MEMORY_GROWTH_MAX_BYTES = 80_000_000
"""Maximum growth of memory in the second half of a run: that of allocators and threads, and less than its vectors."""


@pytest.fixture
def out(embedder: Embedder, tmp_path: Path) -> Path:
    """A folder with the vectors of three texts."""
    return three_texts(embedder, tmp_path / "out")


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_vectors_of_another_model_are_refused(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """By name and by revision, before a point is stored; and files that name no model need `--vectors-model`."""
    loaded_texts(embedder, store, LINES[:1], "--collection", "a")
    strange = tmp_path / "strange"
    embedded(embedder, strange, raw(LINES[:1]))
    part = strange / "part-00000.parquet"
    table = pq.read_table(part)
    own = Part.read(pq.read_metadata(part).metadata)
    assert own is not None

    def said(**changes: Any) -> LoadReport:
        metadata = replace(own, description=replace(own.description, **changes)).metadata()
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


def test_a_load_of_texts_refuses_files_that_have_vectors(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --vectors-in the vectors would become payload, and integers as ids would be lost."""
    monkeypatch.setenv("MODEL_ID", "/no/such/model")
    monkeypatch.setenv("QDRANT_PATH", str(tmp_path / "edge"))
    ended = invoke("bulk", "--collection", "a", str(out))
    assert ended.status == 2
    assert "part-00000.parquet: `embed` wrote it, and it has vectors: load it with bulk --vectors-in" in ended.err


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


PROBE = """
import sys
from service.transports.cli.main import main
try:
    main()
except SystemExit as end:
    loaded = {"torch", "transformers", "tokenizers"} & set(sys.modules)
    print(end.code, sorted(loaded), file=sys.stderr)
"""


@pytest.mark.slow
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


def test_options_without_effect_are_refused() -> None:
    """`bulk --vectors-in` names the option, and the command that takes it."""
    ended = invoke("bulk", "--vectors-in", "a.parquet", "--collection", "notes", "--chunk-tokens", "64")
    assert (ended.status, "--chunk-tokens has no effect with --vectors-in; give it to embed" in ended.err) == (2, True)
    ended = invoke("bulk", "a.jsonl", "--collection", "notes", "--vectors-model", "mini")
    assert (ended.status, "--vectors-model needs --vectors-in" in ended.err) == (2, True)


@pytest.mark.usefixtures("signals")
def test_vectors_are_not_looked_for_in_other_files(tmp_path: Path) -> None:
    """The message says which files are needed, and not that there is none."""
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "a"}\n', encoding="utf-8")
    ended = invoke("bulk", "--vectors-in", "--collection", "notes", str(path))
    assert (ended.status, ended.out) == (2, "")
    assert "--vectors-in needs the Parquet files that `embed` writes, and no FILE is one" in ended.err


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
