"""Several bulk loads into one collection: the last to end builds the graph and moves the alias, kills included."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from embedder import Embedder, NotFound
from embedder.checkpoint import MINI
from embedder.scheduling import ModelPool
from embedder.tokenizer import Tokenizer
from qdrant_sink.edge import DiskSpace, EdgeStore
from qdrant_sink.loading import LoadRecord, changes_of, records_of
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from service.bulk import BulkLoad, LoadReport
from service.bulk.line import Line
from service.operations import Operations
from service.operations.finish import Finish
from service.operations.loads import Loads
from service.operations.ongoing_load import OngoingLoad
from service.settings import Settings
from service.transports.cli.bulk import load_id_of, load_options
from service.transports.cli.finish import finished
from service.wire.fields import Limits
from tests.command_line import bulk_options
from tests.contract.engine import StubEngine
from tests.service.client import ENVIRONMENT, PATIENCE
from tests.sink.faults import Kind, Script
from tests.sink.grpc_double import GrpcDouble
from tests.sink.stores import EMBEDDED_FIRST

LEASE_S = 0.6
"""Time without a sign of life after which a load of the tests of killed loads counts as dead."""

BEAT_INTERVAL_S = 0.1
"""Time between two signs of life of a load."""

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.service.test_bulk_together"])


def opened(port: int) -> ServerStore:
    """The server adapter, connected to the double."""
    return ServerStore("http://127.0.0.1:9", grpc_port=port, timeout_s=5, deadline_s=3.0, pause_s=0.02)


def operations(store: Store, *, lease_s: float = PATIENCE) -> Operations:
    """Operations with a stub of a model, which count a load as dead after a time that no living one is silent for."""
    tokenizer = Tokenizer(MINI)
    engine = StubEngine(tokenizer)
    pool = ModelPool([engine], batches_per_gpu=1, token_budget=4096, queue_tokens=100_000)
    core = Operations(Settings.from_environment(ENVIRONMENT), Embedder(tokenizer, [engine], pool), store)
    core.loads.lease_s, core.loads.beat_interval_s = lease_s, BEAT_INTERVAL_S
    return core


def of(load: str, count: int = 3) -> list[Line]:
    """The lines of a load."""
    return [Line(number, f"{load} {number}", f"{load}-{number}", None) for number in range(1, count + 1)]


def run(
    core: Operations, lines: Iterable[Line], *options: str, say: Callable[[str], None] = lambda _text: None
) -> LoadReport:
    """Load lines into `notes`."""
    limits = Limits(max_texts=1000, max_length=512)
    chosen = bulk_options("--collection", "notes", "--alias", "live", "--vectors", "dense,sparse", *options)
    return BulkLoad(core, load_options(chosen, limits), None, say, batch_texts=2).run(lines)


@pytest.fixture
def core(double: GrpcDouble) -> Iterator[Operations]:
    """Operations over the double."""
    core = operations(opened(double.port))
    yield core
    core.close()


def edges(double: GrpcDouble) -> int:
    """Edges per node of the graph; 0 while it is deferred."""
    created, _ = double.collections["notes"]
    return int(created.vectors_config.params_map.map["dense"].hnsw_config.m)


def recorded(core: Operations) -> set[str]:
    """The loads that are recorded in the collection."""
    with suppress(NotFound):
        return {record.load for record in records_of(core._store.opened().metadata("notes")).values()}
    return set()


class Held:
    """A load in a thread of its own whose second line comes only after `go`."""

    def __init__(self, core: Operations, load: str, *options: str) -> None:
        self.said: list[str] = []
        self._begun, self._go = threading.Event(), threading.Event()
        self._report: LoadReport | None = None

        def lines() -> Iterator[Line]:
            for number, line in enumerate(of(load)):
                if number == 2:
                    self._begun.set()
                    assert self._go.wait(PATIENCE)
                yield line

        def work() -> None:
            self._report = run(core, lines(), "--load-id", load, *options, say=self.said.append)

        self._thread = threading.Thread(target=work)
        self._thread.start()
        assert self._begun.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while load not in recorded(core) and time.monotonic() < deadline:
            time.sleep(0.005)

    def end(self) -> LoadReport:
        """Let it end."""
        self._go.set()
        self._thread.join(PATIENCE)
        assert self._report is not None
        return self._report


@pytest.mark.parametrize("kind", EMBEDDED_FIRST)
def test_the_last_of_two_loads_moves_the_alias(kind: str, double: GrpcDouble, tmp_path: Path) -> None:
    """The first to end leaves the graph and the alias to the other, and says so; nothing is recorded afterwards."""
    store: Store = opened(double.port) if kind == "double" else EdgeStore(tmp_path / "edge")
    core = operations(store)
    slow = Held(core, "slow")
    said: list[str] = []
    first = run(core, of("fast"), "--load-id", "fast", say=said.append)
    assert (first.failure, first.alias, first.status, store.collection_of("live")) == (None, False, 1, None)
    assert any("load 'slow'" in text and "is under way" in text for text in said)
    assert kind == "edge" or edges(double) == 0
    last = slow.end()
    assert (last.failure, last.alias, last.status, store.collection_of("live")) == (None, True, 0, "notes")
    assert kind == "edge" or edges(double) == 16
    assert store.count("live") == 6
    assert records_of(store.metadata("notes")) == {}
    core.close()


def test_rejected_lines_of_one_load_keep_the_alias_of_all(core: Operations, double: GrpcDouble) -> None:
    """The last to end names the load; its corrected lines, loaded under its name, move the alias."""
    slow = Held(core, "slow")
    bad = Line(9, "too large", "bad", {"n": 2**80})
    assert run(core, [*of("fast"), bad], "--load-id", "fast").rejected == 1
    last = slow.end()
    assert (last.rejected, last.alias, last.status, edges(double)) == (0, False, 1, 16)
    assert any("load 'fast'" in text and "rejected or replaced 1 lines" in text for text in slow.said)
    corrected = run(core, [Line(1, "corrected", "bad", {"n": 2})], "--load-id", "fast")
    assert (corrected.alias, double.aliases) == (True, {"live": "notes"})


def test_the_same_load_runs_once(core: Operations) -> None:
    """A second run of a load under way ends at once and stores nothing, and the first is not disturbed."""
    slow = Held(core, "same")
    second = run(core, of("other"), "--load-id", "same")
    assert "load 'same'" in str(second.failure)
    assert "is under way already" in str(second.failure)
    assert (second.stored, slow.end().alias) == (0, True)


def test_a_server_without_metadata_is_said(core: Operations, double: GrpcDouble) -> None:
    """Before 1.16 a load does what it did, with a warning that names the version."""
    double.version = (1, 15, 5)
    said: list[str] = []
    report = run(core, of("only"), say=said.append)
    assert (report.alias, report.status, edges(double)) == (True, 0, 16)
    assert any("needs Qdrant 1.16, and the server has 1.15.5" in text for text in said)


def test_a_load_that_was_dropped_ends(core: Operations, double: GrpcDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose record was removed reads it, and does not move the alias."""
    noticed = threading.Event()
    beat, beat_until = OngoingLoad._beat, OngoingLoad._beat_until

    async def after_the_drop(load: OngoingLoad) -> None:
        double.collections["notes"][0].metadata.clear()  # a sign of life that was under way may have written it again
        await beat(load)

    async def until_it_is_noticed(load: OngoingLoad, *arguments: Any) -> None:
        await beat_until(load, *arguments)
        noticed.set()

    monkeypatch.setattr(OngoingLoad, "_beat_until", until_it_is_noticed)
    slow = Held(core, "slow")
    monkeypatch.setattr(OngoingLoad, "_beat", after_the_drop)
    assert noticed.wait(PATIENCE)
    report = slow.end()
    assert "the record of this load is gone" in str(report.failure)
    assert double.aliases == {}


