"""Pages of other sites that reach the worker through a browser: by its own name, or by theirs (DNS rebinding)."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest

from service.settings import Settings
from service.transports.cli.healthcheck import check
from service.transports.http.server import listening
from tests.hostile.raw_client import RawClient
from tests.loopback import free_port
from tests.service.client import ENVIRONMENT, PATIENCE, Json
from tests.service.conftest import Serve
from tests.service.served import Served

SEARCH: Json = {"texts": ["a"], "vectors": ["dense"]}
PAGE = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        ({}, "evil.test", 200),
        ({"HOST": "127.0.0.1"}, "evil.test", 421),
        ({"HOST": "127.0.0.1"}, "127.0.0.1.evil.test:8000", 421),
        ({"HOST": "127.0.0.1"}, "localhost.evil.test", 421),
        ({"HOST": "127.0.0.1"}, "evil.test:localhost", 421),
        ({"HOST": "127.0.0.1"}, "[::1]evil.test", 421),
        ({"HOST": "127.0.0.1"}, "", 421),
        ({"HOST": "127.0.0.1"}, "localhost", 200),
        ({"HOST": "127.0.0.1"}, "LOCALHOST:9999", 200),
        ({"HOST": "127.0.0.1"}, "127.0.0.1:8000", 200),
        ({"HOST": "::1"}, "[::1]:8000", 200),
        ({"HOST": "127.0.0.2"}, "127.0.0.2", 200),
        ({"HOST": "127.0.0.1", "ALLOWED_HOSTS": "worker.example.org"}, "localhost", 421),
        ({"HOST": "127.0.0.1", "ALLOWED_HOSTS": "*"}, "evil.test", 200),
        ({"HOST": "0.0.0.0"}, "evil.test", 200),  # noqa: S104
        ({"ALLOWED_HOSTS": "worker.example.org"}, "Worker.Example.org:443", 200),
        ({"ALLOWED_HOSTS": "worker.example.org"}, "worker.example.org.", 200),
        ({"ALLOWED_HOSTS": "worker.example.org"}, "evil.test", 421),
        ({"ALLOWED_HOSTS": "localhost:8000"}, "localhost:8000", 200),
        ({"ALLOWED_HOSTS": "localhost:8000"}, "localhost:8001", 421),
        ({"ALLOWED_HOSTS": "localhost:8000"}, "localhost", 421),
        ({"ALLOWED_HOSTS": "localhost:80"}, "localhost", 200),
    ],
)  # fmt: skip
def test_only_allowed_hosts_are_answered(serve: Serve, settings: dict[str, str], host: str, status: int) -> None:
    """A request that names another host is 421 with the way out; nothing of its host is repeated."""
    with Served(serve(**settings).operations) as served, served.client(Host=host) as client:
        answer = client.post("/embed", json=SEARCH)
        assert answer.status_code == status
        assert client.get("/").status_code == status  # the page
        if status == 421:
            assert answer.json()["error_code"] == "invalid_request"
            assert "ALLOWED_HOSTS=" in answer.json()["error"]
            assert "evil" not in answer.text
        for probe in ("/livez", "/readyz", "/ping", "/health"):
            assert client.get(probe).status_code == 200


def test_a_request_with_two_hosts_or_none_is_refused(serve: Serve) -> None:
    """A second host does not hide the first one, and HTTP/1.0 without a host is answered to probes alone."""
    with Served(serve(HOST="127.0.0.1").operations) as served:
        for path, status in (("/collections", 421), ("/livez", 200)):
            with RawClient(served.port) as client:
                client.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                assert client.answer().status == status
        with RawClient(served.port) as client:
            client.send(b"GET /collections HTTP/1.1\r\nHost: localhost\r\nHost: evil.test\r\n\r\n")
            assert client.answer().status in (400, 421)


def test_a_foreign_page_is_refused_before_its_body_is_read(serve: Serve) -> None:
    """Without a key the page of another origin gets no answer; that of the worker does, also behind a proxy."""
    with Served(serve(CORS_ORIGINS="https://app.example.org").operations) as served:
        own = f"127.0.0.1:{served.port}"
        for headers, status in (
            ({"Origin": "http://evil.test"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": f"http://{own}.evil.test"}, 403),
            ({"Origin": f"http://{own}"}, 200),
            ({"Origin": "https://app.example.org"}, 200),
            ({"Origin": "https://worker.example.org", "Host": "worker.example.org"}, 200),
            ({"Origin": "https://worker.example.org", "Sec-Fetch-Site": "same-origin"}, 200),
            ({"Origin": "https://evil.test", "Sec-Fetch-Site": "cross-site"}, 403),
            ({}, 200),
        ):
            with served.client(**headers) as client:
                answer = client.post("/embed", json=SEARCH)
                assert answer.status_code == status, headers
                assert client.get("/collections").status_code == status
                assert client.get("/livez").status_code == 200
                if status == 403:
                    assert answer.json()["error_code"] == "invalid_request"
                    assert "CORS_ORIGINS" in answer.json()["error"]
                    assert "evil" not in answer.text
        with RawClient(served.port) as client:
            client.send(
                b"POST /embed HTTP/1.1\r\nHost: x\r\nOrigin: http://evil.test\r\nContent-Type: application/json\r\n"
                b"Content-Length: 1000000\r\n\r\n"
            )
            assert client.answer().status == 403  # while the body has not begun


def test_the_server_listens_where_it_is_told() -> None:
    """`HOST=127.0.0.1` opens the port on the loopback interface alone; unset it is open on all of them."""
    settings = Settings.from_environment({**ENVIRONMENT, "HOST": "127.0.0.1"})
    with listening(free_port(), settings.host) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    with listening(free_port(), Settings.from_environment(ENVIRONMENT).host) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"  # noqa: S104
    if socket.has_ipv6:
        for host in ("::1", "::"):
            with listening(free_port(), host) as listener:
                assert listener.getsockname()[0] == host


@pytest.mark.parametrize(
    ("host", "family"), [("127.0.0.1", socket.AF_INET), ("", socket.AF_INET), ("::", socket.AF_INET6)]
)
def test_the_health_check_asks_where_the_server_listens(host: str, family: socket.AddressFamily) -> None:
    """The health check of a container connects to the interface of `HOST`."""
    if family == socket.AF_INET6 and not socket.has_ipv6:
        pytest.skip("no IPv6")
    with socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family) as listener:
        answering = threading.Thread(target=_answer_once, args=(listener,))
        answering.start()
        health = check({"PORT": str(listener.getsockname()[1]), "HOST": host}, timeout_s=PATIENCE)
        answering.join(PATIENCE)
    assert health.healthy, health.reason


def _answer_once(listener: socket.socket) -> None:
    """Answer one request with status 200."""
    listener.settimeout(PATIENCE)
    with suppress(TimeoutError):
        accepted, _ = listener.accept()
        with accepted:
            accepted.recv(65_536)
            accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
