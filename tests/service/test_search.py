"""`search`, `count` and `delete` over a stored corpus, against numpy on the same vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import corpus
from embedder import Embedder, Embedding, SparseVector
from qdrant_sink import PointId
from qdrant_sink.edge import EdgeStore
from qdrant_sink.searching.plan import Fuse, Lacking, Nearest
from qdrant_sink.searching.planning import TIE_MARGIN_HITS
from qdrant_sink.server import ServerStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, PATIENCE, Client, Json, unpacked, until
from tests.service.conftest import Serve
from tests.service.doubles import FailingStore, WatchedStore
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import Reference, dbsf, ranked, rrf

NOTES = "notes"
QUERIES = ("send only what changed to a remote machine", "relational database server", "record and edit sound")
DEPTH = 8


@dataclass(frozen=True)
class Query:
    """The three kinds of vectors of a query."""

    dense: NDArray[Any]
    sparse: SparseVector
    colbert: NDArray[Any]
    tokens: int


@dataclass(frozen=True)
class Library:
    """The bundled corpus in a store, and the vectors of its passages and of `QUERIES`."""

    worker: Client
    passages: Sequence[corpus.Passage]
    reference: Reference
    queries: Sequence[Query]

    def hits(self, **fields: Any) -> list[list[Json]]:
        """The hits of each of `QUERIES`."""
        raw = {"operation": "search", "collection": NOTES, "queries": list(QUERIES), "limit": DEPTH, **fields}
        return [result["hits"] for result in self.worker.good(raw)["results"]]


@pytest.fixture(scope="module", params=["edge", "server"])
def library(
    embedder: Embedder, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Library]:
    """Every passage stored under its number, in Qdrant Edge and behind the loopback server."""
    root = tmp_path_factory.mktemp("library")
    double = GrpcDouble(root) if request.param == "server" else None
    store = EdgeStore(root) if double is None else ServerStore("http://127.0.0.1:9", grpc_port=double.port)
    worker = Client(Operations(Settings.from_environment({**ENVIRONMENT, "MAX_RESPONSE_MB": "50"}), embedder, store))
    passages = corpus.passages()
    answer = worker.good(
        {
            "texts": [passage.text for passage in passages],
            "isPassage": True,
            "returnVectors": True,
            "encoding": "base64",
            "qdrant": {
                "collection": NOTES,
                "ids": list(range(len(passages))),
                "payloads": [{"topic": passage.topic, "number": n} for n, passage in enumerate(passages)],
            },
        }
    )
    assert answer["upsert"]["stored"] == len(passages)
    vectors: dict[PointId, Embedding] = {n: passage_of(result) for n, result in enumerate(answer["results"])}
    queries = [query_of(result) for result in worker.good({"texts": list(QUERIES), "encoding": "base64"})["results"]]
    yield Library(worker, passages, Reference(vectors), queries)
    store.close()
    if double is not None:
        double.stop()


def query_of(result: Mapping[str, Any]) -> Query:
    """A base64 result of the wire as numpy values."""
    sparse = SparseVector(
        np.array(result["sparse"]["indices"], np.uint32), np.array(result["sparse"]["values"], np.float32)
    )
    return Query(unpacked(result["dense"]), sparse, unpacked(result["colbert"]), result["tokens"])


def passage_of(result: Mapping[str, Any]) -> Embedding:
    """A base64 result of the wire as an embedding."""
    vectors = query_of(result)
    return Embedding(vectors.dense, vectors.sparse, vectors.colbert, vectors.tokens, truncated=result["truncated"])


def assert_ranked(hits: Sequence[Json], scores: Mapping[PointId, float], tolerance: float) -> None:
    """The hits are the best of `scores`, in their order, to rounding."""
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    best = ranked(scores, len(hits))
    for hit, wanted in zip(hits, best, strict=True):
        assert hit["score"] == pytest.approx(scores[hit["id"]], abs=tolerance)
        assert scores[hit["id"]] == pytest.approx(scores[wanted], abs=tolerance)


def test_dense_hits_are_ordered_by_cosine(library: Library) -> None:
    """`using: ["dense"]` finds what numpy finds on the same vectors, with the cosine as the score."""
    for hits, query in zip(library.hits(using=["dense"]), library.queries, strict=True):
        assert len(hits) == DEPTH
        assert_ranked(hits, library.reference.dense(query.dense), 1e-5)


def test_sparse_hits_are_ordered_by_inner_product(library: Library) -> None:
    """`using: ["sparse"]` finds what shares tokens, by the sum of the products of their weights."""
    for hits, query in zip(library.hits(using=["sparse"]), library.queries, strict=True):
        assert_ranked(hits, library.reference.sparse(query.sparse), 1e-4)


def test_colbert_can_be_a_branch(library: Library) -> None:
    """`using: ["colbert"]` compares with every passage by MaxSim, a sum over the query's tokens."""
    for hits, query in zip(library.hits(using=["colbert"]), library.queries, strict=True):
        assert_ranked(hits, library.reference.colbert(query.colbert), 0.02)


