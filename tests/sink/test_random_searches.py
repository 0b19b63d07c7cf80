"""Random searches over random collections return the same hits as an exact computation in numpy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from embedder.vectors import KINDS, Kind
from qdrant_sink.points import PointId, Vectors
from qdrant_sink.searching import Search, SearchPage, search_pages
from qdrant_sink.store import Store
from tests.sink.samples import COLBERT, SCHEMA, Reference, dbsf, draft, ranked, rrf, sample_vectors, search_by
from tests.sink.stores import EMBEDDED_FIRST, STORES, drop, opened
from tests.sink.writing import write

COLLECTIONS = 6
EXACT = replace(SCHEMA, colbert=replace(COLBERT, datatype="float32"))
"""Schema with rows in float32, so that different scores are not rounded to equal ones."""
SCORE_GAP_MIN = 2e-5
"""Minimum difference of two scores in a branch. Closer scores count as a tie."""
TOLERANCE = {"rrf": 1e-6, "dbsf": 1e-3}


@dataclass(frozen=True)
class Collection:
    """Random points. Some lack a kind of vector, and some belong to a document.

    In every third collection about half of them lack ColBERT rows.
    """

    name: str
    embeddings: Mapping[PointId, Vectors]
    payloads: Mapping[PointId, Mapping[str, Any]]

    @classmethod
    def drawn(cls, seed: int) -> Collection:
        """Draw a collection. The same seed gives the same collection."""
        rng = np.random.default_rng(seed)
        embeddings: dict[PointId, Vectors] = {}
        payloads: dict[PointId, Mapping[str, Any]] = {}
        documents = int(rng.integers(2, 12))
        for number in range(int(rng.integers(20, 90))):
            left_out = ["", "", "", *KINDS][int(rng.integers(6))]
            if seed % 3 == 1 and rng.random() < 0.5:
                left_out = "colbert"
            kinds = [kind for kind in KINDS if kind != left_out]
            rows = int(rng.integers(1, 6))
            embeddings[number] = sample_vectors(1000 * seed + number, rows=rows, kinds=kinds)
            document: dict[str, Any] = {"doc_id": rng.choice(["a", "b", "c"]) + str(rng.integers(documents))}
            if rng.random() < 0.1:
                document = {"doc_id": [document["doc_id"]]} if rng.random() < 0.5 else {}
            elif rng.random() < 0.2:
                document = {"doc_id": int(rng.integers(3))}
            payloads[number] = {"meta": document, "tag": int(rng.integers(3))}
        return cls(f"test_random_{seed}", embeddings, payloads)

    def fill(self, store: Store) -> None:
        """Store the points."""
        store.ensure(self.name, EXACT)
        drafts = [draft(i, vectors=self.embeddings[i], payload=self.payloads[i]) for i in range(len(self.payloads))]
        assert write(store, self.name, drafts, EXACT).stored == len(drafts)


DRAWN = [Collection.drawn(seed) for seed in range(COLLECTIONS)]


@pytest.fixture(scope="module", params=[*EMBEDDED_FIRST, *STORES[2:]])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Each kind of store, filled with the same collections."""
    with opened(request.param, tmp_path_factory.mktemp(request.param)) as store:
        for collection in DRAWN:
            collection.fill(store)
        yield store
    if request.param == "server":
        drop("test_random_")


