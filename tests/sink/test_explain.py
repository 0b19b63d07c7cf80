"""Explanations of hits: every number adds up to a score that the store gave, on both stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.vectors import SparseVector
from qdrant_sink.points import PayloadKeys, PointId, Vectors
from qdrant_sink.searching import BranchRank, Explanation, Hit, Search, SearchOptions, conform_query, explain, run
from qdrant_sink.searching.explain import FUSED_TOLERANCE, Inquiry
from qdrant_sink.searching.matches import row_matches, token_matches
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import SCHEMA, Reference, draft, rrf, sample_vectors
from tests.sink.stores import STORES, drop, opened
from tests.sink.writing import write

COLLECTION = "test_explain"
TOLERANCE = 1e-4
"""Of a sum of contributions, against the store's score."""

WHOLE: dict[PointId, Vectors] = {i: sample_vectors(i, rows=1 + i % 6) for i in range(60)}
TWINS: dict[PointId, Vectors] = {100 + i: WHOLE[i] for i in range(8)}
PARTS: dict[PointId, Vectors] = {
    200: sample_vectors(200, kinds=("dense",)),
    201: sample_vectors(201, kinds=("dense", "sparse")),
    202: sample_vectors(202, kinds=("dense", "colbert")),
}
VECTORS = {**WHOLE, **TWINS, **PARTS}
REFERENCE = Reference(VECTORS)
USING: list[Any] = [
    ("dense",),
    ("sparse",),
    ("colbert",),
    ("dense", "sparse"),
    ("sparse", "colbert"),
    ("dense", "sparse", "colbert"),
]


@pytest.fixture(scope="module", params=STORES)
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Every store, with points of which some are equal and some lack a vector."""
    with opened(request.param, tmp_path_factory.mktemp(request.param)) as store:
        store.ensure(COLLECTION, SCHEMA)
        drafts = [draft(n, id=i, vectors=v, payload={"parity": n % 2}) for n, (i, v) in enumerate(VECTORS.items())]
        assert write(store, COLLECTION, drafts, SCHEMA).stored == len(VECTORS)
        yield store
    if request.param == "server":
        drop(COLLECTION)


def search_of(seed: int, **fields: Any) -> Search:
    """A conformant search by a random query."""
    query = sample_vectors(seed, rows=1 + seed % 5)
    proven = conform_query(query, SearchOptions(**fields), SCHEMA)
    assert isinstance(proven, Search)
    return proven


def told(store: Store, search: Search) -> list[tuple[Hit, Explanation]]:
    """The hits of a search, each with its explanation."""
    [found] = explain(store, COLLECTION, [search], text_key="text", halved=True)
    return list(zip(found.hits, found.explanations, strict=True))


searches = st.builds(
    lambda seed, using, rerank, fields: search_of(seed, using=using, rerank=rerank, **fields),
    st.integers(1000, 1_000_000),
    st.sampled_from(USING),
    st.sampled_from([None, "colbert"]),
    st.fixed_dictionaries(
        {"limit": st.integers(1, 12), "prefetch": st.sampled_from([1, 5, 20, 100])},
        optional={
            "offset": st.integers(0, 5),
            "rrf_k": st.sampled_from([1, 2, 60]),
            "fusion": st.just("dbsf"),
            "group_by": st.just("parity"),
            "where": st.just({"must": [{"key": "parity", "match": {"value": 1}}]}),
        },
    ),
)


@settings(max_examples=40, deadline=None)
@given(search=searches)
def test_every_sum_is_a_score(filled: Store, search: Search) -> None:
    """Sparse contributions add up to the inner product, ColBERT's to the MaxSim, the branches' to the fused score."""
    assert search.vectors.sparse is not None
    assert search.vectors.colbert is not None
    sparse, maxsim = REFERENCE.sparse(search.vectors.sparse), REFERENCE.colbert(search.vectors.colbert)
    for hit, why in told(filled, search):
        assert why.sparse is not None
        contributions = [match.contribution for match in why.sparse]
        assert contributions == sorted(contributions, reverse=True)
        assert sum(contributions) == pytest.approx(sparse.get(hit.id, 0.0), abs=TOLERANCE)
        if why.colbert is None:
            assert VECTORS[hit.id].colbert is None
        else:
            assert len(why.colbert) == len(search.vectors.colbert)
            assert sum(match.score for match in why.colbert) == pytest.approx(maxsim[hit.id], abs=TOLERANCE)
            if search.options.rerank or search.options.using == ("colbert",):
                assert sum(match.score for match in why.colbert) == pytest.approx(hit.score, abs=TOLERANCE)
        fuses = len(search.options.using) > 1 and search.options.rerank is None
        assert (why.fusion is not None) == fuses
        if why.fusion is not None:
            assert sum(why.fusion.values()) == pytest.approx(hit.score, abs=FUSED_TOLERANCE[search.options.fusion])
            assert {kind for kind, part in why.fusion.items() if part} == {
                kind for kind, place in why.branches.items() if place
            }


@settings(max_examples=25, deadline=None)
@given(search=searches)
def test_ranks_are_those_of_the_branches_alone(filled: Store, search: Search) -> None:
    """A hit's rank and score in a branch are what a search by that branch alone gives it, among as many candidates."""
    search = search.with_options(group_by=None)
    alone: dict[str, list[Hit]] = {}
    for kind in search.options.using:
        count = max(search.options.prefetch, search.options.limit + search.options.offset)
        one = search.with_options(using=(kind,), rerank=None, limit=count, offset=0)
        (alone[kind],) = run(filled, COLLECTION, [one])
    for hit, why in told(filled, search):
        assert list(why.branches) == list(search.options.using)
        for kind, place in why.branches.items():
            found = [one for one in alone[kind] if one.id == hit.id]
            if place is None:
                assert not found
                continue
            assert place.score == pytest.approx(found[0].score, abs=1e-6)
            assert alone[kind][place.rank - 1].score == place.score


