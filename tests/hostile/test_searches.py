"""Searches and filters are bounded before the work, and end with their caller."""

from __future__ import annotations

import asyncio
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import qdrant_edge as edge

from embedder import Cancelled
from embedder.cancellation import Cancellation
from embedder.errors import InvalidRequest
from embedder.vectors import SparseVector
from qdrant_sink.edge import EdgeStore, filter_measurement, models, searches, slices
from qdrant_sink.edge.collection import EdgeCollection
from qdrant_sink.edge.filter_rates import FilterRates, FilterTime
from qdrant_sink.edge.filters import edge_filter
from qdrant_sink.edge.work import CALL_S, PairRate
from qdrant_sink.filter_size import CONDITIONS_MAX, FILTER_MAX_BYTES, TEXT_CHARACTERS_MAX, VALUES_MAX
from qdrant_sink.filter_values import KEY_CHARACTERS_MAX, POLYGON_POINTS_MAX
from qdrant_sink.filters import parse_filter
from qdrant_sink.points import Draft, Stored
from qdrant_sink.searching import Hit, PartReader, PartSizes, Plan, Search, pages, run, search_pages
from qdrant_sink.searching.reading import INLINE_MAX_HITS, PORTION_FIRST_POINTS, PORTION_MAX_BYTES, PORTION_MAX_POINTS
from qdrant_sink.searching.run import BATCH_MAX_FILTER_BYTES
from qdrant_sink.server.models import client_filter
from tests.service.client import Client, Json
from tests.service.conftest import Serve
from tests.sink.samples import SCHEMA, SIZE, job, sample_vectors, search_by, unit
from tests.sink.writing import write

NOTES: Final = "notes"
SEARCH: Final[Json] = {"operation": "search", "collection": NOTES}
COUNT: Final[Json] = {"operation": "count", "collection": NOTES}
POINTS: Final[Json] = {"operation": "points", "collection": NOTES}
LIMIT_MB: Final = 0.05


