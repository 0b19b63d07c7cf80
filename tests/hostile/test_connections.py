"""What a client may do before it has a key: heads, pipelined requests, slow bodies and answers, and connections."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from service.transports.http.connection import (
    HEAD_MAX_BYTES,
    HEADERS_MAX,
    HELD_MAX_BYTES,
    TARGET_MAX_BYTES,
    Connection,
)
from service.transports.http.connections import (
    DISCARD_TIMEOUT_S,
    HEAD_TIMEOUT_S,
    IDLE_TIMEOUT_S,
    LINGER_S,
    PROBE_CONNECTIONS_MAX,
    PROGRESS_TIMEOUT_S,
    ConnectionLimits,
    connections_max,
)
from tests.hostile.raw_client import UNFINISHED, RawClient, head, post
from tests.loopback import Worker, free_port
from tests.service.client import PATIENCE, Client, until
from tests.service.served import Served

READ_MAX_BYTES = 256 * 1024
"""Most that asyncio reads from a socket at a time."""


@pytest.fixture
def served(worker: Client) -> Iterator[Served]:
    """A server with the default limits."""
    with Served(worker.operations) as opened:
        yield opened


@pytest.fixture
def small(worker: Client) -> Iterator[Served]:
    """A server with four connections, which are closed for others at any age."""
    with Served(worker.operations, limits=ConnectionLimits(connections=4, evicted_min_age_s=0.0)) as opened:
        yield opened


def later(served: Served, seconds: float) -> None:
    """Check the connections as the server does so many seconds from now."""

    async def check() -> None:
        served.connections.check(asyncio.get_running_loop().time() + seconds)

    asyncio.run_coroutine_threadsafe(check(), served._loop).result(PATIENCE)


def until_all(served: Served, *activities: str) -> None:
    """Wait until the connections do this, in the order in which they were opened."""
    asyncio.run(until(lambda: tuple(client.activity for client in list(served.connections._open)) == activities))


def refusals(served: Served) -> dict[str, int]:
    """The number of refused clients by reason, from the metrics."""
    with served.client() as client:
        lines = client.get("/metrics").text
    counts = re.findall(r'^bge_m3_http_refused_total{reason="(\w+)"} (\S+)', lines, re.MULTILINE)
    return {reason: int(float(count)) for reason, count in counts}


CHUNKED = head("POST", "/embed", "Content-Type: application/json", "Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"GET /livez HTTP/1.1\r\n", b"X-Long: " + b"a" * 1000 + b"\r\n"),
        (b"GET /", b"a" * 1000),
        (b"GET /livez HTTP/1.1\r\nX-Long: ", b"a" * 1000),
        (CHUNKED, b"1" + b";a=b" * 250),
        (
            head("POST", "/embed", "Content-Type: application/json", "Transfer-Encoding: chunked")
            + b"2\r\n{}\r\n0\r\n",
            b"X-Trailer: " + b"a" * 1000 + b"\r\n",
        ),
    ],
    ids=["headers", "target", "header", "chunk extension", "trailers"],
)
def test_a_head_without_end_is_refused_before_it_is_held(served: Served, start: bytes, part: bytes) -> None:
    """A head, a chunk's head or trailers that never end are refused at 32 kB, and no more of them is held."""
    with RawClient(served.port) as client:
        client.send(start)
        most = 0
        for _ in range(1 + (HEAD_MAX_BYTES + READ_MAX_BYTES) // len(part)):
            try:
                client.send(part)
            except OSError:
                break
            most = max(most, served.connections.held_bytes)
        answer = client.answer()
        assert (answer.status, answer.code) == (431, "invalid_request")
        assert f"{HEAD_MAX_BYTES} bytes" in answer.body.decode()
    assert most <= HEAD_MAX_BYTES + READ_MAX_BYTES
    assert refusals(served) == {"head_too_large": 1}


def test_the_largest_head_is_served(served: Served) -> None:
    """A head just below each limit is answered, and one above it is refused with the limit and the value."""
    with RawClient(served.port) as client:
        client.send(head("GET", "/livez", "X-Long: " + "a" * (HEAD_MAX_BYTES - 200)))
        assert client.answer().status == 200
        client.send(head("GET", "/livez", *(f"X-{n}: a" for n in range(HEADERS_MAX - 1))))
        assert client.answer().status == 200
        client.send(head("GET", "/livez?" + "a" * (TARGET_MAX_BYTES - 6)))
        assert client.answer().status == 200
        client.send(head("GET", "/livez?" + "a" * (TARGET_MAX_BYTES - 5)))
        long = client.answer()
        assert (long.status, long.code) == (414, "invalid_request")
        assert f"{TARGET_MAX_BYTES} bytes, got {TARGET_MAX_BYTES + 1}" in long.body.decode()
        client.send(head("GET", "/livez", *(f"X-{n}: a" for n in range(HEADERS_MAX))))
        many = client.answer()
        assert (many.status, many.code) == (431, "invalid_request")
        assert f"{HEADERS_MAX} headers, got {HEADERS_MAX + 1}" in many.body.decode()


def test_too_many_headers_are_refused_before_they_are_parsed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32 kB of short headers none is parsed, also where the head has no end; a request of many lines is no head."""
    parsed = []
    handle = Connection.handle_events

    def watched(connection: Connection) -> None:
        parsed.append(len(connection.conn.trailing_data[0]))
        handle(connection)

    monkeypatch.setattr(Connection, "handle_events", watched)
    for end in (b"\r\n", b""):
        with RawClient(served.port) as client:
            client.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"a:\r\n" * 7000 + end)
            answer = client.answer()
            assert (answer.status, answer.code) == (431, "invalid_request")
            assert client.is_closed()
    assert parsed == []
    with RawClient(served.port) as client:
        client.send(post("/embed", {"texts": ["a"]})[:-1] + b"\n" * 1000 + b"}")
        assert client.answer().status == 400  # of a length that ends within the lines
    with served.client() as other:
        lines = b'{"texts": ["a"]' + b"\n" * 1000 + b"}"
        assert other.post("/embed", content=lines, headers={"Content-Type": "application/json"}).status_code == 200


@pytest.mark.parametrize("size", [1, 2, 3, 100_001])
def test_empty_lines_before_a_request_are_left_out(served: Served, size: int) -> None:
    """Empty lines after a body, as some clients send them, are no request, however they are cut into packets."""
    with RawClient(served.port) as client:
        client.send(head())
        assert client.answer().status == 200
        lines = b"\r\n" * max(2, size // 2)
        for start in range(0, len(lines), size):
            client.send(lines[start : start + size])
            asyncio.run(until(lambda: served.connections.held_bytes <= 1))
        client.send(head())
        assert client.answer().status == 200


def test_others_are_answered_within_a_body_of_many_chunks(served: Served) -> None:
    """A body in 100 000 chunks of one byte is parsed bit by bit, probes are answered meanwhile, and it is answered."""
    content = b'{"texts": ["a"], "vectors": ["dense"]' + b" " * 100_000 + b"}"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n"
    with RawClient(served.port) as client, RawClient(served.port) as other:
        before = served.connections.turns.count
        client.send(CHUNKED)
        client.send(chunks)
        other.send(head())
        assert other.answer().status == 200
        assert client.answer().status == 200
        parts = served.connections.turns.count - before
        assert parts >= len(chunks) // 8192
        client.send(CHUNKED + b"1\r\n{\r\n" + b"0\r\n\r\n" + head() * 2)
        assert [client.answer().status for _ in range(3)] == [400, 200, 200]


def test_a_stop_waits_for_chunks_that_have_arrived(worker: Client) -> None:
    """A body in chunks that a stop finds waiting for its turn is read to its end and answered."""
    content = b'{"texts": ["a"], "vectors": ["dense"]' + b" " * 20_000 + b"}"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n"
    limits = ConnectionLimits(stop_progress_s=PATIENCE)  # for the rest, which the test sends after the stop
    with Served(worker.operations, limits=limits) as served, RawClient(served.port) as client:
        client.send(CHUNKED + chunks[:60_000])
        asyncio.run(until(lambda: served.running == {"/embed": 1}))
        served.stop()
        client.send(chunks[60_000:])
        assert client.answer().status == 200
        assert client.is_closed()
    assert not served.connections.cut


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01\x00", b"HELLO\r\n\r\n", b"GET / HTTP/1.1\r\n bad\r\n\r\n"])
def test_what_is_not_http_is_refused_in_the_workers_form(served: Served, sent: bytes) -> None:
    """Bytes of another protocol get an error in JSON, and the connection is closed."""
    with RawClient(served.port) as client:
        client.send(sent + b"\r\n\r\n")
        answer = client.answer()
        assert (answer.status, answer.code) == (400, "invalid_request")
        assert client.is_closed()


@pytest.mark.parametrize(
    "sent",
    [
        head("POST", "/embed", "Content-Type: application/json", "Content-Length: 3", "Transfer-Encoding: chunked"),
        head("POST", "/embed", "Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0"),
        head("POST", "/embed", "Content-Length: 3", "Content-Length: 4"),
        head("POST", "/embed", "Transfer-Encoding: gzip, chunked"),
        head("POST", "/embed", "Transfer-Encoding : chunked"),
    ],
    ids=["both", "1.0", "two lengths", "two codings", "blank"],
)
def test_a_body_of_two_readings_is_refused(served: Served, sent: bytes) -> None:
    """A request that a proxy may have read otherwise is refused, and what follows it is no request."""
    with RawClient(served.port) as client:
        client.send(sent + b"0\r\n\r\n" + head())
        answer = client.answer()
        assert (answer.status, answer.code) == (400, "invalid_request")
        assert client.is_closed()
    assert refusals(served) == {"invalid_http": 1}


def test_a_client_that_resets_its_connection_is_no_defect(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal to a client that has gone meanwhile is no error of the worker."""

    def write_eof(_transport: object) -> None:
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr("asyncio.selector_events._SelectorSocketTransport.write_eof", write_eof)
    with RawClient(served.port) as client:
        client.send(head("POST", "/nowhere", "Content-Length: 2") + b"{}" + b"HELLO\r\n\r\n")
        assert client.answer().status == 404
        assert client.answer().status == 400
    asyncio.run(until(lambda: len(served.connections) == 0))
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_refused_clients_share_a_line_of_the_log(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """A hundred invalid requests are one line and a count, rather than a hundred lines."""
    caplog.set_level(logging.INFO)
    for _ in range(100):
        with RawClient(served.port) as client:
            client.send(b"HELLO\r\n\r\n")
            assert client.answer().status == 400
    assert refusals(served) == {"invalid_http": 100}
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.getMessage() for line in lines] == [
        "refused clients: what they sent is not HTTP; 1 since the last line"
    ]


def test_pipelined_requests_are_answered_in_their_order(served: Served) -> None:
    """A client that sends some requests before it reads gets all answers, also those of bodies."""
    requests = [post("/embed", {"texts": ["a"] * count, "vectors": ["dense"]}) for count in range(1, 6)]
    with RawClient(served.port) as client:
        client.send(b"".join(requests) + b"\r\n" + head() * 50)
        answers = [client.answer() for _ in range(55)]
    assert [answer.status for answer in answers] == [200] * 55
    assert [len(json.loads(answer.body)["results"]) for answer in answers[:5]] == [1, 2, 3, 4, 5]


def test_pipelined_requests_without_end_are_not_read(served: Served) -> None:
    """While a client reads no answer, the server reads no more of its requests than it may hold."""
    with RawClient(served.port, receive_buffer=4096) as client:
        sent = client.send_up_to(head("GET", "/docs") * 1000, 60_000_000)
        assert sent < 60_000_000
        assert served.connections.held_bytes <= HELD_MAX_BYTES + READ_MAX_BYTES
        with served.client() as other:
            assert other.get("/livez").status_code == 200


def test_a_body_survives_the_offer_of_another_protocol(served: Served) -> None:
    """A request that offers HTTP/2, as Java's HttpClient does, is served with its body over HTTP/1.1."""
    with RawClient(served.port) as client:
        offer = post(
            "/embed", {"texts": ["a"]}, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA"
        )
        whole, _, body = offer.partition(b"\r\n\r\n")
        client.send(whole + b"\r\n\r\n")
        client.send(body)
        assert client.answer().status == 200
        client.send(post("/embed", {"texts": ["a"]}))
        assert client.answer().status == 200


def test_a_head_must_end_in_time(served: Served) -> None:
    """A head that is not complete in time is 408, and a connection without a byte is closed."""
    with RawClient(served.port) as silent, RawClient(served.port) as slow:
        slow.send(b"GET /livez HTTP/1.1\r\nHost: local")
        asyncio.run(until(lambda: len(served.connections) == 2 and served.connections.held_bytes > 0))
        later(served, HEAD_TIMEOUT_S)
        answer = slow.answer()
        assert (answer.status, answer.code) == (408, "invalid_request")
        assert slow.is_closed()
        assert silent.is_closed()
        later(served, LINGER_S)
        asyncio.run(until(lambda: len(served.connections) == 0))
    assert refusals(served) == {"head_timeout": 1}


def test_the_head_of_a_later_request_must_end_in_time(served: Served) -> None:
    """The time of a head begins with its first byte, and an idle connection has longer."""
    with RawClient(served.port) as client:
        client.send(head() + b"GET /li")
        assert client.answer().status == 200
        asyncio.run(until(lambda: served.connections.held_bytes == len(b"GET /li")))
        later(served, HEAD_TIMEOUT_S)
        assert client.answer().status == 408
    asyncio.run(until(lambda: len(served.connections) == 0))
    with RawClient(served.port) as client:
        for _ in range(2):
            client.send(head())
            assert client.answer().status == 200
            until_all(served, "waiting")
            later(served, HEAD_TIMEOUT_S)
        later(served, IDLE_TIMEOUT_S)
        assert client.is_closed()
    assert refusals(served) == {"head_timeout": 1}


def test_a_body_must_come_in_time(served: Served) -> None:
    """A client that goes on byte by byte is refused, and its request ends."""
    with RawClient(served.port) as client:
        client.send(UNFINISHED)
        until_all(served, "sending")
        client.send(b"111")
        later(served, PROGRESS_TIMEOUT_S)
        answer = client.answer()
        assert (answer.status, answer.code) == (408, "invalid_request")
    assert refusals(served) == {"body_timeout": 1}


def test_a_body_that_nobody_reads_has_an_end(served: Served) -> None:
    """After a refusal the rest of a body is dropped for a time, and then the connection is closed."""
    with RawClient(served.port) as client:
        client.send(head("POST", "/nowhere", "Content-Type: application/json", "Content-Length: 1000000000") + b"{")
        assert client.answer().status == 404
        until_all(served, "waiting")
        later(served, DISCARD_TIMEOUT_S)
        assert client.is_closed()


def test_an_answer_must_be_read_in_time(served: Served) -> None:
    """A client that reads no answer is cut, and what was held for it is free."""
    seconds = itertools.count(PROGRESS_TIMEOUT_S, PROGRESS_TIMEOUT_S)

    def is_cut() -> bool:
        later(served, next(seconds))  # the kernel may still take parts of the answer before it takes no more
        return len(served.connections) == 0

    with RawClient(served.port, receive_buffer=4096) as client:
        client.send(post("/embed", {"texts": ["word " * 1000] * 8, "vectors": ["colbert"]}))
        assert client.begins_to_answer()
        asyncio.run(until(is_cut))
    assert refusals(served) == {"answer_timeout": 1}


def test_waiting_connections_make_room(small: Served) -> None:
    """Idle and silent connections are closed for new ones, the one that has waited longest first."""
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(small.port)) for _ in range(4)]
        for client in clients:
            client.send(head())
            assert client.answer().status == 200
        new = stack.enter_context(RawClient(small.port))
        new.send(post("/embed", {"texts": ["a"]}))
        assert new.answer().status == 200
        assert clients[0].is_closed()
        clients[3].send(head())
        assert clients[3].answer().status == 200


