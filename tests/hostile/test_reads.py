"""Reading stored points and listing collections is bounded before the work, and ends with its caller."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, Final

import grpc  # type: ignore[import-untyped,unused-ignore]
import httpx
import pytest

from embedder.vectors import Kind
from qdrant_sink.errors import AnswerTooLarge
from qdrant_sink.points import PayloadKeys, PointId, Stored, WithPayload
from qdrant_sink.schema import VectorNames
from qdrant_sink.searching import Hit, PartReader, PartSizes, Plan, search_pages
from qdrant_sink.searching.reading import (
    HELD_FACTOR,
    INLINE_MAX_BYTES,
    INLINE_MAX_HITS,
    PORTION_FIRST_POINTS,
    PORTION_MAX_BYTES,
    PORTION_MAX_POINTS,
    SIZES_MAX,
    InlineBudget,
)
from qdrant_sink.server import answer_limit
from service.operations import collections
from tests.hostile.test_searches import Counted, counted
from tests.service.client import Json
from tests.service.conftest import Serve
from tests.sink.samples import SCHEMA, sample_vectors, search_by

__all__ = ["counted"]

NOTES: Final = "notes"
POINTS: Final[Json] = {"operation": "points", "collection": NOTES}
PARTS: Final = (True, (), SCHEMA.names)


class Payloads:
    """A store whose points have payloads of these sizes, by id.

    Attributes:
        asked: ids of each call.
    """

    def __init__(self, sizes: list[int], answer_max: int | None = None) -> None:
        self._sizes = sizes
        self._answer_max = answer_max
        self.asked: list[list[PointId]] = []

    def fetch(
        self,
        _collection: str,
        ids: Sequence[Any],
        _with_payload: WithPayload,
        _with_vectors: Sequence[Kind],
        /,
        *,
        names: VectorNames,
    ) -> dict[PointId, Stored]:
        """See `Store.fetch`."""
        del names
        if self._answer_max is not None and sum(self._sizes[point] for point in ids) > self._answer_max:
            raise AnswerTooLarge("too large")
        self.asked.append(list(ids))
        return {point: Stored({"text": "x" * self._sizes[point]}) for point in ids}

    def query(self, _collection: str, plans: Sequence[Plan], /) -> list[list[Hit]]:
        """Return points by falling id, with their payloads if these are wanted."""
        points = list(range(len(self._sizes)))
        if any(plan.with_payload for plan in plans):
            parts = self.fetch("", points, True, (), names=SCHEMA.names)
            return [[Hit(point, -point, parts[point].payload) for point in points] for _ in plans]
        return [[Hit(point, -point) for point in points] for _ in plans]


def read(store: Payloads, reader: PartReader, count: int) -> dict[PointId, Stored]:
    """Read points with ids from 0."""
    return reader.fetch(store, "docs", dict.fromkeys(range(count), 1), PARTS)


@pytest.mark.parametrize("size", [10, 100_000, 5_000_000])
def test_portions_have_few_points_at_first_and_few_bytes_then(size: int) -> None:
    """The first portion learns how large points are; a portion is never larger than its limits or one point."""
    store, sizes = Payloads([size] * 200), PartSizes()
    count = 20 if size > PORTION_MAX_BYTES else 200
    assert len(read(store, PartReader(sizes), count)) == count
    assert len(store.asked[0]) == PORTION_FIRST_POINTS
    for asked in store.asked[1:]:
        assert len(asked) <= PORTION_MAX_POINTS
        assert len(asked) == 1 or len(asked) * size <= PORTION_MAX_BYTES
    store.asked.clear()
    read(store, PartReader(sizes), count)
    assert len(store.asked[0]) == max(1, min(PORTION_MAX_POINTS, PORTION_MAX_BYTES // (size + 20)))


def test_a_read_ends_with_the_portion_that_shows_its_size() -> None:
    """The answer is checked after each portion, with what every repetition of a point adds to it."""
    store = Payloads([1000] * 200)
    admitted: list[tuple[int, int]] = []
    held: list[int] = []

    def admit(size: int, numbers: int) -> None:
        admitted.append((size, numbers))
        if size > 100_000:
            raise AnswerTooLarge("enough")

    reader = PartReader(PartSizes(), admit=admit, hold=held.append)
    with pytest.raises(AnswerTooLarge):
        reader.fetch(store, "docs", dict.fromkeys(range(200), 3), PARTS)
    assert sum(map(len, store.asked)) == 4 + 16 + 64
    assert admitted[0][0] // (3 * 4) in range(1000, 1020)
    assert held[0] // (HELD_FACTOR * 4) in range(1000, 1020)


def test_a_server_that_sends_too_much_is_asked_for_less() -> None:
    """An answer that is refused for its size is asked for in halves, down to a single point."""
    store = Payloads([1000] * 10, answer_max=2500)
    assert len(read(store, PartReader(PartSizes()), 10)) == 10
    assert max(map(len, store.asked)) == 2
    with pytest.raises(AnswerTooLarge):
        read(Payloads([3000], answer_max=2500), PartReader(PartSizes()), 1)


def test_hits_that_became_too_large_are_read_again_in_portions() -> None:
    """Where payloads have grown since the last search, its hits come without them, and they are read apart."""
    sizes = PartSizes()
    sizes.observe("docs", PARTS, 10)
    store = Payloads([1000] * 10, answer_max=2500)
    vectors = sample_vectors(0)
    search = search_by(vectors.dense, vectors.sparse, limit=5)
    [page] = search_pages(store, "docs", [search], reader=PartReader(sizes))
    assert [hit.id for hit in page.hits] == [0, 1, 2, 3, 4]
    assert all(hit.payload == {"text": "x" * 1000} for hit in page.hits)
    assert max(map(len, store.asked)) <= 2


def test_parts_come_with_hits_only_if_they_are_known_to_be_small() -> None:
    """Neither unknown points, nor many, nor large ones are in the answer to a search itself."""
    sizes = PartSizes()
    assert not InlineBudget(PartReader(sizes), "docs", is_closed=False).takes(PARTS, 1)
    sizes.observe("docs", PARTS, 100)
    budget = InlineBudget(PartReader(sizes), "docs", is_closed=False)
    assert budget.takes(PARTS, INLINE_MAX_HITS)
    assert not budget.takes(PARTS, 1)
    assert budget.takes((False, (), SCHEMA.names), 10_000)
    sizes.observe("docs", PARTS, INLINE_MAX_BYTES)
    assert not InlineBudget(PartReader(sizes), "docs", is_closed=False).takes(PARTS, 2)
    for _ in range(200):
        sizes.observe("docs", PARTS, 100)
    assert InlineBudget(PartReader(sizes), "docs", is_closed=False).takes(PARTS, INLINE_MAX_HITS)


def test_what_is_remembered_of_sizes_is_bounded() -> None:
    """Each request may select another part of the payload, and the oldest are forgotten."""
    sizes = PartSizes()
    for n in range(SIZES_MAX + 10):
        sizes.observe("docs", (PayloadKeys((f"k{n}",)), (), SCHEMA.names), 1)
    assert sizes.largest("docs", (PayloadKeys(("k0",)), (), SCHEMA.names)) is None
    assert sizes.largest("docs", (PayloadKeys((f"k{SIZES_MAX}",)), (), SCHEMA.names)) == 1


def test_a_read_that_needs_more_memory_than_there_is_ends(serve: Serve, counted: Counted) -> None:
    """Payloads beyond the memory of all requests are refused by their first portions, and the memory comes back."""
    worker = serve(store=counted, MAX_RESPONSE_MB="1000")
    worker.operations.memory.total_bytes = 64_000_000
    for start in range(0, 60, 15):
        payloads = [{"long": "x" * 400_000}] * 15
        texts = [f"note {n}" for n in range(start, start + 15)]
        worker.good({"texts": texts, "includeText": False, "qdrant": {"collection": NOTES, "payloads": payloads}})
    counted.forget()
    for request in (
        {**POINTS, "limit": 60},
        {"operation": "search", "collection": NOTES, "queries": ["note"], "limit": 60},
        {"operation": "search", "collection": NOTES, "queries": ["note"], "limit": 60, "explain": True},
    ):
        assert "MEMORY_BUDGET_MB" in worker.error(request, "invalid_request")["error"]
        assert sum(counted.asked) < 60
        assert worker.operations.memory.reserved_bytes == 0
        counted.forget()


def test_a_read_whose_caller_has_gone_reads_no_further_portion(serve: Serve, counted: Counted) -> None:
    """After the cancellation of a read its thread makes no further call."""
    worker = serve(store=counted)
    worker.good({"texts": [f"note {n}" for n in range(60)], "includeText": False, "qdrant": {"collection": NOTES}})
    counted.forget()
    entered, go_on = threading.Event(), threading.Event()
    fetch = counted.fetch

    def stalled(*values: Any, **named: Any) -> Any:
        result = fetch(*values, **named)
        entered.set()
        assert go_on.wait(30)
        return result

    counted.fetch = stalled  # type: ignore[method-assign]

    async def leave() -> None:
        reading = asyncio.create_task(worker.answer({**POINTS, "limit": 60}))
        while not entered.is_set():  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.001)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(leave())
    go_on.set()
    worker.operations._store.close()
    assert counted.asked == [PORTION_FIRST_POINTS]


def test_many_ids_are_deleted_in_several_calls(serve: Serve, counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion by ids makes calls of a bounded size, and counts each point once, however often it is named."""
    worker = serve(store=counted)
    worker.good({"texts": ["a", "b", "c"], "qdrant": {"collection": NOTES, "ids": [1, 2, 3]}})
    monkeypatch.setattr(collections, "DELETE_BATCH_MAX_IDS", 4)
    sizes: list[int] = []
    delete = counted.delete

    def recorded(collection: str, *, ids: Sequence[PointId] = (), where: Any = None) -> int:
        sizes.append(len(ids))
        return delete(collection, ids=ids, where=where)

    monkeypatch.setattr(counted, "delete", recorded)
    ids = [1, 2, 9, 9, 1, 8, 2, 7, 7, 3]
    assert worker.good({"operation": "delete", "collection": NOTES, "ids": ids})["deleted"] == 3
    assert sizes == [4, 4, 2]