@pytest.mark.parametrize(
    ("fields", "k", "weights"),
    [({}, 60, (1, 1)), ({"rrfK": 2}, 2, (1, 1)), ({"rrfK": 5, "weights": [3, 0.5]}, 5, (3, 0.5))],
)
def test_the_default_search_fuses_dense_and_sparse_by_rank(
    library: Library, fields: Json, k: int, weights: Sequence[float]
) -> None:
    """A point at rank r of a branch of weight w scores 1 / (rrfK + r / w), summed over the branches."""
    for hits, query in zip(library.hits(**fields), library.queries, strict=True):
        branches = [
            ranked(library.reference.dense(query.dense), 100),
            ranked(library.reference.sparse(query.sparse), 100),
        ]
        assert_ranked(hits, rrf(branches, k, weights), 1e-4)


def test_dbsf_fuses_scores_instead(library: Library) -> None:
    """`fusion: "dbsf"` adds scores scaled to the mean ± 3 deviations of their branch's candidates, and not ranks."""
    for hits, query in zip(library.hits(fusion="dbsf"), library.queries, strict=True):
        every = [library.reference.dense(query.dense), library.reference.sparse(query.sparse)]
        branches = [{i: scores[i] for i in ranked(scores, 100)} for scores in every]
        assert_ranked(hits, dbsf(branches), 1e-3)


def test_rerank_orders_all_candidates_by_maxsim(library: Library) -> None:
    """With enough candidates, `rerank: "colbert"` finds what MaxSim over everything would."""
    hits_of_each = library.hits(rerank="colbert", prefetch=len(library.passages))
    for hits, query in zip(hits_of_each, library.queries, strict=True):
        assert_ranked(hits, library.reference.colbert(query.colbert), 0.02)


def test_rerank_chooses_from_the_union_of_the_branches(library: Library) -> None:
    """With one candidate per branch, the one with the better MaxSim comes first."""
    hits = library.hits(rerank="colbert", prefetch=1, limit=1)
    for (hit,), query in zip(hits, library.queries, strict=True):
        candidates = [
            ranked(library.reference.dense(query.dense), 1)[0],
            ranked(library.reference.sparse(query.sparse), 1)[0],
        ]
        scores = library.reference.colbert(query.colbert)
        assert hit["id"] == max(candidates, key=lambda point_id: scores[point_id])


def test_points_without_rows_follow_those_with_rows(serve: Serve) -> None:
    """A point that was stored without ColBERT rows is found by `rerank`, last, without a score, and counted."""
    worker = serve()
    texts = ["rsync copies changed parts", "an editor for images"]
    worker.good({"texts": texts[:1], "vectors": ["dense", "sparse"], "qdrant": {"collection": "mixed", "ids": [1]}})
    worker.good({"texts": texts[1:], "qdrant": {"collection": "mixed", "ids": [2]}})
    search = {"operation": "search", "collection": "mixed", "queries": texts[:1], "rerank": "colbert"}
    (result,) = worker.good(search)["results"]
    assert [(hit["id"], hit["score"] is None) for hit in result["hits"]] == [(2, False), (1, True)]
    assert result["hits"][1]["payload"] == {"text": texts[0]}
    assert result["unranked"] == 1
    (cut,) = worker.good({**search, "scoreThreshold": -100})["results"]
    assert ([hit["id"] for hit in cut["hits"]], cut["unranked"]) == ([2], 1)
    (explained,) = worker.good({**search, "explain": True})["results"]
    why = explained["hits"][1]["explain"]
    assert (why["branches"]["dense"]["rank"], why["colbert"], explained["unranked"]) == (1, None, 1)
    (fused,) = worker.good({"operation": "search", "collection": "mixed", "queries": texts[:1]})["results"]
    assert [hit["id"] for hit in fused["hits"]] == [1, 2]
    assert "unranked" not in fused


