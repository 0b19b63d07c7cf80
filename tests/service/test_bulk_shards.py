"""Loads in shards: any number of processes load one input, and `--finish` compares their counts and finishes once."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import secrets
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, redirect_stderr
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder import InvalidRequest
from qdrant_sink import text_id
from qdrant_sink.loading import Shard, records_of
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from service.bulk import BulkLoad, LoadReport
from service.bulk.line import BadLine, Line, Origin
from service.bulk.load import UNFINISHED
from service.bulk.shard_lines import ShardLines
from service.operations import LoadEnd, Operations
from service.operations.finish import Finish
from service.operations.loads import Loads
from service.transports.cli.bulk import load_options
from service.transports.cli.finish import finished
from service.wire.fields import Limits
from tests.command_line import bulk_options, invoke
from tests.service.client import PATIENCE
from tests.service.test_bulk_together import LEASE_S, Held, Stalling, edges, opened, operations, recorded
from tests.sink.grpc_double import GrpcDouble

SHARDS = ("1/3", "2/3", "3/3")

pytestmark = pytest.mark.usefixtures("signals")

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.service.test_bulk_shards"])


@pytest.fixture
def core(double: GrpcDouble) -> Iterator[Operations]:
    """Operations over the double."""
    core = operations(opened(double.port))
    yield core
    core.close()


def lines(count: int = 30) -> list[Line]:
    """Lines with ids of all forms and without, some of them twice."""
    forms: list[Any] = [None, 7, "named", str(uuid.UUID(int=5))]
    made = []
    for number in range(1, count + 1):
        form = forms[number % 4]
        identity = form + number if isinstance(form, int) else f"named {number}" if form == "named" else None
        made.append(
            Line(number, f"text {number % (count - 3)}" if identity is None else f"text {number}", identity, None)
        )
    return made


def run(
    core: Operations, given_lines: Iterable[Line | BadLine], *options: str, said: list[str] | None = None
) -> LoadReport:
    """Load lines into `notes`."""
    limits = Limits(max_texts=1000, max_length=512)
    chosen = bulk_options("--collection", "notes", "--alias", "live", "--vectors", "dense,sparse", *options)
    kept: list[str] = [] if said is None else said
    return BulkLoad(core, load_options(chosen, limits), None, kept.append, batch_texts=4).run(given_lines)


def finish(
    core: Operations, said: list[str] | None = None, collection: str = "notes", alias: str | None = "live"
) -> LoadReport:
    """Finish a collection, as `--finish` does."""
    operation = Finish(core.settings, core._store.opened())
    loads = partial(Loads, lease_s=core.loads.lease_s, beat_interval_s=core.loads.beat_interval_s)
    with patch("service.operations.finish.Loads", loads), redirect_stderr(io.StringIO()) as printed:
        report = finished(operation, collection, alias, [])
    if said is not None:
        said += printed.getvalue().splitlines()
    return report


def texts(store: Store, collection: str) -> dict[object, str]:
    """The text of each point of a collection."""
    page, _ = store.scroll(collection, {}, True, limit=1000)
    return {point: (stored.payload or {})["text"] for point, stored in page.items()}


identities = st.one_of(
    st.none(), st.integers(0, 2**64 - 1), st.uuids().map(str), st.text(max_size=5), st.just(-1), st.just([1])
)


@given(
    st.lists(st.tuples(identities, st.text(min_size=1, max_size=3)), max_size=30),
    st.integers(1, 9),
)
def test_every_line_belongs_to_one_shard_and_lines_of_a_point_to_the_same(
    documents: list[tuple[Any, str]], count: int
) -> None:
    """Whatever the ids are, and whatever the file is called on each machine."""
    owners: dict[object, set[int]] = {}
    for number, (identity, text) in enumerate(documents, 1):
        line = Line(number, text, identity, None)
        shards = []
        for index in range(1, count + 1):
            there = Line(number, text, identity, None, origin=Origin(f"/mnt/{index}/dump.jsonl"))
            if ShardLines(Shard(index, count), "live").has(there):
                shards.append(index)
        assert len(shards) == 1
        owners.setdefault(line.key("live"), set()).update(shards)
    assert all(len(shards) == 1 for shards in owners.values())


def test_a_text_and_its_derived_id_meet_in_one_shard() -> None:
    """A line without an id is the point that its text gives, also where another line names that id."""
    without, named = Line(1, "a text", None, None), Line(2, "another", str(text_id("a text", "live")), None)
    for index in range(1, 6):
        chosen = ShardLines(Shard(index, 5), "live")
        assert chosen.has(without) is chosen.has(named)


def test_shards_are_of_about_the_same_size() -> None:
    """No machine has much more to do than another, also where ids are consecutive numbers."""
    for identities in (range(8000), [None] * 8000):
        sizes = Counter(
            index
            for number, identity in enumerate(identities)
            for index in range(1, 9)
            if ShardLines(Shard(index, 8), "live").has(Line(number, f"text {number}", identity, None))
        )
        assert all(abs(size - 1000) < 150 for size in sizes.values())


def test_shards_and_a_finish_are_one_load(core: Operations, double: GrpcDouble) -> None:
    """The collection is that of one load; the graph is built and the alias moves only at the end."""
    reports = [run(core, lines(), "--shard", shard) for shard in SHARDS]
    assert [(report.failure, report.alias, report.status, report.read) for report in reports] == [
        (None, None, 0, 30)
    ] * 3
    assert sum(report.lines for report in reports) == 30
    assert (double.aliases, edges(double)) == ({}, 0)
    said: list[str] = []
    report = finish(core, said)
    assert (report.failure, report.alias, report.status) == (None, True, 0)
    assert (double.aliases, edges(double)) == ({"live": "notes"}, 16)
    assert any("3 shards, 30 lines" in text for text in said)
    sharded, store = texts(core._store.opened(), "notes"), core._store.opened()
    assert records_of(store.metadata("notes")) == {}
    again = finish(core)
    assert (again.alias, again.status, edges(double)) == (True, 0, 16)
    store.drop("notes")
    run(core, lines())
    assert texts(store, "notes") == sharded


def test_a_finish_says_which_shards_are_missing(core: Operations, double: GrpcDouble) -> None:
    """Those that never began, and those that did not end; the graph and the alias stay until they have."""
    run(core, lines(), "--shard", "1/3")
    refused = Refused(core)
    assert refused.has("shards 2/3, 3/3 never began")
    interrupted = lines()
    load = BulkLoad(core, _options("--shard", "2/3"), None, lambda _text: None, batch_texts=1)
    report = load.run(_stopping_at(interrupted, load))
    assert "interrupted" in str(report.failure)
    refused = Refused(core)
    assert refused.has("shard 2/3 was interrupted")
    assert refused.has("shard 3/3 never began")
    assert (double.aliases, edges(double)) == ({}, 0)
    for shard in ("3/3", "2/3"):
        run(core, lines(), "--shard", shard, "--insert-only")
    assert finish(core).alias is True


def test_a_finish_compares_what_the_shards_have_read(core: Operations, double: GrpcDouble) -> None:
    """A machine with another input, or rejected lines, keeps the alias where it is until its shard has run again."""
    for shard, count in (("1/3", 30), ("2/3", 29), ("3/3", 30)):
        run(core, lines(30)[:count], "--shard", shard)
    assert Refused(core).has("29 lines by shard 2/3")
    bad = [*lines()[:29], Line(30, "too large", 2**63, {"n": 2**80})]
    owner = next(shard for shard in SHARDS if ShardLines(Shard.parse(shard), "live").has(bad[-1]))
    for shard in SHARDS:
        run(core, bad, "--shard", shard)
    assert Refused(core).has(f"1 of shard {owner}")
    assert run(core, bad, "--shard", owner, "--allow-rejected").rejected == 1
    assert finish(core).alias is True
    assert double.aliases == {"live": "notes"}


def test_a_finish_finds_points_that_the_collection_has_lost(core: Operations, double: GrpcDouble) -> None:
    """Fewer points than the shards have stored keep the alias where it is; further ones are said."""
    for shard in SHARDS:
        run(core, lines(), "--shard", shard)
    store = core._store.opened()
    victim = next(iter(texts(store, "notes")))
    store.delete("notes", ids=[victim])  # type: ignore[list-item]
    assert Refused(core).has("points were deleted meanwhile")
    for shard in SHARDS:
        run(core, lines(), "--shard", shard, "--insert-only")
    run(core, [Line(1, "further", 10**6, None)], "--load-id", "other")
    said: list[str] = []
    assert finish(core, said).alias is True
    assert any("1 further points" in text for text in said)
    assert double.aliases == {"live": "notes"}


def test_another_load_leaves_the_end_to_the_finish_of_the_shards(core: Operations, double: GrpcDouble) -> None:
    """It ends while all shards have ended, and nobody has compared them: the alias waits."""
    for shard in SHARDS:
        run(core, lines(), "--shard", shard)
    said: list[str] = []
    other = run(core, [Line(1, "other", 10**6, None)], "--load-id", "other", said=said)
    assert (other.alias, double.aliases) == (False, {})
    assert any("--finish" in text for text in said)
    assert finish(core).alias is True


def test_a_finish_beside_a_load_is_repeated(core: Operations, double: GrpcDouble) -> None:
    """The load that is under way moves no alias of the finish at its end, so the finish says that it has failed."""
    slow = Held(core, "slow")
    for alias in ("next", None):
        said: list[str] = []
        report = finish(core, said, alias=alias)
        assert (report.failure, report.status) == (UNFINISHED, 2)
        assert said[-1].startswith("load 'slow' (begun ")
        assert said[-1].endswith(" is under way: finish again when it has ended")
    assert slow.end().alias is True
    assert double.aliases == {"live": "notes"}
    assert finish(core, alias="next").status == 0
    assert double.aliases == {"live": "notes", "next": "notes"}


def test_finishes_at_the_same_time(core: Operations, double: GrpcDouble) -> None:
    """Several operators finish one collection: its graph is whole, the alias has moved, and nothing is recorded."""
    for shard in SHARDS:
        run(core, lines(), "--shard", shard)

    async def all_of_them() -> list[LoadEnd]:
        operation = Finish(core.settings, core._store.opened())
        ends = (operation("notes", "live", say=lambda _text: None, stopping=asyncio.Event()) for _ in range(4))
        return await asyncio.gather(*ends)

    assert [end.outcome for end in asyncio.run(all_of_them())] == ["finished"] * 4
    assert (double.aliases, edges(double), recorded(core)) == ({"live": "notes"}, 16, set())


def test_a_shard_runs_once(core: Operations) -> None:
    """A second run of a shard under way is refused, and a shard that has ended counts once however often it runs."""
    holding = threading.Event()
    first: list[LoadReport] = []

    def slow() -> Iterator[Line]:
        yield from lines()[:20]
        assert holding.wait(PATIENCE)
        yield from lines()[20:]

    thread = threading.Thread(target=lambda: first.append(run(core, slow(), "--shard", "1/3")))
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while "standard-input:1-of-3" not in recorded(core) and time.monotonic() < deadline:
        time.sleep(0.005)
    second = run(core, lines(), "--shard", "1/3")
    assert "is under way already" in str(second.failure)
    holding.set()
    thread.join(PATIENCE)
    assert first[0].status == 0
    for shard in ("1/3", "2/3", "2/3", "3/3"):
        assert run(core, lines(), "--shard", shard).status == 0
    assert finish(core).alias is True


@pytest.mark.slow
def test_shards_that_begin_at_the_same_time_make_one_collection(core: Operations, double: GrpcDouble) -> None:
    """Whoever creates the collection, all of them store into it, and none deletes or defers what another has."""
    barrier = threading.Barrier(len(SHARDS))
    reports: list[LoadReport] = []

    def load(shard: str) -> None:
        own = operations(opened(double.port))
        barrier.wait(PATIENCE)
        reports.append(run(own, lines(), "--shard", shard))
        own.close()

    threads = [threading.Thread(target=load, args=(shard,)) for shard in SHARDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    assert [(report.failure, report.status) for report in reports] == [(None, 0)] * 3
    assert finish(core).alias is True
    assert core._store.opened().count("live") == len({line.key("live") for line in lines()})


def test_another_number_of_shards_is_said_and_can_be_given_up(core: Operations, double: GrpcDouble) -> None:
    """Parts of eight and parts of four do not add up; the operator gives up those that were begun by mistake."""
    run(core, lines(), "--shard", "3/8")
    for shard in ("1/2", "2/2"):
        run(core, lines(), "--shard", shard)
    refused = Refused(core)
    assert refused.has("in 8 shards: shards 1/8, 2/8, 4/8, 5/8, 6/8, 7/8, 8/8 never began")
    assert refused.has("was begun in 2 and in 8 shards")
    assert refused.has("--drop-load standard-input/2 or standard-input/8")
    asyncio.run(core.loads.forget("notes", "standard-input/8", print))
    assert finish(core).alias is True
    assert double.aliases == {"live": "notes"}


@pytest.mark.parametrize(
    "options", [["--shard", "1/2"], ["--endpoint", "abc", "--key", "key"]], ids=["shard", "endpoint"]
)
def test_a_wrong_file_is_one_message_and_no_collection(
    double: GrpcDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """It is found before the model is loaded, a record is written, or a job is sent."""
    monkeypatch.setenv("QDRANT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("QDRANT_GRPC_PORT", str(double.port))
    wrong = tmp_path / "dump.parquet"
    wrong.write_bytes(b"PAR1 of another kind")
    ended = invoke("bulk", "--collection", "notes", *options, str(wrong))
    assert (ended.status, ended.out) == (2, "")
    assert len(ended.err.strip().splitlines()) == 1
    assert "dump.parquet" in ended.err
    assert double.collections == {}


def test_a_shard_into_a_store_that_nobody_named_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lacks QDRANT_URL does not fill a folder of its own; the message names the setting."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QDRANT_URL", raising=False)
    monkeypatch.delenv("QDRANT_PATH", raising=False)
    (tmp_path / "dump.jsonl").write_text('{"text": "a"}\n')
    ended = invoke("bulk", "--collection", "notes", "--shard", "1/2", "dump.jsonl")
    assert (ended.status, ended.out) == (2, "")
    assert "set QDRANT_URL" in ended.err
    assert not (tmp_path / "qdrant_data").exists()


def test_input_without_a_document_is_no_finish(core: Operations, double: GrpcDouble) -> None:
    """A shard of an empty file neither creates nor finishes a collection."""
    assert run(core, [], "--shard", "1/3").failure is None
    assert double.collections == {}
    for shard in SHARDS:
        run(core, lines(), "--shard", shard)
    run(core, [], "--shard", "1/3")
    assert double.aliases == {}


def test_a_shard_without_lines_of_its_own_has_ended(core: Operations) -> None:
    """An input smaller than the number of machines can be finished."""
    for index in range(1, 8):
        assert run(core, lines()[:2], "--shard", f"{index}/7").status == 0
    assert finish(core).alias is True


def test_an_operator_gives_up_all_shards_by_their_name(core: Operations, double: GrpcDouble) -> None:
    """Then the collection is finished with what it has."""
    run(core, lines(), "--shard", "1/3")
    asyncio.run(core.loads.forget("notes", "standard-input", print))
    assert finish(core).alias is True
    assert double.aliases == {"live": "notes"}
    with pytest.raises(InvalidRequest, match="nothing is recorded"):
        asyncio.run(core.loads.forget("notes", "standard-input", print))


def stall(port: int, method: str, number: int, connection: Connection) -> None:
    """Load the first shard until the call, and wait to be killed."""
    store: Any = Stalling(opened(port), method, number, lambda: connection.send_bytes(b"reached"))
    run(operations(store), lines(), "--shard", "1/3")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "number"), [("update_metadata", 1), ("upsert", 1), ("upsert", 2), ("update_metadata", 2)]
)
def test_a_killed_shard_is_not_forgotten(double: GrpcDouble, method: str, number: int) -> None:
    """The others end without it, and nothing is finished until it has run again; then it counts once."""
    receiver, sender = _processes.Pipe(duplex=False)
    process = _processes.Process(target=stall, args=(double.port, method, number, sender))
    process.start()
    with closing(receiver):
        assert receiver.poll(2 * PATIENCE)
    process.kill()
    process.join(PATIENCE)
    core = operations(opened(double.port), lease_s=LEASE_S)
    for shard in ("2/3", "3/3"):
        assert run(core, lines(), "--shard", shard).status == 0
    begun = (method, number) != ("update_metadata", 1)
    assert Refused(core).has("shard 1/3 has not ended" if begun else "shard 1/3 never began")
    assert double.aliases == {}
    again = run(core, lines(), "--shard", "1/3", "--insert-only")
    assert (again.failure, again.status) == (None, 0)
    assert finish(core).alias is True
    store = core._store.opened()
    assert store.count("live") == len({line.key("live") for line in lines()})
    assert records_of(store.metadata("notes")) == {}
    core.close()


@pytest.mark.skipif("QDRANT_URL" not in os.environ, reason="needs a Qdrant server (QDRANT_URL)")
def test_shards_on_a_real_server() -> None:
    """Shards end in threads of their own at the same time, and one finish moves the alias."""
    port = os.environ.get("QDRANT_GRPC_PORT")
    store = ServerStore(os.environ["QDRANT_URL"], grpc_port=int(port) if port else None)
    name = f"shards-{secrets.token_hex(4)}"
    names = ("--collection", name, "--alias", f"{name}-live")
    core = operations(store)
    try:
        threads = [threading.Thread(target=run, args=(core, lines(), "--shard", shard, *names)) for shard in SHARDS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert finish(core, [], *names[1::2]).alias is True
        assert store.count(f"{name}-live") == len({line.key(f"{name}-live") for line in lines()})
        assert records_of(store.metadata(name)) == {}
    finally:
        store.drop(name)
        core.close()


class Refused:
    """A finish that is refused, and what it said."""

    def __init__(self, core: Operations) -> None:
        self.said: list[str] = []
        report = finish(core, self.said)
        assert (report.alias, report.status) == (False, 2)
        assert "not all loads are complete" in str(report.failure)

    def has(self, message: str) -> bool:
        """Whether a message was printed."""
        return any(message in text for text in self.said)


def _options(*options: str) -> Any:
    chosen = bulk_options("--collection", "notes", "--alias", "live", "--vectors", "dense,sparse", *options)
    return load_options(chosen, Limits(max_texts=1000, max_length=512))


def _stopping_at(given_lines: list[Line], load: BulkLoad) -> Iterator[Line]:
    for number, line in enumerate(given_lines):
        if number == 20:
            load.stop()
        yield line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "0/3"], "must be I/N with 1 <= I <= N <= 1000, such as 3/8, got 0/3"),
        (["--shard", "4/3"], "got 4/3"),
        (["--shard", "1/1001"], "got 1/1001"),
        (["--shard", "third"], "got 'third'"),
        (["--shard", "1/3", "--finish"], "leave --shard out"),
        (["--shard", "1/3", "--dry-run"], "leave --shard out"),
        (["--endpoint", "abc", "--key", "key", "--vectors-in", "vectors.parquet"], "leave out one"),
    ],
)
def test_a_wrong_shard_is_a_wrong_option(arguments: list[str], message: str) -> None:
    """It ends before anything is loaded, and the message names the limits."""
    ended = invoke("bulk", "--collection", "notes", *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert message in " ".join(ended.err.split())


def test_a_server_without_metadata_refuses_shards(core: Operations, double: GrpcDouble) -> None:
    """Nobody could compare them there, so none is stored."""
    double.version = (1, 15, 5)
    report = run(core, lines(), "--shard", "1/3")
    assert "a shard cannot be recorded in the collection" in str(report.failure)
    assert (report.stored, report.status) == (0, 2)