def test_an_explained_search_finds_the_same(filled: Store) -> None:
    """Hits, scores and their order are those of the search itself, and carry no more than it asked for."""
    fields: tuple[dict[str, Any], ...] = (
        {},
        {"with_payload": False},
        {"with_vectors": ("dense",)},
        {"rerank": "colbert", "score_threshold": 0.5},
    )
    for more in fields:
        search = search_of(77, limit=6, offset=2, **more)
        (plain,) = run(filled, COLLECTION, [search])
        inquiry = Inquiry.of(search)
        bare = inquiry.stripped(run(filled, COLLECTION, inquiry.searches)[0])
        assert [(hit.id, hit.score, hit.payload) for hit in bare] == [(hit.id, hit.score, hit.payload) for hit in plain]
        for one, other in zip(bare, plain, strict=True):
            assert (one.vectors is None) == (other.vectors is None)
            if one.vectors is not None and other.vectors is not None:
                assert one.vectors.dense is not None
                assert other.vectors.dense is not None
                assert one.vectors.dense.tolist() == other.vectors.dense.tolist()
                assert (one.vectors.sparse, one.vectors.colbert) == (None, None)


def test_a_threshold_does_not_hide_the_branches(filled: Store) -> None:
    """A threshold is of the final score: a hit above it is explained by branches whose scores are on another scale."""
    found = told(filled, search_of(77, rerank="colbert", score_threshold=1.01))
    assert found
    for _, why in found:
        assert any(place is not None and place.score < 1.01 for place in why.branches.values())


def test_everything_is_one_request(tmp_path: Path) -> None:
    """However many hits and branches, an explanation costs the server one call; branches bring ids and scores alone."""
    double = GrpcDouble(tmp_path)
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port)
    store.ensure(COLLECTION, SCHEMA)
    assert write(store, COLLECTION, [draft(i) for i in range(9)], SCHEMA).stored == 9
    before = len(double.calls)
    told(store, search_of(5, rerank="colbert"))
    assert double.calls[before:] == ["QueryBatch"]
    first, *branches = double.queries[0].query_points
    assert set(first.with_vectors.include.names) == {"sparse", "colbert"}
    for branch in branches:
        assert not branch.with_payload.enable
        assert not branch.with_vectors.include.names
    store.close()
    double.stop()


