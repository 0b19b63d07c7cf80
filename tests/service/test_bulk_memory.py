"""A bulk load keeps nothing of the lines that it has loaded."""

from __future__ import annotations

import gc
import gzip
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder import Embedder, Outputs
from embedder.checkpoint import MINI
from embedder.engines import EncodedBatch, SparseBatch, TokenBatch, YieldPoint, offsets_of
from embedder.scheduling import ModelPool
from embedder.tokenizer import Tokenizer
from qdrant_sink import Point, PointId
from qdrant_sink.edge import EdgeStore
from service.bulk import BulkLoad
from service.bulk.json_lines import read_json_lines
from service.bulk.line import Line
from service.bulk.reading import Reader, ReadOptions
from service.bulk.sources import sources_of
from service.operations import Operations
from service.settings import Settings
from service.transports.cli.bulk import load_options
from service.wire.fields import Limits
from tests.command_line import bulk_options
from tests.contract.engine import StubEngine
from tests.service.client import ENVIRONMENT

LINES = (2_000, 8_000)
"""Lines of two loads: the first fills what is kept once."""
GROWTH_MAX_BYTES = 200_000
"""Maximum growth by the second load, 25 bytes per line. An id alone would take more."""

READING_GROWTH_MAX_BYTES = 1_500_000
"""Maximum growth of the peak by reading 35 000 more rows, which have 7 MB."""


class ConstantEngine(StubEngine):
    """An engine that computes the same vectors for every text."""

    def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
        """See `Engine.encode`."""
        texts = len(batch.offsets) - 1
        dense = np.ones((texts, self.hidden_size), np.float32)
        ones = np.ones(texts, np.float32)
        sparse = SparseBatch(offsets_of(np.ones(texts, np.int32)), ones.astype(np.uint32), ones)
        return EncodedBatch(dense, sparse if outputs.sparse else None, None)


class Forgetful(EdgeStore):
    """A store that acknowledges points and keeps none."""

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Do nothing."""

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """Return all ids."""
        return set(ids)


@pytest.mark.slow
def test_the_memory_of_a_load_does_not_grow_with_its_lines(tmp_path: Path) -> None:
    """When all lines are loaded, the load itself and the service beneath it hold no more than before."""
    tokenizer = Tokenizer(MINI)
    engine = ConstantEngine(tokenizer)
    pool = ModelPool([engine], batches_per_gpu=1, token_budget=4096, queue_tokens=2_000_000)
    store = Forgetful(tmp_path)
    core = Operations(Settings.from_environment(ENVIRONMENT), Embedder(tokenizer, [engine], pool), store)
    options = load_options(
        bulk_options("--collection", "notes", "--vectors", "dense,sparse"), Limits(max_texts=1000, max_length=512)
    )
    loads: list[BulkLoad] = []
    sizes: list[int] = []
    tracemalloc.start()
    for count in LINES:
        loads.append(BulkLoad(core, options, None, lambda _text: None))
        lines = (
            json.dumps({"text": f"text {number}", "payload": {"n": number}}).encode() + b"\n" for number in range(count)
        )
        report = loads[-1].run(read_json_lines(lines))
        assert (report.stored, report.rejected) == (count, 0)
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    core.close()
    assert sizes[1] - sizes[0] < GROWTH_MAX_BYTES


def _rows(path: Path, count: int) -> None:
    """Write rows with texts of 200 characters in the format of the name."""
    texts = [f"{number} ".ljust(200, "x") for number in range(count)]
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        case ".json":
            path.write_text(json.dumps([{"text": text} for text in texts]), encoding="utf-8")
        case ".csv":
            path.write_text("text\n" + "\n".join(texts), encoding="utf-8")
        case ".gz":
            path.write_bytes(gzip.compress(("text\n" + "\n".join(texts)).encode("utf-16")))
        case ".parquet":
            pq.write_table(pa.table({"text": texts}), path)
        case _:
            with pa.ipc.new_stream(str(path), pa.schema([("text", pa.string())])) as file:
                file.write_table(pa.table({"text": texts}), max_chunksize=1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.csv.gz", "a.parquet", "a.arrows"])
def test_the_memory_of_reading_does_not_grow_with_a_file(tmp_path: Path, name: str) -> None:
    """Neither in Python nor in Arrow, whatever the format."""
    peaks: list[int] = []
    for count in (5_000, 40_000):
        _rows(tmp_path / name, count)
        lines = Reader(ReadOptions(), print).lines(sources_of([str(tmp_path / name)], any_format=False, say=print))
        arrow_peak = 0
        gc.collect()
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        for number, line in enumerate(lines):
            assert isinstance(line, Line)
            if not number % 500:
                arrow_peak = max(arrow_peak, pa.total_allocated_bytes() - before)
        peaks.append(tracemalloc.get_traced_memory()[1] + arrow_peak)
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < READING_GROWTH_MAX_BYTES
