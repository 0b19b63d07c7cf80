"""Damaged vector files: whatever differs, the rows are those that `embed` has written, or the input is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.bulk.field_mapping import FieldOptions
from service.bulk.line import BadLine, InputError
from service.bulk.sources import Source
from service.bulk.vector_files.vector_reading import VectorReader
from service.bulk.vector_line import VectorLine
from service.operations import VectorSource
from tests.service.vector_files import DOCUMENTS, VectorLoad, embedded, points, raw, three_texts


def read(content: bytes) -> tuple[VectorSource, list[Any]]:
    """What a load is given of a file: what its vectors are, and the documents with the bytes of their vectors."""
    source = Source("a.parquet", lambda: io.BufferedReader(io.BytesIO(content)))
    reader = VectorReader(FieldOptions(), (), None, lambda _text: None)
    vectors = reader.check([source])
    return vectors, [_document(line) for line in reader.lines([source])]


def _document(line: object) -> Any:
    if not isinstance(line, VectorLine):
        assert isinstance(line, BadLine)
        return line.number, line.message
    spans = [(point.row, point.chunk, point.start, point.end) for point in line.points]
    arrays = [
        array.tobytes()
        for point in line.points
        for array in (
            point.vectors.dense,
            point.vectors.colbert,
            *((point.vectors.sparse.indices, point.vectors.sparse.values) if point.vectors.sparse else ()),
        )
        if array is not None
    ]
    return line.number, line.text, line.id, json.dumps(line.payload), spans, arrays


class Original:
    """A file of `embed`.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.vectors, self.documents = read(self.content)

    def check(self, damaged: bytes) -> None:
        """Check that a damaged copy is read as the file itself, or refused.

        If the damage hides all metadata, the rows are those of a file of another program, which names no model.
        """
        try:
            vectors, documents = read(damaged)
        except InputError:
            return
        assert vectors == self.vectors or (vectors.kinds, vectors.model) == (self.vectors.kinds, None)
        assert documents == self.documents

    def flipped(self, index: int, mask: int) -> bytes:
        """A copy in which one byte differs."""
        content = bytearray(self.content)
        content[index] ^= mask
        return bytes(content)


@pytest.fixture(scope="module")
def texts(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Original:
    """Three texts with all kinds of vectors."""
    return Original(three_texts(embedder, tmp_path_factory.mktemp("texts") / "out") / "part-00000.parquet")


@pytest.fixture(scope="module")
def chunks(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Original:
    """Documents in chunks, with dense vectors in float16 and sparse ones."""
    out = tmp_path_factory.mktemp("chunks") / "out"
    lines = [{**document, "text": document["text"][:100]} for document in DOCUMENTS]
    embedded(embedder, out, raw(lines), "--chunk-tokens", "32", "--vectors", "dense,sparse", "--dtype", "float16")
    return Original(out / "part-00000.parquet")


PLACES = {
    "a text that is no longer UTF-8": (b"text number", 0x80),
    "another text": (b"text number", 0x01),
    "another payload": (b'{"n": ', 0x20),
    "a column of ids under another name": (b"id_integer", 0x01),
    "a column of texts under another name": (b"text\x15", 0x01),
    "another model": (b'"mini"', 0x01),
    "another number of tokens": (b'"max_length": 512', 0x01),
    "another number of a part": (b'"part": 0', 0x01),
    "an input that has not ended": (b'"last": true', 0x01),
    "no description": (b"bge_m3_qdrant_vectors", 0x01),
    "no mark of embed": (b"bge_m3_qdrant_writer", 0x01),
    "no schema of Arrow": (b"ARROW:schema", 0x01),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_byte_that_matters_is_found(texts: Original, name: str) -> None:
    """The bytes whose change was not found, or was taken for an internal error: in a text, a name, the description."""
    before, mask = PLACES[name]
    places = [at for at in range(len(texts.content)) if texts.content.startswith(before, at)]
    assert places, name
    for place in places:
        for index in range(len(before)):
            texts.check(texts.flipped(place + index, mask))


@given(st.data())
def test_a_damaged_file_is_an_error_of_the_input(texts: Original, chunks: Original, data: st.DataObject) -> None:
    """Any byte of a file may differ: each number, header, type and offset has a checksum."""
    original = data.draw(st.sampled_from([texts, chunks]))
    for index, mask in data.draw(
        st.lists(st.tuples(st.integers(0, len(original.content) - 1), st.integers(1, 255)), min_size=20, max_size=20)
    ):
        original.check(original.flipped(index, mask))


@given(st.data())
def test_a_file_that_was_cut_is_an_error_of_the_input(texts: Original, data: st.DataObject) -> None:
    """At its end, at its beginning, or in the middle; or bytes of it are there twice."""
    start = data.draw(st.integers(0, len(texts.content)))
    end = data.draw(st.integers(0, len(texts.content)))
    texts.check(texts.content[:start] + texts.content[end:])


@pytest.mark.slow
def test_every_byte_of_a_file_is_covered(chunks: Original) -> None:
    """Each byte of a small file is changed in three ways, and the file is cut at each."""
    for index in range(len(chunks.content)):
        chunks.check(chunks.content[:index])
        for mask in (0x01, 0x80, 0xFF):
            chunks.check(chunks.flipped(index, mask))


def test_a_damaged_row_is_not_stored(store: EdgeStore, embedder: Embedder, tmp_path: Path) -> None:
    """The load ends with the file and the way out, before a row of the damaged group is stored."""
    path = three_texts(embedder, tmp_path / "out") / "part-00000.parquet"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"text number", b"next number", 1))
    failure = str(VectorLoad(store, "--collection", "a", str(path)).report.failure)
    assert failure.startswith(f"{path}: its rows differ from those that embed has written")
    assert "give the command of embed again" in failure
    assert store.collection_of("a") is None or store.count("a") == 0


def test_the_texts_of_another_program_are_utf8(store: EdgeStore, tmp_path: Path) -> None:
    """A row whose text is not, or whose date Python has no type for, is rejected, and costs no other."""
    texts = pa.array([b"a", b"\xff", b"c"]).cast(pa.binary()).view(pa.string())
    days = pa.array([0, 0, 2**62], pa.int64()).view(pa.timestamp("us"))
    dense = pa.array([[1.0, 0.0]] * 3, pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"text": texts, "day": days, "dense": dense}), tmp_path / "a.parquet")
    load = VectorLoad(store, "--collection", "a", str(tmp_path / "a.parquet"))
    assert load.rejected == [
        "a.parquet, row 2: 'text' has a value that cannot be read; leave out the column",
        "a.parquet, row 3: 'day' has a value that cannot be read; leave out the column",
    ]
    assert [point[1]["text"] for point in points(store, "a").values()] == ["a"]
