"""Quantized searches with rescoring keep the recall, compared with an exact search in numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from qdrant_sink.edge import EdgeStore
from qdrant_sink.points import Point
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.searching import Search, conform_query, run
from tests.sink.samples import parts, schema_for, search_by, unit

POINTS = 2000
QUERIES = 30
RECALL_MIN = 0.98

Floats = NDArray[np.float32]


def _scattered(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Random directions, for which int8 finds most of the ten nearest points."""
    return unit(rng.normal(size=(POINTS, 64))), unit(rng.normal(size=(QUERIES, 64)))


def _clustered(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Clusters of ten points, for which binary quantization finds most of the nearest points."""
    centres = rng.normal(size=(POINTS // 10, 256))
    points = np.repeat(centres, 10, axis=0) + 1.1 * rng.normal(size=(POINTS, 256))
    return unit(points), unit(centres[:QUERIES] + 1.1 * rng.normal(size=(QUERIES, 256)))


def _indexed(root: Path, schema: CollectionSchema, points: list[Point]) -> EdgeStore:
    """Create a store that quantizes small collections too. By default the engine starts at 10 MB."""
    store = EdgeStore(root)
    store.ensure("docs", schema)
    store.close()
    file = root / "docs" / "edge_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "optimizers": {"indexing_threshold": 1, "default_segment_number": 1}}))
    store = EdgeStore(root)
    store.upsert("docs", points)
    store.restore_index("docs", schema)
    store.build_index("docs", schema, timeout_s=60)
    return store


def _recall(store: EdgeStore, searches: list[Search], best: list[set[int]]) -> float:
    answers = run(store, "docs", searches)
    return float(np.mean([len(b & {hit.id for hit in hits}) / 10 for b, hits in zip(best, answers, strict=True)]))


def _rescored(searches: list[Search], schema: CollectionSchema) -> list[Search]:
    proven = [conform_query(search.vectors, search.options, schema) for search in searches]
    return [search for search in proven if isinstance(search, Search)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sample"), [("int8", _scattered), ("binary", _clustered)])
def test_rescoring_restores_the_recall_of_dense(
    tmp_path: Path,
    kind: Literal["int8", "binary"],
    sample: Callable[[np.random.Generator], tuple[Floats, Floats]],
) -> None:
    """With rescoring, the quantized copy returns at least 98 % of the exact top 10; without it, fewer."""
    points, queries = sample(np.random.default_rng(0))
    schema = schema_for(points.shape[1], 8)
    schema = replace(schema, dense=replace(parts(schema)[0], quantization=kind, m=0))
    store = _indexed(tmp_path, schema, [Point(i, {}, dense=vector) for i, vector in enumerate(points)])
    best = [set(np.argsort(-points @ query)[:10].tolist()) for query in queries]
    searches = [search_by(dense=query, using=("dense",)) for query in queries]
    assert _recall(store, _rescored(searches, schema), best) >= RECALL_MIN
    assert _recall(store, searches, best) < RECALL_MIN
    store.close()


def test_rescoring_restores_the_ranking_of_colbert(tmp_path: Path) -> None:
    """Reranking with an int8 copy and rescoring has the same result as reranking with the full rows."""
    rng = np.random.default_rng(1)
    rows = unit(rng.normal(size=(400, 6, 64)))
    queries = unit(rows[:QUERIES, :4] + 0.12 * rng.normal(size=(QUERIES, 4, 64)))
    schema = schema_for(8, 64)
    schema = replace(schema, colbert=replace(parts(schema)[2], quantization="int8"))
    dense = unit(rng.normal(size=(400, 8)))
    store = _indexed(tmp_path, schema, [Point(i, {}, dense=dense[i], colbert=rows[i]) for i in range(400)])
    scores = np.einsum("qrd,ptd->qprt", queries, rows).max(axis=3).sum(axis=2)
    best = [set(np.argsort(-of_query)[:10].tolist()) for of_query in scores]
    searches = [
        search_by(dense=dense[i], colbert=query, using=("dense",), rerank="colbert", prefetch=400)
        for i, query in enumerate(queries)
    ]
    assert _recall(store, _rescored(searches, schema), best) >= RECALL_MIN
    assert _recall(store, searches, best) < RECALL_MIN
    store.close()