def test_rest_answers_are_bounded_while_they_are_received(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body over REST ends with the part that exceeds the limit, whatever length it declares."""
    monkeypatch.setattr(answer_limit, "ANSWER_MAX_BYTES", 1000)
    sent = []

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            for _ in range(100):
                sent.append(1)
                yield b"x" * 300

    transport = httpx.MockTransport(lambda _request: httpx.Response(200, stream=Endless()))
    with httpx.Client(transport=transport, event_hooks={"response": [answer_limit.bound_answer]}) as client:
        with pytest.raises(AnswerTooLarge, match="at most 1000 bytes"):
            client.get("http://server/")
        assert len(sent) == 4


def test_grpc_answers_beyond_the_limit_are_refused_by_this_side() -> None:
    """What gRPC says where this side refuses an answer is told apart from a request that the server refuses."""
    server = grpc.server(futures.ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", 1000)])
    method = grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"x" * 5000)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a", {"b": method})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        refusals = []
        for options, request in (([("grpc.max_receive_message_length", 1000)], b""), ([], b"x" * 2000)):
            with (
                grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel,
                pytest.raises(grpc.RpcError) as caught,
            ):
                channel.unary_unary("/a/b")(request)
            refusals.append(answer_limit.is_too_large(caught.value.details()))
        assert refusals == [True, False]
    finally:
        server.stop(None)
    assert answer_limit.GRPC_OPTIONS["grpc.max_receive_message_length"] == answer_limit.ANSWER_MAX_BYTES


def test_an_answer_of_a_server_beyond_the_limit_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    """Over gRPC the whole way from the client's channel to the error of the store."""
    from qdrant_sink.server import ServerStore
    from tests.sink.grpc_double import GrpcDouble
    from tests.sink.samples import draft
    from tests.sink.writing import write

    double = GrpcDouble(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(answer_limit.GRPC_OPTIONS, "grpc.max_receive_message_length", 50_000)
        store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, timeout_s=5, deadline_s=3.0, pause_s=0.02)
    try:
        store.ensure("docs", SCHEMA)
        write(store, "docs", [draft(n, payload={"long": "x" * 20_000}) for n in range(6)], SCHEMA)
        with pytest.raises(AnswerTooLarge, match="ask for fewer points"):
            store.fetch("docs", list(range(6)), True, ())
        parts = PartReader(PartSizes()).fetch(store, "docs", dict.fromkeys(range(6), 1), PARTS)
        assert len(parts) == 6
    finally:
        store.close()
        double.stop()