@st.composite
def searches(draw: st.DrawFn) -> Search:
    """Draw a search with any branches, fusion, weights, page, filter and grouping."""
    using: list[Kind] = draw(st.lists(st.sampled_from(KINDS), min_size=1, unique=True))
    fusion: Literal["rrf", "dbsf"] = draw(st.sampled_from(["rrf", "dbsf"]))
    weighed = fusion == "rrf" and draw(st.booleans())
    weights = tuple(draw(st.floats(0.5, 3.0, width=32)) for _ in using)
    query = sample_vectors(draw(st.integers(10**6, 10**7)), rows=draw(st.integers(1, 4)))
    tag = draw(st.sampled_from([None, None, 0, 1]))
    group_by = draw(st.sampled_from([None, "meta.doc_id"]))
    return search_by(
        dense=query.dense,
        sparse=query.sparse,
        colbert=query.colbert,
        using=tuple(using),
        fusion=fusion,
        rrf_k=draw(st.integers(1, 100)),
        weights=weights if weighed else None,
        prefetch=draw(st.integers(1, 12) | st.integers(1, 120)),
        rerank=draw(st.sampled_from([None, "colbert"])),
        limit=draw(st.integers(1, 30)),
        offset=draw(st.just(0) | st.integers(0, 20)),
        where=None if tag is None else {"must": [{"key": "tag", "match": {"value": tag}}]},
        with_payload=draw(st.booleans()),
        group_by=group_by,
        group_size=draw(st.integers(1, 3)) if group_by else 1,
    )


@dataclass(frozen=True)
class Expected:
    """The ranking of a search as far as its page needs it.

    Attributes:
        scores: score of each point in the order of the ranking; for an unranked point, that of the fusion.
        unranked: candidates without ColBERT rows of a reranked search.
        page: points of the page.
    """

    scores: dict[PointId, float]
    unranked: set[PointId]
    page: list[PointId]


class Oracle:
    """The expected answer to a search, computed by sorting all points."""

    def __init__(self, collection: Collection, search: Search) -> None:
        self._collection, self._search = collection, search.options
        reference = Reference(collection.embeddings, halves=False)
        assert search.vectors.dense is not None
        assert search.vectors.sparse is not None
        assert search.vectors.colbert is not None
        every = {
            "dense": reference.dense(search.vectors.dense),
            "sparse": reference.sparse(search.vectors.sparse),
            "colbert": reference.colbert(search.vectors.colbert),
        }
        where = search.options.where
        wanted = None if where is None else where["must"][0]["match"]["value"]
        self._scores = {
            kind: {i: s for i, s in scores.items() if wanted is None or collection.payloads[i]["tag"] == wanted}
            for kind, scores in every.items()
        }

    @property
    def gap(self) -> float:
        """The smallest difference of two scores that are ranked."""
        kinds = {*self._search.using, *([self._search.rerank] if self._search.rerank else [])}
        ordered = [sorted(self._scores[kind].values()) for kind in kinds]
        return min((b - a for scores in ordered for a, b in pairwise(scores)), default=np.inf)

    def scores(self, depth: int) -> dict[PointId, float]:
        """Compute the scores of the last stage for the best `depth` candidates of every branch."""
        fused = self.fused(depth)
        if self._search.rerank is None:
            return fused
        return {i: score for i, score in self._scores["colbert"].items() if i in fused}

    def unranked(self, depth: int) -> dict[PointId, float]:
        """Compute the scores of the fusion for the candidates that reranking leaves out."""
        if self._search.rerank is None:
            return {}
        return {i: score for i, score in self.fused(depth).items() if i not in self._scores["colbert"]}

    def fused(self, depth: int) -> dict[PointId, float]:
        """Compute the scores of the only branch, or of the fusion, for the candidates of every branch."""
        search = self._search
        branches = [ranked(self._scores[kind], depth) for kind in search.using]
        if len(branches) == 1:
            return {i: self._scores[search.using[0]][i] for i in branches[0]}
        if search.fusion == "dbsf":
            kept = zip(search.using, branches, strict=True)
            return dbsf([{i: self._scores[kind][i] for i in branch} for kind, branch in kept])
        return rrf(branches, search.rrf_k, search.weights or (1.0,) * len(branches))

    def key(self, point_id: PointId) -> object:
        """Return the key of the group of a point."""
        value = self._collection.payloads[point_id]["meta"].get("doc_id")
        return (type(value), value) if type(value) in (str, int) else ("alone", point_id)

    def page(self) -> Expected:
        """Return the ranking and the hits of the page, tier by tier."""
        search = self._search
        end, depth = search.limit + search.offset, search.depth
        scores: dict[PointId, float] = {}  # by rank, each with the score of its tier
        unranked: set[PointId] = set()
        groups: dict[object, list[PointId]] = {}
        while True:
            tier = self.scores(depth)
            above = {i: s for i, s in tier.items() if search.score_threshold is None or s >= search.score_threshold}
            behind = self.unranked(depth)
            unranked.update(behind)
            parts = [above, behind if search.score_threshold is None else {}]
            added = [i for part in parts for i in sorted(part, key=lambda i: (-part[i], i)) if i not in scores]
            scores.update((i, (above | behind)[i]) for i in added)
            known = set(groups)
            for i in added:
                if self.key(i) not in known:
                    groups.setdefault(self.key(i), []).append(i)
            is_lone = len(search.using) == 1 and not search.rerank
            is_cut = len(above) < len(tier) and (is_lone or search.group_by is None)
            if len(groups if search.group_by else scores) >= end or len(tier | behind) < depth or is_cut:
                break
            depth *= 4
        if search.group_by is None:
            return Expected(scores, unranked, list(scores)[search.offset : end])
        chosen = {i for group in list(groups.values())[search.offset : end] for i in group[: search.group_size]}
        return Expected(scores, unranked, [i for i in scores if i in chosen])