def test_the_id_of_a_load_is_that_of_its_files(tmp_path: Path) -> None:
    """The same files have the same id, other files another one, and no name of a file is in it."""
    assert load_id_of([]) == load_id_of(["-"]) == "standard-input"
    assert load_id_of(["a.jsonl", "b.csv"]) == load_id_of([str(Path("a.jsonl").absolute()), "b.csv"])
    assert load_id_of(["a.jsonl"]) != load_id_of(["b.jsonl"])
    assert "secret" not in load_id_of([str(tmp_path / "secret.jsonl")])


class Stalling:
    """A store that tells of a call and never returns from it."""

    def __init__(self, store: Store, method: str, number: int, reached: Callable[[], None]) -> None:
        self._store, self._method, self._number, self._reached = store, method, number, reached

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            self._number -= 1
            if self._number == 0:
                self._reached()
                threading.Event().wait()
        return getattr(self._store, name)


def stall(port: int, method: str, number: int, connection: Connection) -> None:
    """Load until the call, and wait to be killed."""
    store: Any = Stalling(opened(port), method, number, lambda: connection.send_bytes(b"reached"))
    run(operations(store), of("killed"), "--load-id", "killed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "number"),
    [
        ("update_metadata", 1), ("defer_index", 1), ("upsert", 1), ("upsert", 2), ("update_metadata", 2),
        ("restore_index", 1), ("build_index", 1), ("alias", 1),
    ],
)  # fmt: skip
def test_a_killed_load_is_not_forgotten(double: GrpcDouble, method: str, number: int) -> None:
    """Another load does not move the alias without the lines of the killed one; the same load again completes it."""
    receiver, sender = _processes.Pipe(duplex=False)
    process = _processes.Process(target=stall, args=(double.port, method, number, sender))
    process.start()
    with closing(receiver):
        assert receiver.poll(2 * PATIENCE)
    process.kill()
    process.join(PATIENCE)
    with closing(opened(double.port)) as store:
        core = operations(store, lease_s=LEASE_S)
        said: list[str] = []
        has_stored = method in ("restore_index", "build_index", "alias")
        has_begun = (method, number) != ("update_metadata", 1)
        other = run(core, of("other"), "--load-id", "other", say=said.append)
        assert other.alias is (has_stored or not has_begun)
        assert any("load 'killed'" in text and "--drop-load killed" in text for text in said) is not other.alias
        assert edges(double) == 16
        again = run(core, of("killed"), "--load-id", "killed")
        assert (again.failure, again.alias, again.stored) == (None, True, 3)
        assert (store.count("live"), records_of(store.metadata("notes"))) == (6, {})
        core.close()