class Counted(EdgeStore):
    """Qdrant Edge that records its calls.

    Attributes:
        asked: number of points of each call that reads points.
        plans: the plans of each call that searches.
        seen: called with each search.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked: list[int] = []
        self.plans: list[Sequence[Plan]] = []
        self.seen: Any = lambda: None

    @property
    def calls(self) -> int:
        """Number of calls that search or read points."""
        return len(self.asked) + len(self.plans)

    def query(self, collection: str, plans: Sequence[Plan]) -> list[list[Hit]]:
        """See `Store.query`."""
        self.plans.append(plans)
        self.seen()
        return super().query(collection, plans)

    def fetch(self, collection: str, ids: Sequence[Any], *selection: Any, **names: Any) -> dict[Any, Stored]:
        """See `Store.fetch`."""
        self.asked.append(len(ids))
        return super().fetch(collection, ids, *selection, **names)

    def forget(self) -> None:
        """Forget the calls."""
        self.asked, self.plans = [], []


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[Counted]:
    """A store that records its calls."""
    store = Counted(tmp_path / "counted")
    yield store
    store.close()


@pytest.fixture
def notes(serve: Serve, counted: Counted) -> Client:
    """A worker with 100 points of small payloads, and answers of at most 50 kB."""
    client = serve(store=counted, MAX_RESPONSE_MB=str(LIMIT_MB))
    texts = [f"note {n}" for n in range(100)]
    client.good({"texts": texts, "includeText": False, "qdrant": {"collection": NOTES, "ids": list(range(100))}})
    client.good({**SEARCH, "queries": ["note"], "limit": 1})
    counted.forget()
    return client


def _fill(store: EdgeStore, drafts: Sequence[Draft]) -> None:
    store.ensure("docs", SCHEMA)
    write(store, "docs", drafts, SCHEMA)


def any_of(values: Sequence[Any]) -> Json:
    """A filter by several values of one key."""
    return {"must": [{"key": "a", "match": {"any": list(values)}}]}


def words(name: str, characters: int) -> Json:
    """A filter by words."""
    return {"must": [{"key": "a", "match": {name: "x" * characters}}]}


def ring(points: int) -> Json:
    """A closed ring of so many points."""
    corners = [{"lon": (i % 90) / 2, "lat": (i % 80) / 2} for i in range(points - 1)]
    return {"points": [*corners, corners[0]]}


TOO_LARGE: Final[list[tuple[Json, str]]] = [
    ({"should": [{"key": "a", "match": {"value": 1}}] * (CONDITIONS_MAX + 1)}, f"at most {CONDITIONS_MAX} conditions"),
    (
        {"must": [{"nested": {"key": "a", "filter": {"should": [{"key": "b", "match": {"value": 1}}] * 200}}}] * 6},
        f"at most {CONDITIONS_MAX} conditions",
    ),
    (any_of(range(VALUES_MAX + 1)), f"at most {VALUES_MAX} values"),
    ({"must": [{"has_id": list(range(VALUES_MAX + 1))}]}, f"at most {VALUES_MAX} values"),
    (any_of(["x" * FILTER_MAX_BYTES]), f"at most {FILTER_MAX_BYTES} bytes"),
    ({"must": [{"x" * FILTER_MAX_BYTES: 1}]}, f"at most {FILTER_MAX_BYTES} bytes"),
    *(
        (words(name, TEXT_CHARACTERS_MAX + 1), f"at most {TEXT_CHARACTERS_MAX} characters")
        for name in ("text", "text_any", "phrase", "prefix", "substring")
    ),
    (
        {"should": [{"key": "a", "match": {"text": "x" * 100}}] * (TEXT_CHARACTERS_MAX // 100 + 1)},
        f"at most {TEXT_CHARACTERS_MAX} characters",
    ),
    ({"must": [{"key": "a" * (KEY_CHARACTERS_MAX + 1), "match": {"value": 1}}]}, f"at most {KEY_CHARACTERS_MAX} char"),
    (
        {"must": [{"key": "a", "geo_polygon": {"exterior": ring(POLYGON_POINTS_MAX), "interiors": [ring(4)]}}]},
        f"at most {POLYGON_POINTS_MAX} points",
    ),
]


@pytest.mark.parametrize(("where", "limit"), TOO_LARGE)
def test_a_filter_that_is_too_large_is_refused_before_any_call(
    serve: Serve, counted: Counted, where: Json, limit: str
) -> None:
    """Each limit of a filter is named, with the value and a way out, and the store is not called."""
    worker = serve(store=counted)
    for request in ({**SEARCH, "queries": ["note"]}, COUNT, {**COUNT, "operation": "delete"}, POINTS):
        answer = worker.error({**request, "filter": where}, "invalid_request")
        assert limit in answer["error"]
        assert "got" in answer["error"]
        assert len(answer["error"]) < 500
    assert counted.calls == 0


def test_filters_of_real_use_pass(notes: Client) -> None:
    """Ten thousand ids, a thousand conditions and a paragraph of words are filters like any other."""
    ids = [str(uuid.UUID(int=n)) for n in range(10_000)]
    assert notes.good({**COUNT, "filter": {"must": [{"has_id": [*ids, 1, 2]}]}})["count"] == 2
    either = {"should": [{"key": "text", "match": {"value": f"note {n}"}} for n in range(CONDITIONS_MAX)]}
    assert notes.good({**COUNT, "filter": either})["count"] == 100
    paragraph = {"must_not": [{"key": "text", "match": {"phrase": "word " * 800}}]}
    assert notes.good({**COUNT, "filter": paragraph})["count"] == 100


def test_a_filter_times_its_queries_is_bounded(notes: Client, counted: Counted) -> None:
    """Two limits that each hold are refused where their product is too large, with the numbers of the product."""
    where = any_of([f"{n:0100d}" for n in range(9_000)])
    request = {**SEARCH, "queries": ["note"] * 40, "filter": where}
    answer = notes.error(request, "invalid_request")
    assert "queries x branches x size" in answer["error"]
    assert "40 x 900016" in answer["error"]
    assert counted.calls == 0


def test_a_filter_is_converted_once_for_all_queries(monkeypatch: pytest.MonkeyPatch, counted: Counted) -> None:
    """A filter is parsed and converted once per request, and a batch has few copies of a large one."""
    _fill(counted, job(5))
    conversions: list[int] = []
    monkeypatch.setattr(edge, "HasIdCondition", _recorded(edge.HasIdCondition, conversions))
    where = {"must": [{"has_id": [str(uuid.UUID(int=n)) for n in range(20_000)]}]}
    shared = search_by(**_vectors(0), limit=1, where=where)
    several = [search_by(**_vectors(n), limit=1, where=shared.options.where) for n in range(5)]
    run(counted, "docs", several)
    assert len(conversions) == 1
    assert sum(map(len, counted.plans)) == 5
    size = parse_filter(shared.options.where).size_bytes
    assert all(len(plans) * 2 * size <= BATCH_MAX_FILTER_BYTES for plans in counted.plans)
    assert len(counted.plans) == 3, "two queries with two branches fit into a batch"
    parsed = parse_filter(where)
    assert parse_filter(parsed) is parsed
    assert client_filter(parsed) is client_filter(parsed)
    assert edge_filter(parsed) is edge_filter(parsed)


def _recorded(call: Any, conversions: list[int]) -> Any:
    def recorded(ids: Any) -> Any:
        if len(ids) > 1000:  # those of the filter
            conversions.append(1)
        return call(ids)

    return recorded


def _vectors(seed: int) -> dict[str, Any]:
    vectors = sample_vectors(seed)
    return {"dense": vectors.dense, "sparse": vectors.sparse, "colbert": vectors.colbert}


@pytest.mark.parametrize("fields", [{}, {"using": ["dense"]}, {"rerank": "colbert"}, {"offset": 10}])
def test_vectors_that_cannot_fit_are_refused_before_the_search(notes: Client, counted: Counted, fields: Json) -> None:
    """Where the collection has as many points as are asked for, their vectors are counted and not read."""
    answer = notes.error(
        {**SEARCH, "queries": ["note"], "limit": 10_000, "withVectors": True, **fields}, "response_too_large"
    )
    assert answer["details"]["limit"] == LIMIT_MB * 1e6
    assert counted.calls == 0


def test_a_large_limit_over_few_points_passes(serve: Serve) -> None:
    """What a limit allows and the collection does not have is no reason to refuse a search."""
    worker = serve()
    worker.good({"texts": ["one", "two"], "qdrant": {"collection": NOTES, "ids": [1, 2]}})
    answer = worker.good({**SEARCH, "queries": ["one"], "limit": 10_000, "withVectors": True})
    assert [hit["id"] for hit in answer["results"][0]["hits"]] == [1, 2]
    where = {"must": [{"has_id": [2]}]}
    answer = worker.good({**SEARCH, "queries": ["one"], "limit": 10_000, "withVectors": True, "filter": where})
    assert [hit["id"] for hit in answer["results"][0]["hits"]] == [2]


def test_large_payloads_are_read_in_portions_until_the_answer_is_too_large(serve: Serve, counted: Counted) -> None:
    """The first portion has few points, and what it shows ends the search before the others are read."""
    worker = serve(store=counted, MAX_RESPONSE_MB="1")
    payloads = [{"long": "x" * 300_000}] * 40
    texts = [f"note {n}" for n in range(40)]
    worker.good({"texts": texts, "includeText": False, "qdrant": {"collection": NOTES, "payloads": payloads}})
    counted.forget()
    for fields in ({"limit": 40}, {"limit": 40, "offset": 1}, {"limit": 40, "groupBy": "text"}):
        worker.error({**SEARCH, "queries": ["note"], **fields}, "response_too_large")
        assert max(counted.asked[-1:]) <= max(PORTION_FIRST_POINTS, PORTION_MAX_BYTES // 300_000)
        assert all(not plan.with_payload or plan.with_payload is not True for call in counted.plans for plan in call)
        counted.forget()
    assert len(worker.good({**SEARCH, "queries": ["note"], "limit": 3})["results"][0]["hits"]) == 3


def test_many_grouped_searches_end_with_the_one_that_is_too_much(
    notes: Client, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vectors of complete groups are read before the next queries are sent, so an answer too large ends early."""
    monkeypatch.setattr(sys.modules[search_pages.__module__], "BATCH_MAX_HITS", 100)
    monkeypatch.setattr(pages, "WAITING_MAX_HITS", 100)
    groups = {"groupBy": "text", "groupSize": 20, "limit": 100, "withVectors": True}
    notes.error({**SEARCH, "queries": ["note"] * 100, **groups}, "response_too_large")
    assert sum(map(len, counted.plans)) < 10
    assert sum(counted.asked) <= 2 * 100, "the keys of one search, and its vectors"


