"""The graph of an embedded collection is built even after an earlier optimisation was killed."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedder.errors import ConfigurationError
from qdrant_sink.edge import EdgeStore
from qdrant_sink.edge.segments import GRAPH_KB, count_unindexed, segments_of
from qdrant_sink.edge.settings import CONFIG_BACKUP_FILE, CONFIG_FILE, merging, read_config
from qdrant_sink.errors import StoreUnavailable
from qdrant_sink.points import Draft, Vectors
from qdrant_sink.searching import run
from tests.sink.samples import SCHEMA, draft, schema_for, search_by, unit
from tests.sink.writing import write

ROOT = Path(__file__).parents[2]
WIDE = schema_for(1024, 8)
POINTS = GRAPH_KB // 4 + 100
"""Enough points for one graph and too few for two."""
TIMEOUT_S = 60


def load(directory: str) -> EdgeStore:
    """Open a store and write all points to "docs" without a flush."""
    store = EdgeStore(directory)
    store.ensure("docs", WIDE)
    dense = vectors()
    rows = [Draft(i, i, {"i": i}, Vectors(dense[i])) for i in range(POINTS)]
    assert write(store, "docs", rows, WIDE).stored == POINTS
    return store


def vectors() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the dense vectors of the points."""
    return unit(np.random.default_rng(0).normal(size=(POINTS, 1024)))


def _until_the_engine_builds(collection: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not list(collection.glob("temp_segments/*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _reopened(directory: Path) -> EdgeStore:
    """Open the store as soon as the process of the killed optimisation has released the directory."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return EdgeStore(directory)
        except ConfigurationError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def _killed_while_it_optimises(directory: Path, call: str) -> None:
    """Load in another process, and kill it as soon as the engine builds the graph."""
    script = f"""
        import sys
        from tests.sink.test_edge_graph import load
        store = load(sys.argv[1])
        print("loaded", flush=True)
        {call}
        print("built", flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(directory)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "loaded\n"
        _until_the_engine_builds(directory / "docs")
        child.kill()
        assert child.stdout.read() == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        'store.optimize("docs")',
        # as in an earlier version: without a flush, the log is distributed among two segments
        'store._collections["docs"]._shard.optimize()',
    ],
)
def test_after_a_kill_all_points_exist_and_the_graph_can_be_built(tmp_path: Path, call: str) -> None:
    """After a kill -9 during the optimisation, all points exist, and the next run builds the graph."""
    _killed_while_it_optimises(tmp_path, call)
    docs = tmp_path / "docs"
    store = _reopened(tmp_path)
    assert list((docs / "temp_segments").iterdir()), "the run ended before it was killed"
    assert store.count("docs") == POINTS
    assert list((docs / "temp_segments").iterdir()) == []
    store.build_index("docs", WIDE, timeout_s=TIMEOUT_S)
    store.close()
    assert sum(segment.points for segment in segments_of(docs, "dense") if segment.indexed) == POINTS
    assert list(docs.glob("segments/*/vector_index-dense/graph*"))
    assert count_unindexed(docs, "dense", POINTS) == 0
    assert not (read_config(docs).get("optimizers") or {}).get("indexing_threshold")
    store = EdgeStore(tmp_path)
    dense = vectors()
    answers = run(store, "docs", [search_by(dense=dense[i], using=("dense",), limit=1) for i in range(0, POINTS, 100)])
    assert [hits[0].id for hits in answers] == list(range(0, POINTS, 100))
    assert store.count("docs") == POINTS
    store.close()


def test_a_missing_graph_is_an_error(tmp_path: Path) -> None:
    """`build_index` raises if the graph is missing, whatever the process reports."""
    idle = [sys.executable, "-c", "print('{\"changed\": true}')"]
    store = EdgeStore(tmp_path, optimizer=idle)
    store.ensure("docs", SCHEMA)
    write(store, "docs", [draft(i) for i in range(200)], SCHEMA)
    store.build_index("docs", SCHEMA, timeout_s=1)  # too few points for a graph
    config = read_config(tmp_path / "docs")
    (tmp_path / "docs" / CONFIG_FILE).write_text(json.dumps({**config, "optimizers": {"indexing_threshold": 1}}))
    with pytest.raises(StoreUnavailable, match="collection 'docs' is not ready: 200 points are not in the HNSW graph"):
        store.build_index("docs", SCHEMA, timeout_s=1)
    store.close()


def test_the_configuration_is_restored_after_a_kill(tmp_path: Path) -> None:
    """If a process ends during `merging`, the next one restores the configuration."""
    store = EdgeStore(tmp_path)
    store.ensure("docs", SCHEMA)
    store.close()
    docs = tmp_path / "docs"
    before = read_config(docs)
    inside = merging(docs)
    inside.__enter__()
    assert read_config(docs)["optimizers"]["default_segment_number"] == 1
    assert (docs / CONFIG_BACKUP_FILE).exists()
    store = EdgeStore(tmp_path)
    assert store.count("docs") == 0
    assert not (docs / CONFIG_BACKUP_FILE).exists()
    after = read_config(docs)
    assert {key: after[key] for key in before} == before
    assert not any((after.get("optimizers") or {}).values())
    store.close()


def test_an_incomplete_segment_is_ignored(edge_store: EdgeStore, tmp_path: Path) -> None:
    """An incomplete segment that a kill has left is ignored when the graph is checked."""
    edge_store.ensure("docs", SCHEMA)
    write(edge_store, "docs", [draft(i) for i in range(3)], SCHEMA)
    docs = tmp_path / "edge" / "docs"
    (docs / "segments" / "01234567-89ab-cdef-0123-456789abcdef").mkdir()
    edge_store.build_index("docs", SCHEMA, timeout_s=1)
    assert [segment.points for segment in segments_of(docs, "dense")] == [3]
