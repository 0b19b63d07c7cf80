"""The parts of a load of a data set of Ray, without a cluster: rows in, points and rejected rows out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.data.block import BlockAccessor

from embedder import KINDS, Embedder, InvalidRequest, Kind
from qdrant_sink import ModelIdentity, Refusal, Store, open_server, point_id
from service.bulk.field_mapping import FieldOptions
from service.bulk.line import NO_FILE
from service.bulk.line_index import IndexedLine, StoredLine
from service.operations import Chunking, EncodedPiece, Operations, VectorSource
from service.ray_data import QdrantDatasink, datasink
from service.ray_data.arguments import in_python
from service.ray_data.datasink import StoringFailedError
from service.ray_data.embed_actor import EmbedActor, EmbedOptions
from service.ray_data.ingest_actor import IngestActor
from service.ray_data.options import load_options
from service.ray_data.outcome import FailedRow, Outcome
from service.ray_data.stored_rows import StoredRows
from service.settings import Settings
from tests.service.client import ENVIRONMENT
from tests.sink.grpc_double import GrpcDouble

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "rain", "falls", "on", "stone")


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """Settings with a server of their own."""
    double = GrpcDouble(tmp_path)
    port = str(double.port)
    yield Settings.from_environment({**ENVIRONMENT, "QDRANT_URL": f"http://127.0.0.1:{port}", "QDRANT_GRPC_PORT": port})
    double.stop()


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    """The server."""
    opened = open_server(settings.qdrant_url or "", None, grpc_port=settings.qdrant_grpc_port)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def one_model(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let actors share the model of the session."""
    monkeypatch.setattr(Operations, "build", classmethod(lambda cls, settings: cls(settings, embedder)))
    monkeypatch.setattr(Embedder, "load", lambda _options: embedder)


@pytest.fixture
def source(embedder: Embedder) -> VectorSource:
    """What the vectors of the model are."""
    return VectorSource(KINDS, embedder.hidden_size, embedder.colbert_size, ModelIdentity("mini", embedder.revision))


