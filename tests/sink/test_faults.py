"""After any fault, no point is lost or stored twice, and the report is exact."""

from __future__ import annotations

import gc
import logging
import random
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Self

import psutil
import pytest

from qdrant_sink.errors import StoreUnavailable
from qdrant_sink.server import ServerStore
from qdrant_sink.writing import WriteReport, existing_ids
from tests.sink import writing
from tests.sink.contents import assert_holds
from tests.sink.faults import Kind, Proxy, Script
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import SCHEMA, job

Connect = Callable[..., ServerStore]

QUICK = (Kind.UNAVAILABLE, Kind.EXHAUSTED, Kind.DEADLINE, Kind.SLOW, Kind.LOST)
"""All but the one for which a client waits as long as its patience for one attempt lasts."""


@pytest.fixture
def connect(double: GrpcDouble) -> Iterator[Connect]:
    """Factory of stores that connect to the double or to another port, with short pauses."""
    stores: list[ServerStore] = []

    def connected(port: int | None = None, *, timeout_s: int = 5, deadline_s: float = 20.0) -> ServerStore:
        store = ServerStore(
            "http://127.0.0.1:9",
            grpc_port=port or double.port,
            timeout_s=timeout_s,
            deadline_s=deadline_s,
            pause_s=0.01,
        )
        stores.append(store)
        return store

    yield connected
    for store in stores:
        store.close()


@pytest.fixture
def proxied(double: GrpcDouble) -> Iterator[Callable[..., Proxy]]:
    """Factory of proxies in front of the double."""
    proxies: list[Proxy] = []

    def made(*gaps: int, refuse: int = 0) -> Proxy:
        proxies.append(Proxy(double.port, gaps, refuse=refuse))
        return proxies[-1]

    yield made
    for proxy in proxies:
        proxy.stop()


write = partial(writing.write, batch_points=25)
"""Many requests per job."""


def _all_stored(report: WriteReport, count: int) -> bool:
    return (report.submitted, report.stored, report.skipped, report.rejected) == (count, count, 0, ())


@pytest.mark.slow
@pytest.mark.parametrize("insert_only", [False, True])
@pytest.mark.parametrize("kind", QUICK)
def test_repeated_faults_of_one_kind(double: GrpcDouble, connect: Connect, kind: Kind, *, insert_only: bool) -> None:
    """Every third call fails in the same way, and the collection is complete in the end."""
    store, drafts = connect(), job(300)
    store.ensure("docs", SCHEMA)
    double.script = Script([kind], every=3, methods=("Upsert", "Get"))
    assert existing_ids(store, "docs", [draft.id for draft in drafts]) == set()
    report = write(store, "docs", drafts, SCHEMA, insert_only=insert_only)
    assert _all_stored(report, 300)
    assert double.script.happened[kind] >= 4
    assert_holds(store, "docs", drafts)


@pytest.mark.slow
def test_a_silent_server_costs_only_the_timeout(double: GrpcDouble, connect: Connect) -> None:
    """If the server does not answer, the attempt is repeated after `timeout_s`."""
    store, drafts = connect(timeout_s=1), job(100)
    store.ensure("docs", SCHEMA)
    double.script = Script([Kind.SILENT], every=4)
    assert _all_stored(write(store, "docs", drafts, SCHEMA), 100)
    assert double.script.happened[Kind.SILENT] >= 1
    assert_holds(store, "docs", drafts)


def test_connections_cut_in_the_middle_of_a_request(
    double: GrpcDouble, connect: Connect, proxied: Callable[..., Proxy]
) -> None:
    """A request whose connection was cut is sent again over a new connection."""
    proxy = proxied(20_000, 70_000, 30_000)
    store, drafts = connect(proxy.port), job(100, words=400)
    store.ensure("docs", SCHEMA)
    assert _all_stored(write(store, "docs", drafts, SCHEMA), 100)
    assert proxy.cuts == 3
    assert_holds(store, "docs", drafts)


