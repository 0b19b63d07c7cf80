"""Requirements of platforms: the test jobs of RunPod's hub, and Docker's health check."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from service.transports.cli.healthcheck import check
from tests.service.client import Client

HUB_TESTS = json.loads((Path(__file__).parents[2] / ".runpod" / "tests.json").read_text(encoding="utf-8"))


@contextmanager
def answering(code: int) -> Iterator[int]:
    """Yield the port of a server whose /ping answers with this status."""

    class Ping(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code if self.path == "/ping" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Ping)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(("code", "healthy"), [(200, True), (204, False), (503, False)])
def test_a_container_is_healthy_when_its_http_server_is_ready(code: int, healthy: bool) -> None:
    """A server that loads or shuts down is not healthy, and neither is one that does not listen."""
    with answering(code) as port:
        assert check({"PORT": str(port)}).healthy is healthy
        assert check({"PORT": f'"{port}"\n'}).healthy is healthy, "as the settings read it"
    assert not check({"PORT": str(port)}).healthy, "nobody listens"


def test_a_queue_worker_is_healthy_without_a_port() -> None:
    """It has no HTTP server to ask, even where the platform sets `PORT`."""
    assert check({}).healthy
    assert check({"PORT": "1", "RUNPOD_WEBHOOK_GET_JOB": "https://queue?"}).healthy


@pytest.mark.parametrize("test", HUB_TESTS["tests"], ids=lambda test: test["name"])
def test_the_jobs_of_the_hub_are_answered(worker: Client, test: dict[str, Any]) -> None:
    """The test jobs of RunPod's hub succeed without a Qdrant server."""
    assert set(test) == {"name", "input", "timeout"}
    worker.good(test["input"])
    environment = {variable["key"]: variable["value"] for variable in HUB_TESTS["config"]["env"]}
    settings = Settings.from_environment(environment)
    assert settings.qdrant_url is None
    assert settings.names_store, "a queue worker refuses to store on a disk that nobody chose"