def test_weights_divide_ranks_in_the_explanation_too(filled: Store) -> None:
    """What a branch contributed is 1 / (rrfK + rank / weight), as it is fused."""
    search = search_of(31, weights=(3.0, 0.5), rrf_k=5, limit=30)
    found = told(filled, search)
    assert any(why.branches["sparse"] is None for _, why in found)
    for hit, why in found:
        assert why.fusion is not None
        dense, sparse = why.branches["dense"], why.branches["sparse"]
        assert why.fusion["dense"] == (0.0 if dense is None else 1 / (5 + dense.rank / 3.0))
        assert why.fusion["sparse"] == (0.0 if sparse is None else 1 / (5 + sparse.rank / 0.5))
        assert sum(why.fusion.values()) == pytest.approx(hit.score, abs=1e-6)


@pytest.mark.parametrize("fields", [{}, {"fusion": "dbsf"}, {"rerank": "colbert"}, {"using": ("dense",)}])
def test_hits_from_far_down_are_explained(filled: Store, fields: dict[str, Any]) -> None:
    """A search by document that had to look past `prefetch` says the ranks at which it found its hits."""
    where = {"must_not": [{"has_id": [i for i in VECTORS if isinstance(i, int) and i % 2 and i != 59]}]}
    deep = 0
    for seed in range(300, 310):  # of odd parity there is one point, wherever it ranks
        search = search_of(seed, group_by="parity", limit=2, prefetch=1, where=where, **fields)
        for hit, why in told(filled, search):
            ranks = [place.rank for place in why.branches.values() if place]
            assert ranks
            deep += min(ranks) > search.options.depth
            if why.fusion is not None:
                assert sum(why.fusion.values()) == pytest.approx(hit.score, abs=FUSED_TOLERANCE[search.options.fusion])
            assert (why.fusion is not None) == (len(search.options.using) > 1 and search.options.rerank is None)
    assert deep


@pytest.mark.parametrize("key", ["text", "my text.of", "text.of"])
@pytest.mark.parametrize(
    ("selection", "kept"),
    [
        (True, {"topic", "key"}),
        (False, None),
        (PayloadKeys(("topic",)), {"topic"}),
        (PayloadKeys(("topic", "absent.x")), {"topic"}),
        (PayloadKeys(("topic",), excluded=True), {"key"}),
        (PayloadKeys(("topic", "key"), excluded=True), set()),
    ],
)
def test_the_text_is_fetched_whatever_was_selected(
    store: Store, collection: str, key: str, selection: Any, kept: Any
) -> None:
    """An explanation can point into a text of which the hits carry nothing, and hits carry no more for it."""
    store.ensure(collection, SCHEMA)
    assert write(store, collection, [draft(1, payload={key: "a text", "topic": "b"})], SCHEMA).stored == 1
    if isinstance(selection, PayloadKeys):
        keys = tuple(f'"{key}"' if name == "key" else name for name in selection.keys)
        selection = PayloadKeys(keys, excluded=selection.excluded)
    search = search_of(1, with_payload=selection, using=("dense",))
    [found] = explain(store, collection, [search], text_key=key, halved=True)
    [payload] = found.payloads
    assert payload is not None
    assert payload[key] == "a text"
    [hit] = found.hits
    assert hit.payload is None if kept is None else hit.payload is not None
    if hit.payload is not None:
        assert set(hit.payload) == {key if name == "key" else name for name in kept}


def test_a_query_without_weights_has_no_sparse_part(filled: Store) -> None:
    """An empty query matches no token: its sparse branch ranks nothing and explains nothing."""
    search = search_of(31)
    search = replace(search, vectors=replace(search.vectors, sparse=None))
    for hit, why in told(filled, search):
        assert why.sparse is None
        assert why.branches["sparse"] is None
        assert why.fusion is not None
        assert why.fusion["sparse"] == 0.0
        assert sum(why.fusion.values()) == pytest.approx(hit.score, abs=1e-6)
    lonely = search.with_options(using=("sparse",))
    assert told(filled, lonely) == []