@pytest.mark.parametrize("fields", [{}, {"groupBy": "text", "groupSize": 20}])
def test_many_hits_without_parts_end_with_the_query_that_is_too_much(
    notes: Client, counted: Counted, monkeypatch: pytest.MonkeyPatch, fields: Json
) -> None:
    """Ids and scores count too: the last queries of a request are not sent once the answer is sure to be too large."""
    monkeypatch.setattr(sys.modules[search_pages.__module__], "BATCH_MAX_HITS", 100)
    hits = {"limit": 100, "withPayload": False, **fields}
    assert len(notes.good({**SEARCH, "queries": ["note"] * 5, **hits})["results"]) == 5
    counted.forget()
    notes.error({**SEARCH, "queries": ["note"] * 100, **hits}, "response_too_large")
    assert sum(map(len, counted.plans)) < 20


@pytest.mark.parametrize("fields", [{"group_by": "text"}, {"offset": 2}, {"rerank": "colbert", "offset": 1}])
def test_points_of_several_searches_are_read_once(
    counted: Counted, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """Parts that are read while later searches are under way are those of one read, and count for every occurrence."""
    _fill(counted, job(30))
    several = [search_by(**_vectors(seed), with_vectors=("dense",), limit=20, **fields) for seed in range(3)]
    admitted: list[list[tuple[int, int]]] = []
    results = []
    for waiting in (1024, 1):
        monkeypatch.setattr(pages, "WAITING_MAX_HITS", waiting)
        admitted.append([])
        counted.forget()
        reader = PartReader(PartSizes(), admit=lambda size, numbers: admitted[-1].append((size, numbers)))
        found = search_pages(counted, "docs", several, reader=reader)
        results.append([[(hit.id, hit.score, hit.payload, hit.group) for hit in page.hits] for page in found])
        keys = 3 * 30 if "group_by" in fields else 0
        assert sum(counted.asked) <= 30 + keys
    assert results[0] == results[1]
    assert admitted[0][-1] == admitted[1][-1]
    assert admitted[0][-1][1] == SIZE * sum(map(len, results[0]))


def test_a_small_search_is_one_call(notes: Client, counted: Counted) -> None:
    """Once the sizes of a collection are known, ten hits come with their payloads in one call."""
    for _ in range(3):
        notes.good({**SEARCH, "queries": ["note"]})
    assert len(counted.plans) == 3
    assert counted.asked == []


def test_many_hits_are_never_read_by_one_call(serve: Serve, counted: Counted) -> None:
    """However small the points were that were read before, a call reads few, so that larger ones end it early."""
    worker = serve(store=counted)
    worker.good({"texts": [f"note {n}" for n in range(300)], "includeText": False, "qdrant": {"collection": NOTES}})
    for _ in range(2):
        counted.forget()
        assert len(worker.good({**SEARCH, "queries": ["note"], "limit": 300})["results"][0]["hits"]) == 300
    assert max(counted.asked) <= PORTION_MAX_POINTS
    assert all(plan.with_payload is False for call in counted.plans for plan in call)
    assert INLINE_MAX_HITS < 300


def test_group_keys_of_any_size_are_read_in_portions(serve: Serve, counted: Counted) -> None:
    """A key of a megabyte by which hits are grouped is read from few points at a time."""
    worker = serve(store=counted)
    worker.operations.memory.total_bytes = 64_000_000
    payloads = [{"key": f"{n}" + "x" * 400_000} for n in range(60)]
    texts = [f"note {n}" for n in range(60)]
    for start in range(0, 60, 15):
        part = slice(start, start + 15)
        worker.good(
            {"texts": texts[part], "includeText": False, "qdrant": {"collection": NOTES, "payloads": payloads[part]}}
        )
    counted.forget()
    answer = worker.error({**SEARCH, "queries": ["note"], "groupBy": "key", "withPayload": False}, "invalid_request")
    assert "MEMORY_BUDGET_MB" in answer["error"]
    assert sum(counted.asked) < 60
    assert worker.operations.memory.reserved_bytes == 0


def test_a_search_whose_caller_has_gone_begins_nothing_new(serve: Serve, counted: Counted) -> None:
    """After the cancellation of a search its thread makes no further call, and the memory is given back."""
    worker = serve(store=counted)
    worker.good({"texts": [f"note {n}" for n in range(30)], "includeText": False, "qdrant": {"collection": NOTES}})
    counted.forget()
    entered, go_on = threading.Event(), threading.Event()

    def seen() -> None:
        entered.set()
        assert go_on.wait(30)

    counted.seen = seen

    async def leave() -> None:
        request = {**SEARCH, "queries": ["note"] * 3, "limit": 30, "withVectors": True}
        search = asyncio.create_task(worker.answer(request))
        while not entered.is_set():  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.001)
        search.cancel()
        with pytest.raises(asyncio.CancelledError):
            await search

    asyncio.run(leave())
    go_on.set()
    worker.operations._store.close()
    assert len(counted.plans) == 1
    assert counted.asked == []
    assert worker.operations.memory.reserved_bytes == 0