@pytest.fixture(autouse=True)
def rows_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the account of a sink in this process, without an actor."""
    monkeypatch.setattr(datasink, "SharedRows", StoredRows)


def text(number: int, words: int = 12) -> str:
    """A text."""
    return " ".join(WORDS[(number * 7 + place) % len(WORDS)] for place in range(words)) + f" {number}"


def table(numbers: Sequence[int], words: int = 12) -> pa.Table:
    """Rows of a data set."""
    return pa.table(
        {
            "id": [f"row {number}" for number in numbers],
            "text": [text(number, words) for number in numbers],
            "payload": [{"number": number} for number in numbers],
        }
    )


def ingested(settings: Settings, rows: pa.Table, **options: Any) -> Outcome:
    """What became of rows that an actor embeds and stores."""
    actor = IngestActor(settings, load_options("notes", **options).request, FieldOptions())
    return Outcome.of_table(asyncio.run(actor(rows)))


def embedded(
    settings: Settings, rows: pa.Table, chunk: Chunking | None = None, kinds: Sequence[Kind] = KINDS
) -> pa.Table:
    """Rows with vectors."""
    return asyncio.run(EmbedActor(settings, EmbedOptions(kinds=tuple(kinds), chunk=chunk))(rows))


def written(sink: QdrantDatasink, *blocks: pa.Table, attempts: int = 1) -> None:
    """Write blocks as the driver and the tasks of Ray do, each block in a task of its own.

    Args:
        sink: the sink.
        blocks: the blocks.
        attempts: how often each task runs, whose last outcome counts.
    """
    sink.on_write_start(blocks[0].schema)
    try:
        for _ in range(attempts):
            returns = [sink.write([block], SimpleNamespace(task_idx=number)) for number, block in enumerate(blocks)]
    except StoringFailedError as error:
        sink.on_write_failed(error)
        raise
    sink.on_write_complete(SimpleNamespace(write_returns=returns))


def payloads(store: Store, collection: str = "notes") -> list[dict[str, Any]]:
    """The payloads of all points in the order of their numbers and chunks, without what differs between two loads."""
    points, _ = store.scroll(collection, {}, True, limit=1000)
    found = [
        {name: value for name, value in (point.payload or {}).items() if name not in ("doc_key", "doc_version")}
        for point in points.values()
    ]
    return sorted(found, key=lambda payload: (payload["number"], payload.get("chunk", 0)))


def test_invalid_rows_are_rejected_one_by_one(settings: Settings, store: Store) -> None:
    """Rows that cannot be stored come out with code, message and the row itself; all others are stored."""
    rows = pa.table({"id": [1, -5, 3, 4], "text": ["one", "two", None, "four"]})
    outcome = ingested(settings, rows)
    assert (outcome.stored, outcome.rejected, outcome.failure) == (2, 2, None)
    assert {row["code"] for row in outcome.rejects} == {"invalid_id", "invalid_request"}
    assert '{"text": "two", "id": -5, "payload": {}}' in {row["row"] for row in outcome.rejects}
    assert store.count("notes") == 2


def test_a_missing_column_ends_the_load(settings: Settings) -> None:
    """A data set without texts is a failure that names its columns, and none of its rows is rejected for it."""
    outcome = ingested(settings, pa.table({"id": [1, 2], "body": ["one", "two"]}))
    assert (outcome.stored, outcome.rejected) == (0, 0)
    assert "there is no column 'text'; its columns are 'id', 'body'" in str(outcome.failure)


def test_points_that_exist_are_not_embedded_again(settings: Settings) -> None:
    """A load that is repeated with insert_only counts what is there, and embeds the rest alone."""
    ingested(settings, table(range(5)))
    outcome = ingested(settings, table(range(8)), insert_only=True)
    assert (outcome.stored, outcome.skipped, outcome.rejected) == (8, 5, 0)
    assert outcome.tokens < ingested(settings, table(range(8))).tokens / 2


def test_the_last_row_of_a_point_wins(settings: Settings, store: Store) -> None:
    """Two rows of one id in a batch are stored in their order."""
    rows = pa.table({"id": ["a", "a"], "text": ["first", "second"], "number": [1, 2]})
    assert ingested(settings, rows).stored == 2
    assert [payload["number"] for payload in payloads(store)] == [2]


def test_an_outcome_survives_its_table() -> None:
    """The counts of several batches add up, and their stored and rejected rows are kept."""
    rows = [StoredLine(IndexedLine(NO_FILE, 0, has_id), b"key", b"content", 2, not has_id) for has_id in (True, False)]
    first = Outcome(rows=3, stored=3, skipped=1, tokens=20, stored_rows=rows)
    second = Outcome(rows=3, stored=2, failure="the store is gone", stored_rows=rows[:1])
    second.reject(FailedRow(b"{}", "invalid_id", "it is negative", 1))
    combined = Outcome.of_table(pa.concat_tables([first.table(), second.table()]))
    assert combined == Outcome(
        rows=6,
        stored=5,
        skipped=1,
        tokens=20,
        rejected=1,
        failure="the store is gone",
        rejects=second.rejects,
        stored_rows=[*rows, rows[0]],
    )


@pytest.mark.parametrize("attempts", [1, 2])
def test_rows_that_replace_others_keep_the_alias_where_it_is(
    attempts: int, settings: Settings, store: Store, source: VectorSource, tmp_path: Path
) -> None:
    """Rows of one id in two tasks are counted, once if the tasks run again, and named by their point."""
    first, second = table([1, 2, 3]), pa.concat_tables([table([1]), table([2]).set_column(1, "text", [["other"]])])
    blocks = [embedded(settings, rows) for rows in (first, second)]
    sink = QdrantDatasink("notes", source, alias="current", rejects=str(tmp_path / "rejects"), settings=settings)
    written(sink, *blocks, attempts=attempts)
    assert sink.report is not None
    assert (sink.report.lines, sink.report.points, sink.report.repeated, sink.report.replaced) == (5, 3, 1, 1)
    assert (sink.report.alias, sink.report.status) == (False, 1)
    assert store.collection_of("current") is None
    [lost] = pq.read_table(tmp_path / "rejects").to_pylist()
    assert (lost["code"], lost["point"]) == ("replaced", str(point_id("row 2", "current")))
    assert lost["message"] == "replaced by another row, which has the same id, and another text or payload"


def test_rows_may_replace_others(settings: Settings, store: Store, source: VectorSource) -> None:
    """With `allow_lost` the alias moves, and the report still counts the rows."""
    blocks = [embedded(settings, rows) for rows in (table([1]), table([1], words=13))]
    sink = QdrantDatasink("notes", source, alias="current", allow_lost=True, settings=settings)
    written(sink, *blocks)
    assert sink.report is not None
    assert (sink.report.replaced, sink.report.alias, sink.report.status) == (1, True, 0)
    assert store.collection_of("current") == "notes"


def test_rows_that_differ_from_kept_points(settings: Settings, store: Store, source: VectorSource) -> None:
    """With `insert_only` a row whose point exists with another text is `differing`, and printed without a folder."""
    written(QdrantDatasink("notes", source, settings=settings), embedded(settings, table([1, 2])))
    said: list[str] = []
    sink = QdrantDatasink("notes", source, insert_only=True, settings=settings, say=said.append)
    written(sink, embedded(settings, pa.concat_tables([table([1]), table([2], words=13)])))
    assert sink.report is not None
    assert (sink.report.skipped, sink.report.differing, sink.report.replaced) == (2, 1, 0)
    assert said[-1] == (
        f"point {point_id('row 2', 'notes')}: its point exists with another text or payload, and is kept"
    )


def test_documents_are_counted_once(settings: Settings, source: VectorSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document of which one chunk, or each, cannot be embedded is one row of the report."""
    cut = EmbedActor._too_long

    def too_long(self: EmbedActor, piece: EncodedPiece) -> Refusal | None:
        refused = piece.piece.text == 1 or (piece.piece.text == 0 and piece.piece.chunk == 1)
        return Refusal("colbert_too_long", "it is too long") if refused else cut(self, piece)

    monkeypatch.setattr(EmbedActor, "_too_long", too_long)
    rows = embedded(settings, table([1, 2, 3], words=80), Chunking(32, 4))
    sink = QdrantDatasink("notes", source, settings=settings)
    written(sink, rows)
    assert sink.report is not None
    assert sink.report.lines == 3
    assert sink.report.rejected > 2


