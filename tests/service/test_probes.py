"""The probes of container platforms, and HEAD."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import grpc  # type: ignore[import-untyped,unused-ignore]
import pytest

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from qdrant_sink.server import ServerStore
from service.operations import Operations
from service.settings import Settings
from service.transports.http.probes import Probes
from tests.service.client import ENVIRONMENT, PATIENCE, Client, Json, until
from tests.service.conftest import Serve
from tests.service.served import Served
from tests.sink.grpc_double import GrpcDouble


def readiness(served: Served) -> tuple[int, Json]:
    """The status and the JSON of `/readyz`, without a key."""
    with served.client() as client:
        response = client.get("/readyz")
        assert client.head("/readyz").status_code == response.status_code
        return response.status_code, response.json()


def set_times(monkeypatch: pytest.MonkeyPatch, **times: float) -> None:
    """Give the probes of servers that start from now on other times."""
    defaults = Probes.__init__.__kwdefaults__
    assert defaults is not None
    for name, seconds in times.items():
        monkeypatch.setitem(defaults, name, seconds)


def test_liveness_and_readiness_over_the_life_of_a_worker(
    worker: Client, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/livez` is 200 from the first to the last moment; `/readyz` is 503 with the reason until requests are served."""
    set_times(monkeypatch, store_wait_s=PATIENCE)
    label = "mini (packed, float32, cpu)"
    with Served(None, settings=serve(API_KEY="k").operations.settings) as served, served.client() as client:
        assert readiness(served) == (503, {"status": "loading", "reason": "the model is loading"})
        assert client.get("/livez").json() == {"status": "alive"}
        served.do("open", worker.operations)
        assert readiness(served) == (200, {"status": "ready", "model": label, "store": "ready"})
        served.do("close")
        status, answer = readiness(served)
        assert (status, answer["status"]) == (503, "draining")
        assert "shutting down" in answer["reason"]
        served.do("close", lost=True)
        assert readiness(served) == (503, {"status": "lost", "reason": "the last device is lost"})
        assert (client.get("/livez").status_code, client.head("/livez").status_code) == (200, 200)


def test_a_worker_whose_store_is_down_is_ready_and_says_so(serve: Serve, tmp_path: Path) -> None:
    """Without its store a worker still embeds and scores, so it stays ready, and the answer says what is missing."""
    double = GrpcDouble(tmp_path)
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, pause_s=0.001, interactive_deadline_s=0.01)
    with Served(serve(store=store).operations) as served:
        double.fail("CollectionExists", grpc.StatusCode.UNAVAILABLE, times=1000)
        status, answer = readiness(served)
        assert (status, answer["status"], answer["store"]) == (200, "ready", "unavailable")
        assert answer["reason"] == "the store does not answer; requests that only embed or score texts are answered"
    store.close()
    double.stop()


class SlowStore(EdgeStore):
    """A store that looks up a name when its gate is set, and counts how often it is asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.calls = 0
        self.gate = threading.Event()

    def collection_of(self, name: str, *, patient: bool = False) -> str | None:
        """See `Store.collection_of`."""
        self.calls += 1
        assert self.gate.wait(PATIENCE)
        return super().collection_of(name, patient=patient)


def test_a_slow_store_delays_no_probe_and_is_asked_once(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe waits for a limited time, and many probes without a key cost the store one call."""
    set_times(monkeypatch, store_wait_s=0.05, store_state_kept_s=10 * PATIENCE)
    store = SlowStore(tmp_path / "slow")
    with Served(serve(store=store).operations) as served:
        assert readiness(served)[1]["store"] == "unavailable"
        store.gate.set()
        asyncio.run(until(lambda: readiness(served)[1]["store"] == "ready"))
        assert store.calls == 1
    store.close()


@pytest.mark.parametrize(
    ("named", "state", "says"),
    [
        (True, "unopened", None),
        (False, "none", "the worker has no store; requests that only embed or score texts are answered"),
    ],
)
@pytest.mark.usefixtures("elsewhere")
def test_a_worker_without_an_open_store_says_so(embedder: Embedder, named: bool, state: str, says: str | None) -> None:
    """An embedded store is opened by the first request that needs it, and a probe neither opens nor creates it."""
    settings = Settings.from_environment(ENVIRONMENT)
    with Served(Operations(settings if named else settings.without_default_store(), embedder)) as served:
        status, answer = readiness(served)
    assert (status, answer["store"], answer.get("reason")) == (200, state, says)
    assert not Path("qdrant_data").exists()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make an empty directory the current one."""
    monkeypatch.chdir(tmp_path)


def test_head_answers_as_get_does_without_a_body(worker: Client) -> None:
    """HEAD has the status and the headers of GET on every path that costs little; monitors and proxies use it."""
    paths = ["/", "/docs", "/ping", "/health", "/livez", "/readyz", "/metrics", "/openapi.json", "/v1/models"]
    with Served(worker.operations) as served, served.client(**{"Accept-Encoding": "identity"}) as client:
        for path in [*paths, "/v1/models/mini"]:
            head, got = client.head(path), client.get(path)
            assert head.status_code == got.status_code == 200, path
            assert head.content == b""
            if path != "/metrics":  # which counts the first of the two requests
                assert head.headers["content-length"] == got.headers["content-length"], path
            assert head.headers.get("content-type") == got.headers.get("content-type")
        assert client.head("/collections").status_code == 405