class _Attempts(logging.Handler):
    """Log handler that calls a function at the nth retry."""

    def __init__(self, nth: int, call: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self._nth = nth
        self._call = call

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`; the handler's lock is held."""
        self.messages.append(record.getMessage())
        if len(self.messages) == self._nth:
            self._call()


@pytest.fixture
def on_attempt() -> Iterator[Callable[[int, Callable[[], None]], _Attempts]]:
    """Factory of handlers that call a function at the nth retry."""
    log = logging.getLogger("qdrant_sink.server")
    handlers: list[_Attempts] = []

    def registered(nth: int, call: Callable[[], None]) -> _Attempts:
        handlers.append(_Attempts(nth, call))
        log.addHandler(handlers[-1])
        return handlers[-1]

    yield registered
    for handler in handlers:
        log.removeHandler(handler)


def test_a_server_that_restarts(
    double: GrpcDouble, connect: Connect, on_attempt: Callable[[int, Callable[[], None]], _Attempts]
) -> None:
    """While the server restarts, connections are refused. When it is back, the job continues."""
    store, drafts = connect(), job(200)
    store.ensure("docs", SCHEMA)
    double.before["Upsert"] = lambda: threading.Thread(target=double.stop).start()
    attempts = on_attempt(8, double.start)
    assert _all_stored(write(store, "docs", drafts, SCHEMA), 200)
    assert any("refused" in message.lower() for message in attempts.messages)
    assert_holds(store, "docs", drafts)


def test_the_report_is_exact_if_the_server_stays_away(double: GrpcDouble, connect: Connect) -> None:
    """Every point is stored or rejected with `StoreUnavailable`, and rejected ones can be sent again."""
    store, drafts = connect(deadline_s=0.4), job(500)
    store.ensure("docs", SCHEMA)

    def stop_at_the_eighth() -> None:
        if double.calls.count("Upsert") < 8:
            double.before["Upsert"] = stop_at_the_eighth
        else:
            threading.Thread(target=double.stop).start()

    double.before["Upsert"] = stop_at_the_eighth
    report = write(store, "docs", drafts, SCHEMA)
    lost = {rejection.index for rejection in report.rejected}
    assert {type(rejection.cause) for rejection in report.rejected} == {StoreUnavailable}
    assert 0 < report.stored < report.submitted == 500
    assert report.stored + len(lost) == 500

    double.start()
    store = connect()
    stored = [draft for draft in drafts if draft.index not in lost]
    assert store.existing("docs", [draft.id for draft in stored]) == {draft.id for draft in stored}
    again = [draft for draft in drafts if draft.index in lost]
    assert write(store, "docs", again, SCHEMA).stored == len(lost)
    assert_holds(store, "docs", drafts)


class _MemoryUse:
    """Memory use of a job.

    Attributes:
        peak: maximum size in bytes of the memory that Python and numpy allocated; 0 without tracing.
        objects: number of live objects after the job.
        resident: resident memory of the process after the job in bytes.
    """

    def __init__(self, *, traced: bool) -> None:
        self._traced = traced
        self.peak = self.objects = self.resident = 0

    def __enter__(self) -> Self:
        if self._traced:
            tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._traced:
            self.peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        gc.collect()
        self.objects = len(gc.get_objects())
        self.resident = psutil.Process().memory_info().rss


@pytest.mark.slow
def test_ten_thousand_points_among_faults(double: GrpcDouble, connect: Connect, proxied: Callable[..., Proxy]) -> None:
    """With faults and broken connections, the collection is exact and memory stays constant."""
    drafts = job(10_000)
    draw = random.Random(7)
    proxy = proxied(*(draw.randrange(20_000, 200_000) for _ in range(1000)), refuse=4)
    store = connect(proxy.port)
    store.ensure("docs", SCHEMA)
    double.script = Script(QUICK, every=10)
    used = []
    for start in range(0, 10_000, 1000):
        part = drafts[start : start + 1000]
        measured = start in (1000, 9000)  # the first job fills caches, and tracing halves the speed
        with _MemoryUse(traced=measured) as use:
            assert _all_stored(write(store, "docs", part, SCHEMA), 1000)
            double.calls.clear()
        if measured:
            used.append(use)
    faults = double.script.happened
    assert set(faults) == set(QUICK)
    assert faults.total() >= double.script.calls // 10 >= 40
    assert proxy.cuts >= 20
    assert proxy.refusals >= 5
    second, last = used
    assert last.peak < 1.5 * second.peak
    assert last.objects - second.objects < 300  # less than one per call in between
    assert last.resident - second.resident < 32e6  # the engine is in this process: the points themselves take 11 MB
    assert_holds(store, "docs", drafts)
