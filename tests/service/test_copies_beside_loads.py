"""A collection is copied while others load into the copy: no alias leads there before all of them have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from embedder import Embedder, InvalidRequest
from qdrant_sink import StoreUnavailable
from qdrant_sink.completing import CompletionReport
from qdrant_sink.edge import EdgeStore
from qdrant_sink.loading import LoadRecord, Shard, changes_of, records_of
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from service.operations import (
    CompletionRequest,
    LoadEnd,
    LoadRequest,
    Operations,
    ReindexReport,
    ReindexRequest,
)
from service.operations.loads import Loads
from service.operations.recorded_copy import load_id_of_copy
from tests.service.test_completion import Site as CompletionSite
from tests.service.test_reindex import TEXTS, Meddling, Site
from tests.sink.grpc_double import GrpcDouble
from tests.sink.stores import EMBEDDED_FIRST


@pytest.fixture(params=EMBEDDED_FIRST)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store of each kind."""
    if request.param == "edge":
        edge = EdgeStore(tmp_path / "copied")
        yield edge
        edge.close()
        return
    double = GrpcDouble(tmp_path)
    server = ServerStore("http://127.0.0.1:9", grpc_port=double.port, deadline_s=3.0, pause_s=0.02)
    yield server
    server.close()
    double.stop()


async def loaded(core: Operations, load_id: str, alias: str | None = None) -> LoadEnd:
    """Begin a load into `notes-v2`, and end it."""
    load = await core.loads.load(LoadRequest("notes-v2", load_id, alias), lambda _text: None)
    assert await load.begin(asyncio.Event())
    return await load.end(asyncio.Event(), complete=True, rejected=0, alias=alias)


async def beside(core: Operations, request: ReindexRequest | CompletionRequest) -> ReindexReport | CompletionReport:
    """Copy while a load into `notes-v2` is under way, and end the load then."""
    core.loads.beat_interval_s = 0.05
    load = await core.loads.load(LoadRequest("notes-v2", "other"), lambda _text: None)
    assert await load.begin(asyncio.Event())
    async with load.alive(lambda _error: None):
        report: ReindexReport | CompletionReport
        if isinstance(request, ReindexRequest):
            report = await core.reindex(request)
        else:
            report = await core.completion(request)
        assert request.alias not in core._store.opened().aliases()
    await load.end(asyncio.Event(), complete=True, rejected=0, alias=None)
    return report


def test_the_alias_of_a_reindex_waits_for_a_load(store: Store, embedder: Embedder) -> None:
    """The report names the load, which moves the alias at its end."""
    site = Site(store, embedder)
    site.fill(TEXTS[:5])
    store.alias("notes", "notes-v1")
    assert site.run("notes-v1").alias is None  # creates the new collection, which the load needs
    report = asyncio.run(beside(site.core, ReindexRequest("notes", "notes-v2", alias="live")))
    assert (report.alias, report.is_complete) == (None, False)
    assert "load 'other'" in report.waits_for[0]
    assert store.aliases() == {"notes": "notes-v1", "live": "notes-v2"}
    assert records_of(store.metadata("notes-v2")) == {}


def test_the_alias_of_a_completed_copy_waits_for_a_load(store: Store, embedder: Embedder) -> None:
    """The same holds for a completion that copies."""
    site = CompletionSite(store, embedder)
    site.fill(TEXTS[:3])
    assert site.complete(into="notes-v2", alias="first").alias == "first"
    request = CompletionRequest(("sparse", "colbert"), "notes", into="notes-v2", alias="live")
    report = asyncio.run(beside(site.core, request))
    assert (report.alias, report.is_complete) == (None, False)
    assert "load 'other'" in report.waits_for[0]
    assert store.aliases() == {"first": "notes-v2", "live": "notes-v2"}


def test_a_load_beside_a_reindex_does_not_move_its_alias(store: Store, embedder: Embedder) -> None:
    """Points that the old collection gets while the graph is built are not missing behind the alias of a load."""
    site = Site(store, embedder)
    site.fill(TEXTS[:5])
    store.alias("notes", "notes-v1")
    ends: list[LoadEnd] = []
    other = Operations(site.settings, embedder, store)
    meddling = Meddling(store, "build_index", lambda _: ends.append(asyncio.run(loaded(other, "other", "live"))))
    site.core = Operations(site.settings, embedder, meddling)
    report = site.run()
    assert [end.outcome for end in ends] == ["blocked"]
    assert [record.load for record in ends[0].others] == ["reindex-notes-v1"]
    assert (report.alias, report.is_complete) == ("notes", True)
    assert store.aliases() == {"notes": "notes-v2", "live": "notes-v2"}
    assert records_of(store.metadata("notes-v2")) == {}


def test_an_interrupted_reindex_keeps_the_alias_of_loads(store: Store, embedder: Embedder) -> None:
    """Until it has run again, a load that ends says that the copy is not whole."""
    site = Site(store, embedder)
    site.fill(TEXTS[:5])

    def lose(_: int) -> None:
        raise StoreUnavailable("the store does not answer")

    site.core = Operations(site.settings, embedder, Meddling(store, "upsert", lose))
    assert site.run("notes-v1").failure is not None
    site.core = Operations(site.settings, embedder, store)
    end = asyncio.run(loaded(site.core, "other", "live"))
    assert (end.outcome, [(record.load, record.state) for record in end.others]) == (
        "blocked",
        [("reindex-notes-v1", "interrupted")],
    )
    assert site.run("notes-v1").is_complete
    assert store.aliases() == {"live": "notes-v2"}