def held(stack: ExitStack, served: Served, count: int) -> list[RawClient]:
    """Clients in the middle of their bodies, whose connections cannot be closed for others."""
    clients = [stack.enter_context(RawClient(served.port)) for _ in range(count)]
    for client in clients:
        client.send(UNFINISHED)
    return clients


def test_probes_are_answered_while_all_connections_are_in_use(worker: Client) -> None:
    """Beyond the maximum only probes are answered, everything else is 503, and a free place is used again."""
    with ExitStack() as stack:
        served = stack.enter_context(Served(worker.operations, limits=ConnectionLimits(connections=4)))
        clients = held(stack, served, 4)
        asyncio.run(until(lambda: len(served.connections) == 4))
        late = [stack.enter_context(RawClient(served.port)) for _ in range(2 * PROBE_CONNECTIONS_MAX)]
        assert len(served.connections) <= 4 + PROBE_CONNECTIONS_MAX + 1
        for path in ("/ping", "/livez", "/readyz", "/health"):
            late[-1].send(head("GET", path))
            assert late[-1].answer().status == 200
        late[-1].send(post("/embed", {"texts": ["a"]}))
        refused = late[-1].answer()
        assert (refused.status, refused.code) == (503, "overloaded")
        assert "all 4 connections (HTTP_MAX_CONNECTIONS)" in refused.body.decode()
        assert "retry-after: 5" in refused.head.lower()
        assert late[0].is_closed()
        clients[0].close()
        asyncio.run(until(lambda: len(served.connections) <= 3 + PROBE_CONNECTIONS_MAX))
        late[-1].send(post("/embed", {"texts": ["a"]}))
        assert late[-1].answer().status == 200