@pytest.mark.parametrize("chunk", [None, Chunking(32, 4)])
def test_embedded_rows_become_the_same_points(
    chunk: Chunking | None, settings: Settings, store: Store, source: VectorSource
) -> None:
    """Rows that are embedded first and stored by the sink are the points of an ingest, also in chunks and slices."""
    rows = table(range(6), words=60)
    ingested(settings, rows, chunk=chunk)
    expected = payloads(store)
    vectors = embedded(settings, rows, chunk)
    sink = QdrantDatasink("copy", source, alias="notes-alias", settings=settings)
    written(sink, vectors.slice(0, 4), vectors.slice(4))
    assert sink.report is not None
    assert (sink.report.stored, sink.report.rejected, sink.report.alias) == (len(expected), 0, True)
    assert payloads(store, "copy") == expected
    assert store.collection_of("notes-alias") == "copy"


def test_rows_without_vectors_are_rejected_by_the_sink(
    settings: Settings, store: Store, source: VectorSource, tmp_path: Path
) -> None:
    """What could not be embedded is in the folder of rejected rows, and keeps the alias from moving."""
    rows = pa.table({"id": [1, -5], "text": ["one", "two"]})
    folder = tmp_path / "rejects"
    sink = QdrantDatasink("notes", source, alias="current", rejects=str(folder), settings=settings)
    written(sink, embedded(settings, rows))
    assert sink.report is not None
    assert (sink.report.stored, sink.report.rejected, sink.report.alias) == (1, 1, False)
    assert store.collection_of("current") is None
    [rejected] = pq.read_table(folder).to_pylist()
    assert rejected["code"] == "invalid_id"
    assert rejected["row"] == '{"text": "two", "id": -5, "payload": {}}'


def test_vectors_of_your_own(settings: Settings, store: Store) -> None:
    """Rows that have vectors already need no model; a wrong vector is rejected alone."""
    rows = pa.table(
        {
            "id": pa.array([1, 2, 3]),
            "text": ["one", "two", "three"],
            "payload": ['{"number": 1}', None, '{"number": 3}'],
            "language": ["en", "en", "fr"],
            "dense": [[1.0, 0.0, 0.0], [0.0, np.nan, 0.0], [0.0, 0.0, 1.0]],
            "sparse_indices": pa.array([[5, 9], [7], []], pa.list_(pa.uint32())),
            "sparse_values": [[0.5, 0.25], [1.0], []],
        }
    )
    sink = QdrantDatasink("notes", VectorSource(("dense", "sparse"), 3, None, None), settings=settings)
    written(sink, rows)
    assert sink.report is not None
    assert (sink.report.stored, sink.report.rejected) == (2, 1)
    found = {(payload["number"], payload["language"]) for payload in payloads(store)}
    assert found == {(1, "en"), (3, "fr")}