def _assert_page(page: SearchPage, expected: Expected, tolerance: float) -> None:
    """Assert equal scores in the same order, and that every hit has the score of its point, or none if unranked."""
    scores, hits = expected.scores, page.hits
    assert [scores[hit.id] for hit in hits] == pytest.approx([scores[i] for i in expected.page], abs=tolerance)
    assert len({hit.id for hit in hits}) == len(hits)
    assert [hit.score is None for hit in hits] == [i in expected.unranked for i in expected.page]
    for hit in hits:
        assert hit.score is None or hit.score == pytest.approx(scores[hit.id], abs=tolerance)
    assert page.unranked == len(expected.unranked)


def _tolerance(search: Search) -> float:
    return SCORE_GAP_MIN if len(search.options.using) == 1 else TOLERANCE[search.options.fusion]


def _tied(scores: Mapping[PointId, float], tolerance: float) -> bool:
    """Whether two consecutive hits have nearly equal scores."""
    return any(abs(a - b) < 2 * tolerance for a, b in pairwise(scores.values()))


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.integers(0, COLLECTIONS - 1), searches(), st.none() | st.integers(0, 40))
def test_a_search_equals_sorting_all_points(filled: Store, number: int, search: Search, cut: int | None) -> None:
    """Any combination of branches, weights, fusion, reranking, filter, page, threshold and groups is exact."""
    collection = DRAWN[number]
    oracle = Oracle(collection, search)
    assume(oracle.gap > SCORE_GAP_MIN)
    tolerance = _tolerance(search)
    if cut is not None:  # a threshold between two scores
        ordered = sorted(oracle.scores(search.options.depth).values(), reverse=True)
        assume(cut + 1 < len(ordered) and ordered[cut] - ordered[cut + 1] > 4 * tolerance)
        search = search.with_options(score_threshold=(ordered[cut] + ordered[cut + 1]) / 2)
        oracle = Oracle(collection, search)
    expected = oracle.page()
    assume(search.options.group_by is None or not _tied(expected.scores, tolerance))
    [page] = search_pages(filled, collection.name, [search])
    _assert_page(page, expected, tolerance)
    hits = page.hits
    if search.options.group_by is not None:
        for hit in hits:
            value = collection.payloads[hit.id]["meta"].get("doc_id")
            assert hit.group == (value if type(value) in (str, int) else None)
    carried = {hit.id: hit.payload for hit in hits}
    assert carried == {i: collection.payloads[i] if search.options.with_payload else None for i in carried}
