"""The MCP server over streamable HTTP: who may call it, and how the command line refuses unsafe options."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import httpx2
import pytest
from bge_m3_qdrant_client import HttpTarget
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from service.api_keys import ApiKeys
from service.transports.mcp.run import McpOptions, tool_server
from service.transports.mcp.streamable_http import REQUEST_MAX_BYTES, HttpOptions
from tests.command_line import invoke
from tests.hostile.raw_client import RawClient
from tests.service.mcp_sessions import Session, listening

KEY = "open-barley"
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}},
}
HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The program with a key, and a worker that is down."""
    with listening("--url", "http://127.0.0.1:9", "--allow-host", "search.example.org", MCP_API_KEY=KEY) as opened:
        yield opened


def posted(address: str, **headers: str) -> httpx.Response:
    """The answer to a handshake with these headers."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(address, json=INITIALIZE, headers={**HEADERS, **given}, trust_env=False)


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {KEY}", KEY, "Bearer", f"Bearer {KEY}x"])
def test_a_request_without_the_key_is_refused(address: str, authorization: str | None) -> None:
    """Without the key there is no handshake, and the refusal says how to send one."""
    answer = posted(address, **({} if authorization is None else {"Authorization": authorization}))
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert KEY not in answer.text


def test_the_key_opens_a_session(address: str) -> None:
    """A client of the SDK with the key as a bearer sees the tools."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[Client]:
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as http,
            Client(streamable_http_client(address, http_client=http)) as client,
        ):
            yield client

    with Session(connect) as session:
        assert set(session.tools()) == {"search", "read_points", "list_collections"}
        assert session.refused("list_collections")["error_code"] == "connection_failed"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content_Type": "text/plain"}, 400),
        ({"Host": "search.example.org"}, 200),
        ({"Host": "search.example.org:443", "Origin": "https://search.example.org"}, 200),
        ({"Host": "localhost:1"}, 200),
    ],
)
def test_a_page_of_another_site_cannot_use_the_port(address: str, headers: dict[str, str], status: int) -> None:
    """Only names of this machine and those that the operator allows are answered, as host and as origin."""
    assert posted(address, Authorization=f"Bearer {KEY}", **headers).status_code == status


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /mcp HTTP/1.1\r\n" + b"x: y\r\n" * 10_000, 431),
        (b"GET /" + b"x" * 100_000, 431),
        (b"GET /mcp HTTP/1.1\r\n" + b"x: y\r\n" * 300 + b"\r\n", 431),
        (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 414),
        (b"\x16\x03\x01\x02\x00\x01" + b"\x00" * 1000 + b"\n", 400),
    ],
)
def test_a_client_without_a_key_is_bounded(address: str, sent: bytes, status: int) -> None:
    """What a client sends before its key is known has the bounds of the worker's own port, and the rest is not kept."""
    with RawClient(int(address.removeprefix("http://").partition("/")[0].partition(":")[2])) as client:
        client.send_up_to(sent, len(sent))
        answer = client.answer()
    assert answer.status == status
    assert set(json.loads(answer.body)) == {"error"}
    assert posted(address).status_code == 401


def test_a_large_request_is_refused(address: str) -> None:
    """A body beyond the limit is refused by its length, before it is sent."""
    parts = address.removeprefix("http://").partition("/")[0].split(":")
    with socket.create_connection((parts[0], int(parts[1]))) as connection:
        head = (
            f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {REQUEST_MAX_BYTES + 1}\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert b" 413 " in connection.makefile("rb").readline()


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.8.8.8", True), ("10.0.0.7", False), ("::", False)],
)
def test_the_loopback_is_known(host: str, is_loopback: bool) -> None:
    """A key is required on every address that another machine could reach."""
    assert HttpOptions(host, 8765).is_loopback is is_loopback


def test_a_port_of_all_interfaces_answers_only_names_that_are_allowed() -> None:
    """The protection stays on whatever the address is, and names without a port stand for any port."""
    security = HttpOptions("0.0.0.0", 8765, ApiKeys.parse(KEY), ["search.example.org", "10.0.0.7:8765"]).security  # noqa: S104
    assert security.enable_dns_rebinding_protection
    assert {"search.example.org", "search.example.org:*", "10.0.0.7:8765"} <= set(security.allowed_hosts)
    assert "10.0.0.7:8765:*" not in security.allowed_hosts


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--http", "0.0.0.0:8765"], "--http 0.0.0.0 is open to other machines: set MCP_API_KEY"),
        (["--http", "nowhere"], "must be HOST:PORT"),
        (["--http", "::1:80"], "must be HOST:PORT"),
        (["--http", "127.0.0.1:70000"], "must be HOST:PORT"),
        (["--url", "http://x", "--endpoint", "abc"], "--url and --endpoint exclude each other"),
        (["--in-process", "--endpoint", "abc"], "--endpoint and --in-process exclude each other"),
        (["--endpoint", "abc"], "--endpoint needs the key of RunPod"),
        (["--url", "ftp://x"], "the address must begin with http:// or https://"),
        (["--key", "a b"], "--key must have at least one character"),
        (["--http", "127.0.0.1:0", "--api-key", '["a", "a"]'], "--api-key must not have a key twice"),
        (["--max-characters", "10"], "is not in the range"),
    ],
)
def test_unsafe_and_contradictory_options_are_refused(arguments: list[str], says: str) -> None:
    """The program refuses to start with one line that says what to change, and shows no key."""
    ended = invoke("mcp", *arguments)
    assert ended.status == 2
    assert says in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.slow
def test_an_endpoint_is_not_started_to_list_the_tools() -> None:
    """Where asking may start a worker, only calls ask it."""

    class Counted(httpx.AsyncBaseTransport):
        requests = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.requests += 1
            raise httpx.ConnectError("down")

    async def listed(url: str | None) -> int:
        from bge_m3_qdrant_client import RunPodTarget

        counted = Counted()
        target = RunPodTarget("abc", api_key=KEY) if url is None else HttpTarget(url)
        async with tool_server(McpOptions(target=target), counted) as server, Client(server) as client:
            tools = await client.list_tools()
            assert "has not answered yet" in (tools.tools[0].description or "")
        return counted.requests

    assert asyncio.run(listed(None)) == 0
    assert asyncio.run(listed("http://worker")) > 0