def test_one_address_has_its_own_maximum(worker: Client) -> None:
    """Beyond the maximum of an address its requests are 503; without the setting it has none."""
    limits = ConnectionLimits(connections=100, per_peer=2)
    with ExitStack() as stack:
        served = stack.enter_context(Served(worker.operations, limits=limits))
        held(stack, served, 2)
        client = stack.enter_context(RawClient(served.port))
        client.send(post("/embed", {"texts": ["a"]}))
        refused = client.answer()
        assert (refused.status, refused.code) == (503, "overloaded")
        assert "all 2 connections (HTTP_MAX_CONNECTIONS_PER_PEER)" in refused.body.decode()


@pytest.mark.parametrize(
    ("descriptors", "connections"), [(64, 16), (256, 112), (1024, 752), (4096, 1000), (1_048_576, 1000), (-1, 1000)]
)
def test_connections_leave_descriptors_to_the_rest(descriptors: int, connections: int) -> None:
    """The default maximum leaves a reserve for the store, for files and for probes."""
    assert connections_max(descriptors) == connections


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{}, {"HTTP_MAX_CONNECTIONS": "2000"}], ids=["default", "no limit"])
def test_a_process_with_few_descriptors_stays_alive(tmp_path: Path, variables: dict[str, str]) -> None:
    """Three hundred silent connections at a limit of 256 descriptors leave the probes alive and the log short.

    Also where the maximum of connections is set too high: then connections that cannot be accepted close others.
    """
    port = free_port()
    environment = {
        "MODEL_ID": "mini", "GPU_DEVICE": "cpu", "DTYPE": "float32", "TOKEN_BUDGET": "512", "PORT": str(port),
        "QDRANT_PATH": str(tmp_path / "store"), **variables,
    }  # fmt: skip
    root = Path(__file__).parents[2]
    with Worker(None, cwd=root, script="-m", args=("tests.programs.few_descriptors",), env=environment) as worker:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as client:

            def is_ready() -> bool:
                try:
                    return client.get("/ping").status_code == 200
                except httpx.TransportError:
                    return False

            asyncio.run(until(is_ready))
            before = len(worker.output.splitlines())
            with ExitStack() as stack:
                for _ in range(300):
                    stack.enter_context(RawClient(port))
                for _ in range(5):
                    with httpx.Client(base_url=client.base_url, timeout=PATIENCE, trust_env=False) as new:
                        assert new.get("/livez").status_code == 200
                        assert new.get("/ping").status_code == 200
                    stack.enter_context(RawClient(port))
            assert len(worker.output.splitlines()) - before <= 10
        worker.terminate()
        assert worker.wait(PATIENCE) == 0