def hits_of(*pairs: tuple[PointId, float]) -> list[Hit]:
    """Hits of these ids and scores."""
    return [Hit(point_id, score) for point_id, score in pairs]


def test_among_equal_scores_the_fused_one_decides() -> None:
    """Twins whose order a branch drew anew are explained by the ranks that make up their fused scores."""
    inquiry = Inquiry.of(search_of(31))
    fused: Mapping[PointId, float] = rrf([[1, 2], [2, 1]], 60, (1.0, 1.0))
    answers = [hits_of(*fused.items()), hits_of((1, 0.5), (2, 0.5)), hits_of((1, 3.0), (2, 3.0))]
    for hit, why in zip(answers[0], inquiry.explain(answers, halved=True), strict=True):
        assert why.fusion is not None, "1/61 + 1/62, not twice 1/61"
        assert sum(why.fusion.values()) == pytest.approx(hit.score)
        ranks = [place.rank for place in why.branches.values() if place]
        assert sorted(ranks) == [1, 2]


def test_what_does_not_add_up_is_not_told() -> None:
    """If the collection changed between the parts of a request, ranks stand as found and contributions are left out."""
    inquiry = Inquiry.of(search_of(31))
    answers = [hits_of((1, 1 / 61 + 1 / 70)), hits_of((1, 0.9)), hits_of((2, 3.0), (1, 2.0))]
    (why,) = inquiry.explain(answers, halved=True)
    assert why.fusion is None
    assert why.branches == {"dense": BranchRank(1, 0.9), "sparse": BranchRank(2, 2.0)}


def test_a_flood_of_ties_is_not_searched_through() -> None:
    """A thousand equal scores in each of three branches take no million tries."""
    inquiry = Inquiry.of(search_of(31, using=("dense", "sparse", "colbert")))
    same = hits_of(*((i, 1.0) for i in range(1000)))
    explanations = inquiry.explain([same[:3], same, same, same], halved=True)
    assert [why.branches["dense"] for why in explanations] == [BranchRank(n, 1.0) for n in (1, 2, 3)]
    assert all(why.fusion is None for why in explanations)


weights = st.dictionaries(st.integers(0, 12), st.floats(2**-10, 1.0, width=32), max_size=10).map(
    lambda found: SparseVector(
        np.array(sorted(found), np.uint32), np.array([found[i] for i in sorted(found)], np.float32)
    )
)


@given(query=weights, passage=weights)
def test_token_matches_are_the_common_tokens(query: SparseVector, passage: SparseVector) -> None:
    """Any two weightings: the common ids, each once, adding up to the inner product."""
    ours, theirs = (dict(zip(one.indices.tolist(), one.values.tolist(), strict=True)) for one in (query, passage))
    found = token_matches(query, passage)
    assert {match.id for match in found} == ours.keys() & theirs.keys()
    assert len({match.id for match in found}) == len(found)
    assert sum(match.contribution for match in found) == pytest.approx(
        sum(value * theirs.get(i, 0.0) for i, value in ours.items())
    )


@given(rows=st.integers(1, 5), others=st.integers(1, 5), seed=st.integers(0, 1000))
def test_row_matches_are_the_nearest_rows(rows: int, others: int, seed: int) -> None:
    """One match per row of the query: no other row of the passage is nearer."""
    query, passage = sample_vectors(seed, rows=rows).colbert, sample_vectors(seed + 1, rows=others).colbert
    assert query is not None
    assert passage is not None
    found: Sequence[Any] = row_matches(query, passage)
    assert len(found) == rows
    for row, match in zip(query, found, strict=True):
        assert match.score == pytest.approx(float((passage @ row).max()), abs=1e-6)
        assert match.score == pytest.approx(float(passage[match.row] @ row), abs=1e-6)