@pytest.mark.slow
def test_a_wait_for_a_killed_load_is_said_and_no_part_of_the_rate(core: Operations) -> None:
    """The load that goes on for a killed one says that it waits, and its rate begins with its first batch."""
    core.loads.lease_s = LEASE_S
    assert run(core, of("first"), "--load-id", "first").alias
    killed = LoadRecord("again", "0" * 16, "running", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z")
    store = core._store.opened()
    store.update_metadata("notes", changes_of({killed.holder: killed}))
    said: list[str] = []
    report = run(core, of("again"), "--load-id", "again", say=said.append)
    assert (report.failure, report.alias) == (None, True)
    waiting = [text for text in said if "wait" in text]
    assert waiting[0].startswith("waiting for a sign of life of load 'again' (begun ")
    assert waiting[-1].startswith("the wait has ended after ")
    assert report.worked_from is not None
    assert report.worked_from - report.started >= LEASE_S


@pytest.mark.slow
def test_an_operator_gives_up_a_killed_load(
    double: GrpcDouble, core: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its lines, the collection is finished for the others."""
    monkeypatch.setattr("service.operations.finish.Loads", partial(Loads, lease_s=LEASE_S))
    receiver, sender = _processes.Pipe(duplex=False)
    process = _processes.Process(target=stall, args=(double.port, "upsert", 2, sender))
    process.start()
    with closing(receiver):
        assert receiver.poll(2 * PATIENCE)
    process.kill()
    process.join(PATIENCE)
    core.loads.lease_s = LEASE_S
    assert run(core, of("other"), "--load-id", "other").alias is False
    with closing(Finish(core.settings, opened(double.port))) as finish:
        assert finished(finish, "notes", "live", []).alias is False
        report = finished(finish, "notes", "live", ["killed"])
    assert (report.alias, double.aliases) == (True, {"live": "notes"})


def test_a_load_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    """It ends with the cause, says that the alias stays, and the same command again goes on when there is room."""
    free = [2**40]
    store = EdgeStore(tmp_path / "edge", space=DiskSpace(10**6, free=lambda _path: free[0]))
    with closing(operations(store)) as core:
        report = run(core, filling(lambda: free.__setitem__(0, 1)), "--load-id", "rows", "--insert-only")
        assert "disk full: the disk of QDRANT_PATH" in str(report.failure)
        assert (report.status, report.alias, store.aliases()) == (2, False, {})
        free[0] = 2**40
        again = run(core, filling(lambda: None), "--load-id", "rows", "--insert-only")
        assert (again.failure, again.alias, again.skipped >= report.stored) == (None, True, True)
        assert (store.count("live"), records_of(store.metadata("notes"))) == (12, {})


@pytest.mark.slow
def test_a_load_goes_on_after_an_unreachable_server(double: GrpcDouble) -> None:
    """The same holds for a server that stops to answer."""
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, deadline_s=0.3, pause_s=0.02)

    def lose() -> None:
        double.script = Script((Kind.UNAVAILABLE,), every=1)

    with closing(operations(store)) as core:
        report = run(core, filling(lose), "--load-id", "rows", "--insert-only")
        assert "127.0.0.1" not in str(report.failure)
        assert (report.failure is None, report.status, report.alias, double.aliases) == (False, 2, False, {})
        double.script = None
        again = run(core, filling(lambda: None), "--load-id", "rows", "--insert-only")
        assert (again.failure, again.alias, edges(double)) == (None, True, 16)
        assert (store.count("live"), records_of(store.metadata("notes"))) == (12, {})


def filling(break_store: Callable[[], object]) -> Iterator[Line]:
    """Twelve lines, of which the last eight are read when the store is broken."""
    for number, line in enumerate(of("rows", 12)):
        if number == 4:
            time.sleep(0.3)  # the first lines are stored meanwhile
            break_store()
        yield line


ROWS = 100_000
"""Lines of the large load."""


def load_rows(port: int, connection: Connection | None = None) -> LoadReport:
    """Load `ROWS` lines, of which the points that exist are kept."""
    if connection is not None:
        connection.send_bytes(b"begun")
    core = operations(opened(port))
    limits = Limits(max_texts=1000, max_length=512)
    chosen = bulk_options(
        "--collection", "notes", "--alias", "live", "--vectors", "dense", "--insert-only", "--load-id", "rows"
    )
    lines = (Line(number, f"row {number}", number, None) for number in range(ROWS))
    with closing(core):
        return BulkLoad(core, load_options(chosen, limits), None, lambda _text: None).run(lines)


@pytest.mark.slow
def test_a_large_load_survives_kills(double: GrpcDouble) -> None:
    """100 000 rows are in the collection, each once, after a load that is killed twice on the way and run again."""
    with closing(opened(double.port)) as store:
        for stored in (ROWS // 5, ROWS // 2):
            receiver, sender = _processes.Pipe(duplex=False)
            process = _processes.Process(target=load_rows, args=(double.port, sender))
            process.start()
            with closing(receiver):
                assert receiver.poll(2 * PATIENCE)
            deadline = time.monotonic() + 4 * PATIENCE
            while time.monotonic() < deadline:
                with suppress(NotFound):
                    if store.count("notes") >= stored:
                        break
                time.sleep(0.05)
            assert process.is_alive()
            process.kill()
            process.join(PATIENCE)
            assert (double.aliases, edges(double)) == ({}, 0)
        before = store.count("notes")
        report = load_rows(double.port)
        assert (report.failure, report.status, report.alias) == (None, 0, True)
        assert before <= report.skipped < ROWS
        assert (report.stored, store.count("live"), edges(double)) == (ROWS, ROWS, 16)
        assert records_of(store.metadata("notes")) == {}