def test_portions_and_batches_end_with_their_caller(counted: Counted) -> None:
    """Reading, batches of queries and slices of a filter each look whether somebody still waits."""
    _fill(counted, job(5))
    with Cancellation() as cancellation:
        cancellation.cancel()
        with pytest.raises(Cancelled):
            run(counted, "docs", [search_by(**_vectors(0))])
        with pytest.raises(Cancelled):
            PartReader(PartSizes()).fetch(counted, "docs", {1: 1}, (True, (), SCHEMA.names))
    assert counted.calls == 0


class Slow(PairRate):
    """A rate by which every pair takes a call of its own."""

    def seconds(self, row_numbers: int) -> float:
        """See `PairRate.seconds`."""
        del row_numbers
        return 1.0


SPLIT: Final[list[dict[str, Any]]] = [
    {"rerank": "colbert"},
    {"rerank": "colbert", "limit": 3, "offset": 2},
    {"using": ("colbert",)},
    {"using": ("colbert",), "score_threshold": 1.0, "offset": 1},
    {"using": ("dense", "colbert")},
    {"using": ("dense", "colbert"), "rerank": "colbert", "with_vectors": ("dense",)},
    {"rerank": "colbert", "group_by": "even", "group_size": 3},
]


@pytest.mark.parametrize("options", SPLIT)
def test_a_search_in_many_calls_has_the_hits_of_one(
    counted: Counted, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Splitting a search of the embedded engine changes neither hits nor scores, payloads or vectors."""
    _fill(counted, job(30))
    several = [search_by(**_vectors(seed), **options) for seed in range(3)]
    whole = _shown(counted, several)
    calls: list[int] = []
    monkeypatch.setattr(searches, "SPLIT_S", 0.0)
    monkeypatch.setattr(searches._Searches, "_compared", _recorded_method(searches._Searches._compared, calls))
    counted._collection("docs").pair_rate = Slow()
    assert _shown(counted, several) == whole
    assert len(calls) > 30


def _recorded_method(method: Any, calls: list[int]) -> Any:
    def recorded(self: Any, *values: Any) -> Any:
        calls.append(1)
        return method(self, *values)

    return recorded


def _shown(store: EdgeStore, several: Sequence[Search]) -> list[Any]:
    def vectors(hit: Hit) -> Any:
        return None if hit.vectors is None or hit.vectors.dense is None else hit.vectors.dense.tolist()

    found = search_pages(store, "docs", several)
    return [[(hit.id, hit.score, hit.payload, vectors(hit), hit.group) for hit in page.hits] for page in found]


def test_a_batch_of_queries_is_split_by_the_time_that_they_take(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many queries come together, the engine gets few of them in a call where they take long."""
    _fill(counted, job(30))
    several = [search_by(**_vectors(seed)) for seed in range(12)]
    whole = _shown(counted, several)
    monkeypatch.setattr(searches, "CALL_S", 1e-9)
    sizes: list[int] = []
    request = edge.QueryBatchRequest

    def batch(requests: list[Any]) -> Any:
        sizes.append(len(requests))
        return request(requests)

    monkeypatch.setattr(edge, "QueryBatchRequest", batch)
    assert _shown(counted, several) == whole
    assert sizes[1:] == [1] * (12 - sizes[0])


def test_a_fusion_that_cannot_be_split_is_bounded(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fusion with a colbert branch of many candidates is refused with the product that is too large."""
    _fill(counted, job(30))
    monkeypatch.setattr(searches, "SPLIT_S", 0.0)
    monkeypatch.setattr(searches, "UNDIVIDED_MAX_S", 1e-6)
    with pytest.raises(InvalidRequest, match=r"prefetch: .*\(rows x candidates\), got 4 x 30; lower"):
        run(counted, "docs", [search_by(**_vectors(0), using=("dense", "colbert"))])
    with pytest.raises(InvalidRequest, match="got 4 x 20; lower"):
        run(counted, "docs", [search_by(**_vectors(0), using=("dense", "colbert"), prefetch=20)])


def test_searches_of_one_vector_in_a_batch_keep_their_own_filters(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates of a colbert branch are those of the search's own filter, also if another has the same vector."""
    _fill(counted, job(30))
    vectors = _vectors(0)
    filters: list[Json | None] = [None, {"must": [{"key": "even", "match": {"value": True}}]}]
    several = [search_by(**vectors, using=("dense", "colbert"), rerank="colbert", where=where) for where in filters]
    whole = _shown(counted, several)
    monkeypatch.setattr(searches, "SPLIT_S", 0.0)
    assert _shown(counted, several) == whole
    assert all(hit[0] % 2 == 0 for hit in whole[1])


def test_candidates_are_reranked_however_the_branches_search(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """`indexed_only` leaves out points of a branch that has no graph, and never candidates of another branch."""
    traversals: list[Any] = []
    converted = models.query_request

    def seen(plan: Plan, *arguments: Any) -> Any:
        if not plan.branches and plan.query.kind == "colbert":  # type: ignore[union-attr]
            traversals.append(plan.traversal)
        return converted(plan, *arguments)

    _fill(counted, job(30))
    search = search_by(**_vectors(0), using=("dense",), rerank="colbert", indexed_only=True, hnsw_ef=7)
    whole = _shown(counted, [search])
    monkeypatch.setattr(searches, "SPLIT_S", 0.0)
    monkeypatch.setattr(searches, "query_request", seen)
    assert _shown(counted, [search]) == whole
    assert traversals
    assert all(not traversal.indexed_only for traversal in traversals)


COSTLY: Final[list[Json]] = [
    {"should": [{"key": "even", "match": {"value": True}}, {"has_id": [1]}]},
    {"must_not": [{"key": "even", "match": {"value": True}}]},
    {"must": [{"key": "missing", "match": {"value": 1}}]},
]


@pytest.mark.parametrize("where", COSTLY)
def test_a_costly_filter_is_evaluated_in_windows(
    counted: Counted, monkeypatch: pytest.MonkeyPatch, where: Json
) -> None:
    """A filter that takes long selects the same points for searches, counts, pages and deletions in windows of ids."""
    _fill(counted, job(30))

    def results() -> list[Any]:
        hits = run(counted, "docs", [search_by(**_vectors(0), where=where, limit=30)])
        page, following = counted.scroll("docs", where, False, limit=7)
        return [[hit.id for hit in hits[0]], list(page), following, counted.count("docs", where)]

    whole = results()
    windows: list[int] = []
    among = filter_measurement.among

    def seen(ids: Sequence[Any], condition: Any) -> Any:
        windows.append(len(ids))
        return among(ids, condition)

    def expensive(collection: EdgeCollection, _where: Json) -> FilterTime:
        return FilterTime(collection.filter_rates.sequence, 30, 30 * CALL_S / 4, CALL_S / 4, CALL_S / 4)

    monkeypatch.setattr(slices, "among", seen)
    monkeypatch.setattr(slices, "measured_time", expensive)
    assert results() == whole
    assert set(windows) == {4, 2}, "30 points in windows of 4"
    parts, after = [], None
    while True:
        page, after = counted.scroll("docs", where, True, limit=3, after=after)
        parts.append(page)
        if after is None:
            break
    assert [point for page in parts for point in page] == sorted(whole[0])
    assert [len(page) for page in parts[:-1]] == [3] * (len(parts) - 1)
    assert all("text" in (stored.payload or {}) for page in parts for stored in page.values())
    windows.clear()
    assert counted.delete("docs", where=where) == whole[-1]
    assert max(windows) == 4
    assert counted.count("docs") == 30 - whole[-1]


def test_a_slow_search_makes_its_filter_expensive(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that took longer than estimated is not repeated as it was: its filter is resolved the next time."""
    _fill(counted, job(30))
    where = {"must": [{"key": "even", "match": {"value": True}}]}
    search = search_by(**_vectors(0), where=where)
    whole = _shown(counted, [search])
    monkeypatch.setattr(searches, "SPLIT_S", 0.0)
    assert _shown(counted, [search]) == whole
    learned: list[float] = []
    monkeypatch.setattr(FilterRates, "observe", lambda _self, _where, points, _seconds: learned.append(points))
    assert _shown(counted, [search]) == whole
    assert 30 * 2 in learned, "both branches have compared all points"


def test_sparse_searches_have_no_rows() -> None:
    """The time of a search is that of its ColBERT rows, which other kinds do not have."""
    from qdrant_sink.searching.plan import Nearest

    sparse = SparseVector(np.array([1], np.uint32), np.array([1.0], np.float32))
    assert Nearest("sparse", sparse).rows == 1
    assert Nearest("dense", unit(np.ones(SIZE))).rows == 1
    assert Nearest("colbert", unit(np.ones((7, SIZE)))).rows == 7
