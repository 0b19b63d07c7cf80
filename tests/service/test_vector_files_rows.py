"""The rows of vector files: one that is not sound costs no other, and files of other programs have their columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.bulk.vector_files import vector_reading
from tests.service.vector_files import (
    DENSE_SIZE,
    DOCUMENTS,
    VectorLoad,
    embedded,
    points,
    raw,
    rewritten,
    three_texts,
)


@pytest.fixture
def out(embedder: Embedder, tmp_path: Path) -> Path:
    """A folder with the vectors of three texts."""
    return three_texts(embedder, tmp_path / "out")


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


@pytest.mark.slow
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
