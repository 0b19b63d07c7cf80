"""Helpers that embed lines into files, and load vector files, over the models and stores of tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedder import KINDS, Embedder
from qdrant_sink import ModelIdentity, Store
from service.bulk.json_lines import read_json_lines
from service.bulk.line import BadLine, Line
from service.bulk.load import BulkLoad
from service.bulk.report import LoadReport
from service.bulk.sources import sources_of
from service.bulk.vector_files.vector_reading import VectorReader
from service.operations import Operations, VectorOperations
from service.settings import Settings
from service.transports.cli.bulk import load_options
from service.transports.cli.embed import embed
from service.wire.fields import Limits
from tests.command_line import bulk_options, embed_options
from tests.service.client import ENVIRONMENT

Lines = Iterable[Mapping[str, Any]]

LIMITS = Limits(max_texts=10_000, max_length=8192)
DENSE_SIZE = 192

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

MANY: Sequence[dict[str, Any]] = [{"text": f"text number {n}", "id": n} for n in range(40)]


def raw(lines: Lines) -> Iterable[Line | BadLine]:
    """Lines of JSON Lines with these fields."""
    return read_json_lines(json.dumps(line).encode() + b"\n" for line in lines)


def embedded(embedder: Embedder, out: Path, lines: Iterable[Line | BadLine], *options: str) -> dict[str, Any]:
    """Embed lines into a folder, and return the summary with what was said."""
    core = Operations(Settings.from_environment(ENVIRONMENT), embedder)
    summary, said = StringIO(), StringIO()
    with redirect_stdout(summary), redirect_stderr(said):
        status = embed(core, embed_options("--out", str(out), "--json", *options), lines)
    return {**json.loads(summary.getvalue()), "status": status, "said": said.getvalue()}


def loaded_texts(embedder: Embedder, store: Store, lines: Lines, *options: str, **variables: str) -> LoadReport:
    """Embed and load lines as `bulk` does."""
    return told_by_texts(embedder, store, lines, *options, **variables)[0]


def told_by_texts(
    embedder: Embedder, store: Store, lines: Lines, *options: str, **variables: str
) -> tuple[LoadReport, list[str]]:
    """Embed and load lines as `bulk` does; returns also what the user reads."""
    core = Operations(Settings.from_environment({**ENVIRONMENT, **variables}), embedder, store)
    said: list[str] = []
    load = BulkLoad(core, load_options(bulk_options(*options), LIMITS), None, said.append)
    return load.run(raw(lines)), said


class VectorLoad:
    """A load of vector files.

    Args:
        store: the store.
        options: arguments of `bulk`, with the files.
        variables: settings.

    Attributes:
        said: what the user has read.
        report: the report.
    """

    def __init__(self, store: Store, *options: str, **variables: str) -> None:
        self.said: list[str] = []
        parsed = bulk_options("--vectors-in", *options)
        model = None if parsed.vectors_model is None else ModelIdentity(parsed.vectors_model)
        reader = VectorReader(parsed.fields, parsed.vectors, model, self.said.append)  # type: ignore[arg-type]
        sources = sources_of(parsed.files, any_format=False, say=self.said.append)
        vectors = reader.check(sources)
        core = VectorOperations(Settings.from_environment({**ENVIRONMENT, **variables}), vectors, store)
        load = BulkLoad(core, load_options(parsed, LIMITS), None, self.said.append)
        self.report = load.run(reader.lines(sources))

    @property
    def rejected(self) -> list[str]:
        """The rejections, without the folder of the file."""
        return [text.rpartition("/")[2] for text in self.said if ", row " in text]


def points(store: Store, collection: str) -> dict[str, tuple[Any, ...]]:
    """Payload and vectors of every point by its text, as bytes; of chunks without what each write has of its own."""
    stored, _ = store.scroll(collection, {}, True, limit=10_000)
    kinds = [kind for kind in KINDS if kind in store.description(collection).vectors]
    full = store.fetch(collection, list(stored), False, kinds)
    result = {}
    for point, value in stored.items():
        payload = dict(value.payload or {})
        versioned = payload.pop("doc_version", None)
        vectors = full[point].vectors
        assert vectors is not None
        sparse = None if vectors.sparse is None else (vectors.sparse.indices.tolist(), vectors.sparse.values.tolist())
        dense = None if vectors.dense is None else vectors.dense.tobytes()
        colbert = None if vectors.colbert is None else vectors.colbert.tobytes()
        identity = None if versioned else point
        key = f"{payload.get('doc_id', '')}/{payload.get('chunk', '')}/{payload['text']}"
        result[key] = (identity, payload, dense, sparse, colbert)
    return result


def rewritten(path: Path, **columns: Any) -> None:
    """Replace columns of a vector file by arrays, as another program does, which keeps no metadata."""
    table = pq.read_table(path)
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        array = values if isinstance(values, pa.Array) else pa.array(values)
        table = table.set_column(index, name, array)
    pq.write_table(table.replace_schema_metadata(None), path)


def parts_of(folder: Path) -> list[Path]:
    """The files of a folder, in the order of their names."""
    return sorted(folder.iterdir())


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of all files of a folder."""
    return [row for path in parts_of(folder) for row in pq.read_table(path).to_pylist()]


def three_texts(embedder: Embedder, folder: Path) -> Path:
    """Embed three texts into a folder, and return it."""
    lines = [{"text": f"text number {n}", "id": n, "payload": {"n": n}} for n in range(3)]
    assert embedded(embedder, folder, raw(lines))["status"] == 0
    return folder