def test_vectors_from_numpy(settings: Settings, store: Store) -> None:
    """Vectors that a function of numpy arrays gives, which Ray keeps as tensors, are stored as they are."""
    rows = np.eye(4, dtype=np.float32)
    ragged = np.empty(2, object)
    ragged[:] = [rows[:2], rows[1:]]
    block = BlockAccessor.batch_to_block(
        {"id": np.array([1, 2]), "text": np.array(["one", "two"]), "dense": rows[:2], "colbert": ragged}
    )
    no_vectors = pa.table({"id": [3], "text": ["three"], "dense": pa.nulls(1), "colbert": pa.nulls(1)})
    sink = QdrantDatasink("notes", VectorSource(("dense", "colbert"), 4, 4, None), settings=settings)
    written(sink, block, no_vectors)
    assert sink.report is not None
    assert (sink.report.stored, sink.report.rejected) == (2, 1)
    points = store.fetch("notes", [1, 2], False, ("dense", "colbert"))
    for number, expected in ((1, rows[:2]), (2, rows[1:])):
        vectors = points[number].vectors
        assert vectors is not None
        assert vectors.dense is not None
        assert vectors.colbert is not None
        assert np.array_equal(vectors.dense, rows[number - 1])
        assert np.array_equal(np.asarray(vectors.colbert), expected)


def test_documents_whose_chunks_lack_vectors(settings: Settings, store: Store) -> None:
    """A document with other numbers of chunks and of vectors, or without chunks, is rejected, and changes no other."""
    rows = np.eye(4, dtype=np.float32).tolist()
    block = pa.table(
        {
            "id": [1, 2, 3, 4, 5],
            "text": ["one two", "three four", "five", None, "six"],
            "chunk": [[0, 1], [0], [0], [0], None],
            "start": [[0, 4], [0], [0], [0], None],
            "end": [[3, 7], [5], [4], [4], None],
            "dense": [rows[:1], rows[:2], rows[3:], rows[:1], None],
        }
    )
    sink = QdrantDatasink("notes", VectorSource(("dense",), 4, None, None), settings=settings, alias="live")
    written(sink, block)
    assert sink.report is not None
    assert (sink.report.lines, sink.report.stored, sink.report.rejected, sink.report.alias) == (5, 1, 4, False)
    page, _ = store.scroll("notes", {}, True, limit=10)
    assert [(stored.payload or {})["text"] for stored in page.values()] == ["five"]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("dense", ["secret"]),
        ("dense", [["secret"]]),
        ("dense", [1.0]),
        ("sparse_indices", [[[1]]]),
        ("error_code", ["wrong"]),
    ],
)
def test_a_column_of_another_type_ends_the_load(settings: Settings, column: str, values: list[Any]) -> None:
    """The failure names the column, and quotes no value of it."""
    columns = {"text": ["one"], "dense": [[1.0, 0.0]], "sparse_indices": [[1]], "sparse_values": [[1.0]]}
    sink = QdrantDatasink("notes", VectorSource(("dense", "sparse"), 2, None, None), settings=settings)
    with pytest.raises(StoringFailedError, match=r"the data set: (the|there is no) column") as failure:
        written(sink, pa.table({**columns, column: values}))
    assert "secret" not in str(failure.value)


def test_vectors_of_another_model_are_refused(settings: Settings, source: VectorSource, embedder: Embedder) -> None:
    """The sink stores nothing into a collection of another model."""
    ingested(settings, table(range(2)))
    foreign = VectorSource(KINDS, embedder.hidden_size, embedder.colbert_size, ModelIdentity("other", None))
    with pytest.raises(Exception, match="was made for the model 'mini'"):
        QdrantDatasink("notes", foreign, settings=settings).on_write_start()


def test_the_folder_of_rejects_must_be_empty(settings: Settings, source: VectorSource, tmp_path: Path) -> None:
    """Rejected rows of two loads are never mixed."""
    (tmp_path / "old.parquet").write_bytes(b"")
    with pytest.raises(StoringFailedError, match="must be empty"):
        QdrantDatasink("notes", source, rejects=str(tmp_path), settings=settings).on_write_start()


def test_chunks_that_are_too_short(settings: Settings) -> None:
    """Wrong chunking is refused before a model is loaded."""
    with pytest.raises(InvalidRequest, match="at least 32, got 8"):
        load_options("notes", chunk=Chunking(8, 0))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "is under way; name this load with --load-id if it is another",
            "is under way; name this load with load_id if",
        ),
        (
            "insertOnly must be false, because of chunk.maxTokens 64",
            "insert_only must be false, because of chunk.max_tok",
        ),
        ("with input.text-field none (here 'textKey')", "with fields.texts none (here 'textKey')"),
    ],
)
def test_a_message_about_a_load_names_arguments_of_python(message: str, told: str) -> None:
    """A caller of `load` has given no option of a command, and a name in quotes is the caller's own."""
    assert in_python(message).startswith(told)