@pytest.mark.parametrize("fields", [{}, {"using": ["dense"]}, {"rerank": "colbert"}, {"fusion": "dbsf"}])
def test_pages_follow_one_another(library: Library, fields: Json) -> None:
    """`offset` and `limit` cut the one ranking into pages without gap or repetition."""
    whole = library.hits(**fields, prefetch=len(library.passages))
    pages = [library.hits(**fields, prefetch=len(library.passages), limit=3, offset=offset) for offset in (0, 3)]
    for n, hits in enumerate(whole):
        paged = [hit["id"] for page in pages for hit in page[n]]
        assert paged == [hit["id"] for hit in hits[:6]]


@pytest.mark.parametrize("fields", [{}, {"using": ["sparse"]}, {"rerank": "colbert"}, {"fusion": "dbsf"}])
def test_a_filter_holds_in_every_branch(library: Library, fields: Json) -> None:
    """Only matching points are candidates, so a strict filter never leaves too few hits."""
    topic = library.passages[0].topic
    matching = {n for n, passage in enumerate(library.passages) if passage.topic == topic}
    condition = {"must": [{"key": "topic", "match": {"value": topic}}]}
    for hits in library.hits(**fields, filter=condition, limit=100):
        ids = {hit["id"] for hit in hits}
        assert ids <= matching
        assert "sparse" in fields.get("using", []) or ids == matching


def test_a_score_threshold_is_of_the_final_score(library: Library) -> None:
    """Hits below `scoreThreshold` are left out, whichever stage gives the score."""
    for fields in ({"using": ["dense"]}, {"rerank": "colbert"}):
        for everything in library.hits(**fields):
            threshold = everything[2]["score"] - 1e-4
            first = library.worker.good(
                {
                    "operation": "search",
                    "collection": NOTES,
                    "queries": list(QUERIES),
                    "limit": DEPTH,
                    "scoreThreshold": threshold,
                    **fields,
                }
            )["results"]
            kept = next(result["hits"] for result in first if result["hits"][:1] == everything[:1])
            assert kept == [hit for hit in everything if hit["score"] >= threshold]


def test_hits_carry_what_was_asked_for(library: Library) -> None:
    """Payloads by default, vectors on request, and neither where both are declined."""
    default = library.hits(limit=1)[0][0]
    assert set(default) == {"id", "score", "payload"}
    passage = library.passages[default["id"]]
    assert default["payload"] == {"topic": passage.topic, "number": default["id"], "text": passage.text}
    assert set(library.hits(limit=1, withPayload=False)[0][0]) == {"id", "score"}
    full = library.hits(limit=1, withVectors=True)[0][0]
    assert set(full["vectors"]) == {"dense", "sparse", "colbert"}
    assert len(full["vectors"]["dense"]) == 192


