"""A process whose disk goes with it stores nothing unless the operator chose where."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

import pytest

from embedder import ConfigurationError, InvalidRequest
from qdrant_sink import Store
from service.operations import Operations, open_store
from service.readiness import checks
from service.settings import Settings
from service.transports.queue.worker import serve
from tests.service.client import ENVIRONMENT, Client, Json
from tests.service.doubles import Watched

JOBS: list[Json] = [
    {"texts": ["a"], "qdrant": {"collection": "notes"}},
    {"texts": ["a"], "qdrant": {}},
    {"operation": "search", "collection": "notes", "queries": ["a"]},
    {"operation": "search", "collection": "notes", "like": {"positive": [1]}},
    {"operation": "count"},
    {"operation": "delete", "collection": "notes", "ids": [1]},
    {"operation": "points", "collection": "notes", "ids": [1]},
    {"operation": "points", "collection": "notes"},
    {"operation": "collections"},
    {"operation": "collections", "collection": "notes"},
]


def worker(watched: Watched, store: Store | None = None, **variables: str) -> Client:
    """A worker with the settings that a queue worker has."""
    settings = Settings.from_environment({**ENVIRONMENT, **variables}).without_default_store()
    return Client(Operations(settings, watched.embedder, store))


@pytest.mark.parametrize("job", JOBS)
def test_a_job_on_points_is_refused_before_the_model_runs(
    job: Json, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error cannot be retried, names both settings, and neither a text is embedded nor a directory made."""
    monkeypatch.chdir(tmp_path)
    batches = len(watched.engine.batches)
    answer = worker(watched).error(job, "invalid_request")
    assert "set QDRANT_URL to a Qdrant server, or QDRANT_PATH" in answer["error"]
    assert answer["retryable"] is False
    assert len(watched.engine.batches) == batches
    assert not list(tmp_path.iterdir())


def test_loads_and_aliases_are_refused_too(watched: Watched) -> None:
    """The operations behind the bulk load know no other way to the disk."""
    operations = worker(watched).operations
    collections = operations.collections
    calls: list[Callable[[], Coroutine[Any, Any, None]]] = [
        lambda: operations.loads.forget("notes", "a", print),
        lambda: collections.check_alias("live", "notes"),
        lambda: collections.set_alias("live", "notes"),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest, match="QDRANT_URL is not set"):
            asyncio.run(call())


def test_without_a_store_the_others_are_answered_and_the_checks_pass(watched: Watched) -> None:
    """A worker that only embeds and scores needs no store, and starts without looking for one."""
    client = worker(watched)
    client.good({"texts": ["a"]})
    client.good({"operation": "score", "pairs": [["a", "b"]]})

    async def each() -> None:
        for check in checks(client.operations, client.operations.settings):
            await check()

    asyncio.run(each())


def test_a_store_that_was_chosen_is_used(watched: Watched, tmp_path: Path) -> None:
    """`QDRANT_PATH`, also with the value of the default, or `QDRANT_URL` is a choice."""
    path = str(tmp_path / "edge")
    client = worker(watched, QDRANT_PATH=path)
    client.good(JOBS[0])
    client.operations._store.close()
    for variables in ({"QDRANT_PATH": "./qdrant_data"}, {"QDRANT_URL": "http://127.0.0.1:6333"}):
        settings = Settings.from_environment(variables)
        assert settings.names_store
        assert settings.without_default_store() == settings
    assert not Settings.from_environment({}).names_store


@pytest.mark.parametrize(
    ("arguments", "variables", "path"),
    [
        ([], {}, None),
        ([], {"QDRANT_PATH": "chosen"}, "chosen"),
        (["--test_input", '{"input": {}}'], {}, "./qdrant_data"),
        (["--rp_serve_api"], {}, "./qdrant_data"),
    ],
)
def test_only_a_process_that_polls_the_queue_has_no_default_store(
    arguments: list[str], variables: dict[str, str], path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is built without the default store if the SDK will poll, and with it for a local run."""
    for name in ("QDRANT_URL", "QDRANT_PATH", "PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**ENVIRONMENT, "RUNPOD_WEBHOOK_GET_JOB": "https://queue?", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["handler.py", *arguments])
    for name in ("exit_on_signals", "logs.configure_start", "logs.configure_server", "ask_ahead"):
        monkeypatch.setattr(f"service.transports.queue.worker.{name}", lambda *_: None)
    built: list[Settings] = []

    def build(settings: Settings) -> NoReturn:
        built.append(settings)
        raise ConfigurationError("the test ends here")

    async def unused(_job: Json, _progress: object = None) -> Json:
        raise NotImplementedError

    assert serve(unused, build) == 2
    assert [settings.qdrant_path for settings in built] == [path]


def test_no_path_leads_to_a_store_that_was_not_chosen() -> None:
    """Opening the store itself refuses as well."""
    with pytest.raises(ConfigurationError, match="QDRANT_URL is not set"):
        open_store(Settings.from_environment({}).without_default_store())