@pytest.mark.slow
def test_a_killed_reindex_leaves_no_record_once_it_has_run_again(
    store: Store, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of its process goes with the others, so later loads move their aliases.

    On a server, where the process might live, the copy says that it waits, before it shows any progress.
    """
    said: list[str] = []
    shown: list[int] = []
    site = Site(store, embedder)
    site.fill(TEXTS[:5])
    assert site.run("notes-v1").is_complete
    killed = LoadRecord("reindex-notes-v1", "0" * 16, "running", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z")
    store.update_metadata("notes-v2", changes_of({killed.holder: killed}))
    monkeypatch.setattr("service.operations.reindex.Loads", partial(Loads, lease_s=0.6, beat_interval_s=0.1))
    report = site.run(
        "notes-v1",
        again=True,
        alias="first",
        say=lambda text: said.append(f"{len(shown)} {text}"),
        progress=lambda progress: shown.append(progress.met),
    )
    assert report.is_complete
    assert shown[0] == 0
    assert not store.is_shared or said[0].startswith("0 waiting for a sign of life of load 'reindex-notes-v1'")
    assert records_of(store.metadata("notes-v2")) == {}
    assert asyncio.run(loaded(site.core, "other", "live")).outcome == "finished"
    assert store.aliases()["live"] == "notes-v2"


def test_a_copy_is_named_after_its_collection() -> None:
    """Any name of a collection gives an id that a record may have."""
    assert load_id_of_copy("reindex", "notes-v1") == "reindex-notes-v1"
    odd = load_id_of_copy("completion", "a/b " + "é" * 200)
    assert odd.startswith("completion-")
    assert len(odd) == len("completion-") + 16


def unfinished(core: Operations, collection: str, shard: Shard | None = None) -> None:
    """A load that has stored a part of its lines; with a shard, all lines of this shard alone."""

    async def begun() -> None:
        name = "rest" if shard is None else shard.load_of("rest")
        load = await core.loads.load(LoadRequest(collection, name, "live", shard=shard), lambda _text: None)
        assert await load.begin(asyncio.Event())
        if shard is None:
            await load.stop()
        else:
            await load.end(asyncio.Event(), complete=True, rejected=0, alias="live")

    asyncio.run(begun())


@pytest.mark.parametrize("shard", [None, Shard(1, 2), Shard(1, 1)])
def test_no_alias_moves_to_the_copy_of_a_collection_that_is_being_loaded(
    store: Store, embedder: Embedder, shard: Shard | None
) -> None:
    """Neither a re-index nor a completion makes the part of a load that is stored the collection of searches."""
    site = Site(store, embedder)
    site.fill(TEXTS[:5])
    store.ensure("old", site.schema)
    store.alias("live", "old")
    unfinished(site.core, "notes-v1", shard)
    with pytest.raises(InvalidRequest, match=r"collection must have no load that is not finished, and load 'rest"):
        site.run("notes-v1", alias="live")
    with pytest.raises(InvalidRequest, match=r"give its lines up with bulk --finish --drop-load rest$"):
        asyncio.run(site.core.completion(CompletionRequest(("sparse",), "notes-v1", into="notes-v2", alias="live")))
    assert (store.aliases(), sorted(store.collections())) == ({"live": "old"}, ["notes-v1", "old"])
    asyncio.run(site.core.loads.forget("notes-v1", "rest", lambda _text: None))
    assert site.run("notes-v1", alias="live").alias == "live"


def test_a_collection_in_use_is_copied_beside_a_load(store: Store, embedder: Embedder) -> None:
    """Searches have its points already, so that the alias may move. The copy says what it may lack."""
    site = Site(store, embedder)
    site.fill(TEXTS[:5])
    store.alias("notes", "notes-v1")
    unfinished(site.core, "notes-v1")
    said: list[str] = []
    assert site.run(say=said.append).alias == "notes"
    assert said[0].startswith("load 'rest' (begun ")
    assert said[0].endswith(
        "into 'notes-v1' is not finished: lines that it stores after this copy are not in 'notes-v2'"
    )


def test_a_collection_that_is_being_loaded_is_not_deleted(store: Store, embedder: Embedder) -> None:
    """Two names in the wrong order do not cost a load, and an alias on an unfinished copy does not cost the old one."""
    site = Site(store, embedder)
    site.fill(TEXTS[:5])
    assert site.run("notes-v1", alias="live").is_complete
    for collection, field in (("notes-v1", "collection"), ("notes-v2", "into")):
        unfinished(site.core, collection)
        with pytest.raises(InvalidRequest, match=f"{field} must have no load that is not finished"):
            asyncio.run(site.core.reindex.previous.drop("notes-v1", "notes-v2"))
        asyncio.run(site.core.loads.forget(collection, "rest", lambda _text: None))
    asyncio.run(site.core.reindex.previous.drop("notes-v1", "notes-v2"))
    assert store.collections() == ["notes-v2"]