def test_a_search_asks_the_store_for_what_it_says(serve: Serve, tmp_path: Path) -> None:
    """Every field of a search reaches the store, whether or not it changes the hits of so few points.

    A query without sparse weights has no sparse branch, and the weights of the others stay theirs.
    """
    store = WatchedStore(tmp_path / "watched")
    worker = serve(store=store)
    worker.good({"texts": ["one", "two"], "qdrant": {"collection": NOTES}})
    fields: Json = {
        "limit": 3,
        "offset": 1,
        "using": ["sparse", "colbert"],
        "rrfK": 7,
        "weights": [2.0, 1.0],
        "prefetch": 50,
        "scoreThreshold": 0.001,
        "filter": {"must_not": [{"has_id": [1]}]},
        "params": {"hnswEf": 77, "exact": True},
        "withPayload": False,
    }
    worker.good({"operation": "search", "collection": NOTES, "queries": ["one", ""], **fields})
    assert len(store.plans) == 4  # a later page requests the first page, whose hits it leaves out, and all candidates
    for plan, branches in zip(store.plans[::2], ({"sparse": 2.0, "colbert": 1.0}, {"colbert": 1.0}), strict=True):
        assert [(branch.query.kind, branch.limit) for branch in plan.branches] == [(kind, 50) for kind in branches]
        assert plan.query == Fuse("rrf", 7 + 1, tuple(branches.values()))
        assert (plan.limit, plan.offset) == (3 + TIE_MARGIN_HITS, 0)
        assert (plan.score_threshold, plan.where) == (0.001, fields["filter"])
        assert (plan.traversal.hnsw_ef, plan.traversal.exact) == (77, True)
        assert (plan.with_payload, plan.with_vectors) == (False, ())
    store.plans.clear()
    worker.good({"operation": "search", "collection": NOTES, "queries": ["one"], "rerank": "colbert"})
    plan, selection = store.plans
    assert isinstance(plan.query, Nearest)
    assert (plan.query.kind, plan.limit, plan.offset) == ("colbert", 10 + TIE_MARGIN_HITS, 0)
    assert selection.query == Lacking("colbert", Fuse("rrf", 60 + 1, None), 200, ascending=False)
    for part in (plan, selection):
        assert [branch.query.kind for branch in part.branches] == ["dense", "sparse"]
    store.close()


def test_a_store_that_hangs_does_not_keep_texts_from_being_embedded(serve: Serve, tmp_path: Path) -> None:
    """A job that does not need the store is answered, however many searches wait for it."""
    store = WatchedStore(tmp_path / "hanging")
    worker = serve(store=store)
    worker.good({"texts": ["one"], "qdrant": {"collection": NOTES}})

    async def body() -> None:
        store.gate.clear()
        search = {"operation": "search", "collection": NOTES, "queries": ["one"]}
        hanging = [asyncio.create_task(worker.answer(search)) for _ in range(40)]
        await until(lambda: bool(store.plans))
        async with asyncio.timeout(PATIENCE / 2):
            embedded = await worker.answer({"texts": ["two"]})
        assert "results" in embedded
        assert not any(task.done() for task in hanging)
        store.gate.set()
        for answer in await asyncio.gather(*hanging):
            assert len(answer["results"][0]["hits"]) == 1

    asyncio.run(body())
    store.close()


def test_queries_of_one_job_do_not_affect_each_other(library: Library) -> None:
    """A job of several queries answers each as if it were alone."""
    together = library.hits()
    for n, query in enumerate(QUERIES):
        raw = {"operation": "search", "collection": NOTES, "queries": [query], "limit": DEPTH}
        (alone,) = library.worker.good(raw)["results"]
        assert [hit["id"] for hit in alone["hits"]] == [hit["id"] for hit in together[n]]


def test_a_search_reports_its_tokens_and_model(library: Library) -> None:
    """`usage.tokens` counts the tokens of the queries, and `model` names the model."""
    answer = library.worker.good({"operation": "search", "collection": NOTES, "queries": list(QUERIES)})
    assert set(answer) == {"results", "usage", "model"}
    assert answer["usage"]["tokens"] == sum(query.tokens for query in library.queries)
    assert answer["model"] == "mini"


def test_a_query_without_sparse_weights_is_answered_by_the_other_branch(library: Library) -> None:
    """An empty query has no tokens to match; its dense branch still answers."""
    raw = {"operation": "search", "collection": NOTES, "queries": ["", "</s><pad>"], "limit": DEPTH}
    for result in library.worker.good(raw)["results"]:
        assert len(result["hits"]) == DEPTH
    reranked = library.worker.good({**raw, "rerank": "colbert"})["results"]
    assert all(len(result["hits"]) == DEPTH for result in reranked)
    alone = library.worker.good({**raw, "using": ["sparse"]})["results"]
    assert [result["hits"] for result in alone] == [[], []]


