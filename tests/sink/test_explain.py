"""Explanations of hits: on every store, contributions add up to the score of the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.vectors import Kind, SparseVector
from qdrant_sink.points import PayloadKeys, PointId, Vectors
from qdrant_sink.schema import Datatype
from qdrant_sink.searching import BranchRank, Explanation, Hit, Search, SearchOptions, conform_query, explain, run
from qdrant_sink.searching.explain import FUSED_TOLERANCE, Inquiry
from qdrant_sink.searching.matches import row_matches, token_matches
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import WIDE, WIDE_SIZE, Reference, draft, parts, rrf, sample_vectors, search_by
from tests.sink.stores import STORES, drop, opened
from tests.sink.writing import write

COLLECTION = "test_explain"
TOLERANCE = 1e-6
"""Maximum difference between a sum of contributions and the score of the store, absolute or relative."""

WHOLE: dict[PointId, Vectors] = {i: sample_vectors(i, rows=1 + i % 6, size=WIDE_SIZE) for i in range(60)}
TWINS: dict[PointId, Vectors] = {100 + i: WHOLE[i] for i in range(8)}
PARTS: dict[PointId, Vectors] = {
    200: sample_vectors(200, size=WIDE_SIZE, kinds=("dense",)),
    201: sample_vectors(201, size=WIDE_SIZE, kinds=("dense", "sparse")),
    202: sample_vectors(202, size=WIDE_SIZE, kinds=("dense", "colbert")),
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
    """Each kind of store, with some equal points and some points that lack a vector."""
    with opened(request.param, tmp_path_factory.mktemp(request.param)) as store:
        store.ensure(COLLECTION, WIDE)
        drafts = [draft(n, id=i, vectors=v, payload={"parity": n % 2}) for n, (i, v) in enumerate(VECTORS.items())]
        assert write(store, COLLECTION, drafts, WIDE).stored == len(VECTORS)
        yield store
    if request.param == "server":
        drop(COLLECTION)


def search_of(seed: int, **fields: Any) -> Search:
    """Create a valid search by a random query."""
    query = sample_vectors(seed, rows=1 + seed % 5, size=WIDE_SIZE)
    proven = conform_query(query, SearchOptions(**fields), WIDE)
    assert isinstance(proven, Search)
    return proven


def explained(store: Store, search: Search) -> list[tuple[Hit, Explanation]]:
    """Run a search and return its hits with their explanations."""
    [result] = explain(store, COLLECTION, [search], text_key="text")
    return list(zip(result.hits, result.explanations, strict=True))


searches = st.builds(
    lambda seed, using, rerank, fields: search_of(seed, using=using, rerank=rerank, **fields),
    st.integers(1000, 1_000_000),
    st.sampled_from(USING),
    st.sampled_from([None, "colbert"]),
    st.fixed_dictionaries(
        {"limit": st.integers(1, 12), "prefetch": st.sampled_from([1, 5, 20, 100])},
        optional={
            "offset": st.integers(0, 5) | st.integers(0, 50),
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
    """Contributions add up to the inner product (sparse), the MaxSim (ColBERT) and the fused score (branches)."""
    assert search.vectors.sparse is not None
    assert search.vectors.colbert is not None
    sparse, maxsim = REFERENCE.sparse(search.vectors.sparse), REFERENCE.colbert(search.vectors.colbert)
    for hit, why in explained(filled, search):
        assert why.sparse is not None
        contributions = [match.contribution or 0.0 for match in why.sparse]
        assert contributions == sorted(contributions, reverse=True)
        assert sum(contributions) == pytest.approx(sparse.get(hit.id, 0.0), rel=TOLERANCE, abs=TOLERANCE)
        if why.colbert is None:
            assert VECTORS[hit.id].colbert is None
        else:
            assert len(why.colbert) == len(search.vectors.colbert)
            assert sum(match.score for match in why.colbert) == pytest.approx(
                maxsim[hit.id], rel=TOLERANCE, abs=TOLERANCE
            )
            if search.options.rerank or search.options.using == ("colbert",):
                assert sum(match.score for match in why.colbert) == pytest.approx(
                    hit.score, rel=TOLERANCE, abs=TOLERANCE
                )
        fuses = len(search.options.using) > 1 and search.options.rerank is None
        assert (why.fusion is not None) == fuses
        if why.fusion is not None:
            assert sum(why.fusion.values()) == pytest.approx(hit.score, abs=FUSED_TOLERANCE[search.options.fusion])
            assert {kind for kind, part in why.fusion.items() if part} == {
                kind for kind, rank in why.branches.items() if rank
            }


@settings(max_examples=25, deadline=None)
@given(search=searches)
def test_ranks_are_those_of_the_branches_alone(filled: Store, search: Search) -> None:
    """The rank and score in a branch equal those of a separate search by this branch."""
    search = search.with_options(group_by=None)
    for hit, why in explained(filled, search):
        alone: dict[str, list[Hit]] = {}
        for kind in search.options.using:
            branch_search = search.with_options(using=(kind,), rerank=None, limit=hit.depth, offset=0)
            (alone[kind],) = run(filled, COLLECTION, [branch_search])
        assert list(why.branches) == list(search.options.using)
        for kind, rank in why.branches.items():
            same = [candidate for candidate in alone[kind] if candidate.id == hit.id]
            if rank is None:
                assert not same
                continue
            assert rank.score == pytest.approx(same[0].score, abs=1e-6)
            assert alone[kind][rank.rank - 1].score == rank.score


def test_an_explained_search_returns_the_same_hits(filled: Store) -> None:
    """An explained search returns the same hits as the search itself, without additional data."""
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
        bare = inquiry.stripped(run(filled, COLLECTION, [inquiry.extended])[0])
        assert [(hit.id, hit.score, hit.payload) for hit in bare] == [(hit.id, hit.score, hit.payload) for hit in plain]
        for hit, other in zip(bare, plain, strict=True):
            assert (hit.vectors is None) == (other.vectors is None)
            if hit.vectors is not None and other.vectors is not None:
                assert hit.vectors.dense is not None
                assert other.vectors.dense is not None
                assert hit.vectors.dense.tolist() == other.vectors.dense.tolist()
                assert (hit.vectors.sparse, hit.vectors.colbert) == (None, None)


def test_a_threshold_does_not_hide_the_branches(filled: Store) -> None:
    """A threshold applies to the final score and not to the branches of an explanation."""
    explanations = explained(filled, search_of(77, rerank="colbert", score_threshold=1.01))
    assert explanations
    for _, why in explanations:
        assert any(rank is not None and rank.score < 1.01 for rank in why.branches.values())


@pytest.mark.parametrize("datatype", ["float32", "float16"])
def test_contributions_are_those_of_the_stored_type(store: Store, collection: str, datatype: Datatype) -> None:
    """In a collection of either type the sums equal the scores, also if the configured schema has the other type."""
    schema = replace(WIDE, colbert=replace(parts(WIDE)[2], datatype=datatype))
    store.ensure(collection, schema)
    points = [draft(n, vectors=sample_vectors(n, rows=5, size=WIDE_SIZE)) for n in range(40)]
    assert write(store, collection, points, schema).stored == 40
    for seed in range(1000, 1005):
        search = search_of(seed, using=("colbert",), limit=40)
        [result] = explain(store, collection, [search], text_key="text")
        assert len(result.hits) == 40
        for hit, why in zip(result.hits, result.explanations, strict=True):
            assert why.colbert is not None
            assert sum(match.score for match in why.colbert) == pytest.approx(hit.score, rel=TOLERANCE)


@pytest.mark.parametrize("datatype", ["float32", "float16"])
def test_the_reference_rounds_as_the_stores_do(store: Store, collection: str, datatype: Datatype) -> None:
    """A store of float16 vectors rounds both the points and the query, dense as well as ColBERT; float32 is exact."""
    dense, _, colbert = parts(WIDE)
    schema = replace(WIDE, dense=replace(dense, datatype=datatype), colbert=replace(colbert, datatype=datatype))
    store.ensure(collection, schema)
    vectors: dict[PointId, Vectors] = {n: sample_vectors(n, rows=5, size=WIDE_SIZE) for n in range(40)}
    drafts = [draft(n, vectors=vector) for n, vector in enumerate(vectors.values())]
    assert write(store, collection, drafts, schema).stored == 40
    halves = datatype == "float16"
    reference = Reference(vectors, halves=halves, dense_halves=halves)
    query = sample_vectors(1000, rows=3, size=WIDE_SIZE)
    assert query.dense is not None
    assert query.colbert is not None
    scores: dict[Kind, Mapping[PointId, float]] = {
        "dense": reference.dense(query.dense),
        "colbert": reference.colbert(query.colbert),
    }
    for kind, expected in scores.items():
        [hits] = run(store, collection, [search_by(query.dense, None, query.colbert, using=(kind,), limit=40)])
        assert len(hits) == 40
        for hit in hits:
            assert hit.score == pytest.approx(expected[hit.id], rel=TOLERANCE, abs=TOLERANCE)


def test_everything_is_one_request(tmp_path: Path) -> None:
    """An explanation takes one request, and its branches request only ids and scores."""
    double = GrpcDouble(tmp_path)
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port)
    store.ensure(COLLECTION, WIDE)
    drafts = [draft(i, vectors=sample_vectors(i, size=WIDE_SIZE)) for i in range(9)]
    assert write(store, COLLECTION, drafts, WIDE).stored == 9
    before = len(double.calls)
    explained(store, search_of(5, rerank="colbert"))
    assert double.calls[before:] == ["QueryBatch"]
    first, *branches = double.queries[0].query_points
    assert set(first.with_vectors.include.names) == {"sparse", "colbert"}
    for branch in branches:
        assert not branch.with_payload.enable
        assert not branch.with_vectors.include.names
    store.close()
    double.stop()


def test_weights_divide_ranks_in_the_explanation_too(filled: Store) -> None:
    """The contribution of a branch is 1 / (rrfK + rank / weight)."""
    search = search_of(31, weights=(3.0, 0.5), rrf_k=5, limit=30)
    explanations = explained(filled, search)
    assert any(why.branches["sparse"] is None for _, why in explanations)
    for hit, why in explanations:
        assert why.fusion is not None
        dense, sparse = why.branches["dense"], why.branches["sparse"]
        assert why.fusion["dense"] == (0.0 if dense is None else 1 / (5 + dense.rank / 3.0))
        assert why.fusion["sparse"] == (0.0 if sparse is None else 1 / (5 + sparse.rank / 0.5))
        assert sum(why.fusion.values()) == pytest.approx(hit.score, abs=1e-6)


@pytest.mark.parametrize("fields", [{}, {"fusion": "dbsf"}, {"rerank": "colbert"}, {"using": ("dense",)}])
def test_hits_from_far_down_are_explained(filled: Store, fields: dict[str, Any]) -> None:
    """A grouped search that goes deeper than `prefetch` explains its hits by their ranks."""
    where = {"must_not": [{"has_id": [i for i in VECTORS if isinstance(i, int) and i % 2 and i != 59]}]}
    deep = 0
    for seed in range(300, 310):  # exactly one point has odd parity, at any rank
        search = search_of(seed, group_by="parity", limit=2, prefetch=1, where=where, **fields)
        for hit, why in explained(filled, search):
            ranks = [rank.rank for rank in why.branches.values() if rank]
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
    """The text is fetched for the explanation although the hits do not contain it."""
    store.ensure(collection, WIDE)
    point = draft(1, vectors=sample_vectors(1, size=WIDE_SIZE), payload={key: "a text", "topic": "b"})
    assert write(store, collection, [point], WIDE).stored == 1
    if isinstance(selection, PayloadKeys):
        keys = tuple(f'"{key}"' if name == "key" else name for name in selection.keys)
        selection = PayloadKeys(keys, excluded=selection.excluded)
    search = search_of(1, with_payload=selection, using=("dense",))
    [result] = explain(store, collection, [search], text_key=key)
    [payload] = result.payloads
    assert payload is not None
    assert payload[key] == "a text"
    [hit] = result.hits
    assert hit.payload is None if kept is None else hit.payload is not None
    if hit.payload is not None:
        assert set(hit.payload) == {key if name == "key" else name for name in kept}


def test_a_query_without_weights_has_no_sparse_part(filled: Store) -> None:
    """The sparse branch of a query without weights has no ranks and no contributions."""
    search = search_of(31)
    search = replace(search, vectors=replace(search.vectors, sparse=None))
    for hit, why in explained(filled, search):
        assert why.sparse is None
        assert why.branches["sparse"] is None
        assert why.fusion is not None
        assert why.fusion["sparse"] == 0.0
        assert sum(why.fusion.values()) == pytest.approx(hit.score, abs=1e-6)
    lonely = search.with_options(using=("sparse",))
    assert explained(filled, lonely) == []


def hits_of(*pairs: tuple[PointId, float]) -> list[Hit]:
    """Create hits with these ids and scores."""
    return [Hit(point_id, score) for point_id, score in pairs]


def test_among_equal_scores_the_fused_one_decides() -> None:
    """Points with equal scores in a branch are explained by the ranks that add up to their fused scores."""
    inquiry = Inquiry.of(search_of(31))
    fused: Mapping[PointId, float] = rrf([[1, 2], [2, 1]], 60, (1.0, 1.0))
    answers = [hits_of(*fused.items()), hits_of((1, 0.5), (2, 0.5)), hits_of((1, 3.0), (2, 3.0))]
    for hit, why in zip(answers[0], inquiry.explain(answers), strict=True):
        assert why.fusion is not None, "1/61 + 1/62, not twice 1/61"
        assert sum(why.fusion.values()) == pytest.approx(hit.score)
        ranks = [rank.rank for rank in why.branches.values() if rank]
        assert sorted(ranks) == [1, 2]


def test_contributions_that_do_not_add_up_are_left_out() -> None:
    """If the collection changed during a request, an explanation has ranks but no contributions."""
    inquiry = Inquiry.of(search_of(31))
    answers = [hits_of((1, 1 / 61 + 1 / 70)), hits_of((1, 0.9)), hits_of((2, 3.0), (1, 2.0))]
    (why,) = inquiry.explain(answers)
    assert why.fusion is None
    assert why.branches == {"dense": BranchRank(1, 0.9), "sparse": BranchRank(2, 2.0)}


def test_the_number_of_tried_ties_is_limited() -> None:
    """With a thousand equal scores in three branches, the combinations are not tried."""
    inquiry = Inquiry.of(search_of(31, using=("dense", "sparse", "colbert")))
    same = hits_of(*((i, 1.0) for i in range(1000)))
    explanations = inquiry.explain([same[:3], same, same, same])
    assert [why.branches["dense"] for why in explanations] == [BranchRank(n, 1.0) for n in (1, 2, 3)]
    assert all(why.fusion is None for why in explanations)


weights = st.dictionaries(st.integers(0, 12), st.floats(2**-10, 1.0, width=32), max_size=10).map(
    lambda by_index: SparseVector(
        np.array(sorted(by_index), np.uint32), np.array([by_index[i] for i in sorted(by_index)], np.float32)
    )
)


@given(query=weights, passage=weights)
def test_token_matches_are_the_common_tokens(query: SparseVector, passage: SparseVector) -> None:
    """The matches of two sparse vectors are their common ids and add up to the inner product."""
    query_weights, passage_weights = (
        dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True)) for vector in (query, passage)
    )
    matches = token_matches(query, passage)
    assert {match.id for match in matches} == query_weights.keys() & passage_weights.keys()
    assert len({match.id for match in matches}) == len(matches)
    assert sum(match.contribution or 0.0 for match in matches) == pytest.approx(
        sum(value * passage_weights.get(i, 0.0) for i, value in query_weights.items())
    )


@given(rows=st.integers(1, 5), others=st.integers(1, 5), seed=st.integers(0, 1000))
def test_row_matches_are_the_nearest_rows(rows: int, others: int, seed: int) -> None:
    """Every row of the query is matched with the nearest row of the passage."""
    query, passage = sample_vectors(seed, rows=rows).colbert, sample_vectors(seed + 1, rows=others).colbert
    assert query is not None
    assert passage is not None
    matches: Sequence[Any] = row_matches(query, passage)
    assert len(matches) == rows
    for row, match in zip(query, matches, strict=True):
        assert match.score == pytest.approx(float((passage @ row).max()), abs=1e-6)
        assert match.score == pytest.approx(float(passage[match.row] @ row), abs=1e-6)
