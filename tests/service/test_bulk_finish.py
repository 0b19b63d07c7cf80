"""An operator finishes a collection after its loads: `bulk --finish`, without a model."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from pathlib import Path

import pytest

from embedder import InvalidRequest
from qdrant_sink.edge import EdgeStore
from qdrant_sink.loading import records_of
from service.operations import LoadRequest, Operations, ongoing_load
from service.settings import Settings
from tests.command_line import Ended, invoke
from tests.service.test_bulk_together import of, operations
from tests.service.test_bulk_together import run as run_load

pytestmark = pytest.mark.usefixtures("signals")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the store that the command uses."""
    monkeypatch.setenv("MODEL_ID", "/no/such/model")
    monkeypatch.setenv("QDRANT_PATH", str(tmp_path / "edge"))
    return tmp_path / "edge"


def interrupted(core: Operations, load_id: str) -> None:
    """A load into `notes` that does not store its lines."""

    async def begun() -> None:
        load = await core.loads.load(LoadRequest("notes", load_id, "live"), lambda _text: None)
        assert await load.begin(asyncio.Event())
        await load.stop()

    asyncio.run(begun())


def no_model(_settings: Settings) -> Operations:
    """Fail if the command wants a model."""
    raise AssertionError("the model is not needed")


def bulk(*arguments: str) -> Ended:
    """Run the command for `notes`."""
    return invoke("bulk", "--collection", "notes", "--json", *arguments, build=no_model)


@pytest.mark.slow
def test_a_finish_waits_for_missing_lines_until_they_are_given_up(folder: Path) -> None:
    """It names the load and both ways out, and with --drop-load it moves the alias."""
    with closing(EdgeStore(folder)) as store, closing(operations(store)) as core:
        assert run_load(core, of("whole"), "--load-id", "whole").alias is True
        interrupted(core, "broken")
    waiting = bulk("--finish", "--alias", "next")
    assert (waiting.status, json.loads(waiting.out)["alias"]) == (1, False)
    assert "load 'broken'" in waiting.err
    assert "run it again, or give its lines up with --finish --drop-load broken" in waiting.err
    done = bulk("--finish", "--alias", "next", "--drop-load", "broken")
    assert (done.status, json.loads(done.out)["alias"], done.err) == (0, True, "")
    with closing(EdgeStore(folder)) as store:
        assert store.aliases() == {"live": "notes", "next": "notes"}
        assert records_of(store.metadata("notes")) == {}


def test_the_records_of_a_collection_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit no further run of a load begins, whatever its name, and giving one up makes room."""
    monkeypatch.setattr(ongoing_load, "RECORDS_MAX", 3)
    with closing(EdgeStore(folder)) as store, closing(operations(store)) as core:
        for load in ("first", "second", "first"):
            interrupted(core, load)
        for load in ("first", "third"):
            with pytest.raises(InvalidRequest, match=r"at most 3 records of loads, got 3; .*--drop-load"):
                interrupted(core, load)
        asyncio.run(core.loads.forget("notes", "second", lambda _text: None))
        interrupted(core, "third")
        assert len(records_of(store.metadata("notes"))) == 3


def test_a_finish_without_an_alias_is_a_success(folder: Path) -> None:
    """The graph is built, and the aliases of loads move."""
    with closing(EdgeStore(folder)) as store, closing(operations(store)) as core:
        run_load(core, of("whole"), "--load-id", "whole")
    assert bulk("--finish").status == 0


def test_a_finish_does_not_move_an_alias_from_points_to_none(folder: Path) -> None:
    """An alias of a collection that has points stays, unless the operator says so."""
    with closing(EdgeStore(folder)) as store, closing(operations(store)) as core:
        run_load(core, of("whole"), "--load-id", "whole")
        store.alias("live", "notes")
        store.ensure("next", core.collections.wanted)
    finish = ("bulk", "--collection", "next", "--finish", "--alias", "live", "--json")
    stays = invoke(*finish, build=no_model)
    assert (stays.status, json.loads(stays.out)["alias"]) == (1, False)
    assert stays.err == (
        "the alias 'live' stays: 'next' has no points, and 'notes', to which it leads, has some\n"
        "with --allow-empty the alias moves nevertheless\n"
    )
    assert invoke(*finish, "--allow-empty", build=no_model).status == 0
    with closing(EdgeStore(folder)) as store:
        assert store.aliases() == {"live": "next"}


def test_a_finish_says_in_words_what_it_has_done(folder: Path) -> None:
    """A person reads of the graph and the alias, and not of lines that nobody loaded."""
    with closing(EdgeStore(folder)) as store, closing(operations(store)) as core:
        run_load(core, of("whole"), "--load-id", "whole")
    done = invoke("bulk", "--collection", "notes", "--finish", "--alias", "next", build=no_model)
    assert done.out.startswith("notes: finished in ")
    assert done.out.endswith(" s; the alias moved\n")
    absent = invoke("bulk", "--collection", "nix", "--finish", build=no_model)
    assert (absent.status, absent.out) == (2, "nix: not finished: collection 'nix' does not exist\n")


def test_a_store_that_nobody_has_chosen_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without QDRANT_URL a command says in one line where points are stored; a store of the settings needs none."""
    monkeypatch.chdir(tmp_path)
    for variable in ("QDRANT_URL", "QDRANT_PATH"):
        monkeypatch.delenv(variable, raising=False)
    said = "QDRANT_URL is not set: points are stored in ./qdrant_data, by Qdrant Edge in this process\n"
    assert bulk("--finish").err == said
    monkeypatch.setenv("QDRANT_PATH", str(tmp_path / "edge"))
    assert bulk("--finish").err == ""


@pytest.mark.usefixtures("folder")
def test_what_cannot_be_finished_is_said() -> None:
    """A collection that does not exist, a load of which nothing is recorded, and files beside --finish."""
    absent = bulk("--finish")
    assert (absent.status, json.loads(absent.out)["error"]) == (2, "collection 'notes' does not exist")
    beside = bulk("--finish", "lines.jsonl")
    assert (beside.status, beside.out) == (2, "")
    assert "--finish loads nothing; leave the FILEs out" in beside.err


def test_a_load_that_is_not_recorded_cannot_be_given_up(folder: Path) -> None:
    """A name that is spelled wrongly is an error, and moves nothing."""
    with closing(EdgeStore(folder)) as store, closing(operations(store)) as core:
        run_load(core, of("whole"), "--load-id", "whole")
    wrong = bulk("--finish", "--alias", "next", "--drop-load", "brokn")
    assert (wrong.status, json.loads(wrong.out)["error"]) == (
        2,
        "nothing is recorded of a load 'brokn' into 'notes'",
    )
    with closing(EdgeStore(folder)) as store:
        assert store.aliases() == {"live": "notes"}