@pytest.mark.parametrize("queries", [["relational"], [""]])
@pytest.mark.parametrize(
    ("condition", "path"),
    [
        ({"must": [{"key": "topic", "match": {"valeu": "x"}}]}, "filter.must[0].match"),
        ({"must": [{"key": "topic"}]}, "filter.must[0]"),
        ({"musst": []}, "filter"),
        ({"must": [{"key": "topic", "match": {"value": "\ud800"}}]}, "filter.must[0].match.value"),
        ({"should": [{"has_id": [-1]}]}, "filter.should[0].has_id[0]"),
    ],
)
def test_an_invalid_filter_names_the_path(library: Library, queries: list[str], condition: Json, path: str) -> None:
    """An invalid condition is an error, even if no branch would have used it."""
    raw = {"operation": "search", "collection": NOTES, "queries": queries, "using": ["sparse"], "filter": condition}
    assert library.worker.error(raw, "invalid_request")["error"].startswith(path)
    count = {"operation": "count", "collection": NOTES, "filter": condition}
    assert library.worker.error(count, "invalid_request")["error"].startswith(path)


def test_count_counts_what_matches(library: Library) -> None:
    """Without a filter all points are counted, with a filter the matching ones."""
    count = {"operation": "count", "collection": NOTES}
    assert library.worker.good(count) == {"count": len(library.passages)}
    assert library.worker.good({**count, "filter": {}}) == {"count": len(library.passages)}
    below = {"must": [{"key": "number", "range": {"lt": 7}}]}
    assert library.worker.good({**count, "filter": below}) == {"count": 7}


def test_an_answer_of_hits_can_be_too_large(serve: Serve) -> None:
    """Hits with their vectors are measured like any other answer."""
    worker = serve(MAX_RESPONSE_MB="0.02")
    worker.good({"texts": ["word " * 200], "qdrant": {"collection": NOTES}})
    raw = {"operation": "search", "collection": NOTES, "queries": ["word"]}
    worker.error({**raw, "withVectors": True}, "response_too_large")
    assert len(worker.good(raw)["results"][0]["hits"]) == 1


@pytest.mark.parametrize(
    "raw",
    [
        {"operation": "search", "queries": ["a"], "collection": NOTES},
        {"operation": "count", "collection": NOTES},
        {"operation": "delete", "ids": [1], "collection": NOTES},
    ],
)
def test_a_store_that_does_not_answer_is_a_retryable_error(serve: Serve, store: EdgeStore, raw: Json) -> None:
    """An operation on a store that does not answer fails with `store_unavailable`, which is retryable."""
    answer = serve(store=FailingStore(store, None)).error(raw, "store_unavailable")
    assert answer["retryable"] is True


def test_points_are_deleted_by_their_ids(worker: Client) -> None:
    """Ids of every kind are accepted as the caller gave them, and the answer counts existing points."""
    own = "6f2b1c0e-8d3a-5b47-9c61-0f7e4a92d815"
    ids: list[Any] = [1, "one", own]
    worker.good({"texts": ["a", "b", "c"], "qdrant": {"collection": NOTES, "ids": ids}})
    delete = {"operation": "delete", "collection": NOTES}
    assert worker.good({**delete, "ids": ["one", "one", 99]}) == {"deleted": 1}
    assert worker.good({**delete, "ids": [1, own.upper()]}) == {"deleted": 2}
    assert worker.good({"operation": "count", "collection": NOTES}) == {"count": 0}


def test_points_are_deleted_by_a_filter_with_a_condition(worker: Client) -> None:
    """Matching points are deleted; a filter without a condition is an error, since it would match every point."""
    payloads = [{"old": n < 2} for n in range(3)]
    worker.good({"texts": ["a", "b", "c"], "qdrant": {"collection": NOTES, "payloads": payloads}})
    delete = {"operation": "delete", "collection": NOTES}
    empties: list[Json] = [{}, {"must": []}, {"must": None}, {"must": [{"should": []}]}, {"must_not": []}]
    for empty in empties:
        refused = worker.error({**delete, "filter": empty}, "invalid_request")
        assert refused["error"] == "filter must have at least one condition to delete by, got none"
        assert refused["details"]["errors"][0]["field"] == "filter"
    old = {"must": [{"key": "old", "match": {"value": True}}]}
    assert worker.good({**delete, "filter": old}) == {"deleted": 2}
    assert worker.good({"operation": "count", "collection": NOTES}) == {"count": 1}
