"""Points go to the server that `QDRANT_URL` names, and to no other server of the host."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedder import Embedder
from qdrant_sink import StoreUnavailable
from qdrant_sink.server import ServerStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Client, Json
from tests.sink.grpc_double import GrpcDouble
from tests.sink.rest_front import RestFront

CONFIG = '{"payloadIndexes": {"topic": "keyword"}}'


@dataclass
class Server:
    """One server with both APIs."""

    grpc: GrpcDouble
    rest: RestFront

    @property
    def is_untouched(self) -> bool:
        """Whether no request of any kind has arrived."""
        return not self.grpc.calls and not self.rest.requests


@dataclass
class Host:
    """One host with two servers: `usual` on ports 6333 and 6334, `other` on two other ports."""

    name: str
    usual: Server
    other: Server


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Two servers on an address of this machine that no other test uses."""
    name = f"127.{os.getpid() % 250 + 1}.{secrets.randbelow(250) + 1}.{secrets.randbelow(250) + 1}"
    servers = []
    for grpc_port, rest_port in ((6334, 6333), (0, 0)):
        root = tmp_path / str(rest_port)
        root.mkdir()
        double = GrpcDouble(root, name, grpc_port)
        servers.append(Server(double, RestFront(double, rest_port)))
    yield Host(name, *servers)
    for server in servers:
        server.rest.stop()
        server.grpc.stop()


@pytest.fixture
def work(embedder: Embedder) -> Iterator[Callable[..., Client]]:
    """A function that makes a worker whose store is opened from its settings."""
    workers = []

    def made(**variables: str) -> Client:
        settings = Settings.from_environment({**ENVIRONMENT, "QDRANT_COLLECTION_CONFIG": CONFIG, **variables})
        workers.append(Operations(settings, embedder))
        return Client(workers[-1])

    yield made
    for operations in workers:
        operations._store.close()


def exercise(worker: Client) -> None:
    """Create, write, read, delete and alias, each of which reaches the store by a call of its own."""
    target: Json = {"collection": "notes", "ids": [1, 2, 3], "payloads": [{"topic": name} for name in "abc"]}
    worker.good({"texts": ["one", "two", "three"], "isPassage": True, "qdrant": target})
    found = worker.good({"operation": "search", "collection": "notes", "queries": ["two"], "rerank": "colbert"})
    assert found["results"][0]["hits"][0]["id"] == 2
    like = {"operation": "search", "collection": "notes", "like": {"positive": [3]}, "using": ["dense"]}
    assert {hit["id"] for hit in worker.good(like)["results"][0]["hits"]} == {1, 2}
    matching = {"must": [{"key": "topic", "match": {"value": "a"}}]}
    assert worker.good({"operation": "delete", "collection": "notes", "filter": matching})["deleted"] == 1
    assert worker.good({"operation": "delete", "collection": "notes", "ids": [2]})["deleted"] == 1
    asyncio.run(worker.operations.collections.set_alias("live", "notes"))
    assert worker.good({"operation": "count", "collection": "live"})["count"] == 1


@pytest.mark.parametrize(
    ("url", "variables"),
    [
        ("http://{host}:6333", {}),
        ("http://{host}", {}),
        ('"HTTP://{host}:6333/"\n', {}),
        ("http://{host}:6333", {"QDRANT_TRANSPORT": "grpc"}),
        ("http://{host}:6334", {"QDRANT_TRANSPORT": "grpc"}),
        ("http://{host}:6333", {"QDRANT_TRANSPORT": "rest"}),
        ("http://{host}:6333", {"QDRANT_TRANSPORT": "rest", "QDRANT_GRPC_PORT": "{other_grpc}"}),
    ],
)
def test_the_usual_ports_are_one_server(
    host: Host, work: Callable[..., Client], url: str, variables: dict[str, str]
) -> None:
    """Port 6333, or none, and 6334 are one server, which everything reaches in each form of the URL and transport."""
    ports = {"host": host.name, "other_grpc": host.other.grpc.port}
    worker = work(QDRANT_URL=url.format(**ports), **{name: text.format(**ports) for name, text in variables.items()})
    exercise(worker)
    assert list(host.usual.grpc.collections) == ["notes"]
    assert host.usual.grpc.aliases == {"live": "notes"}
    assert host.other.is_untouched
    rest = variables.get("QDRANT_TRANSPORT") == "rest"
    assert worker.operations.store_label == f"Qdrant server ({'REST' if rest else 'gRPC'})"
    assert bool(host.usual.rest.requests) is rest


@pytest.mark.parametrize(
    ("url", "variables", "label"),
    [
        ("http://{host}:{rest}", {}, "Qdrant server (REST)"),
        ("http://{host}:{rest}", {"QDRANT_TRANSPORT": "rest"}, "Qdrant server (REST)"),
        ("http://{host}:{rest}", {"QDRANT_GRPC_PORT": "{grpc}"}, "Qdrant server (gRPC)"),
        ("http://{host}:{rest}", {"QDRANT_GRPC_PORT": "{grpc}", "QDRANT_TRANSPORT": "grpc"}, "Qdrant server (gRPC)"),
        ("http://{host}:{grpc}", {"QDRANT_GRPC_PORT": "{grpc}", "QDRANT_TRANSPORT": "grpc"}, "Qdrant server (gRPC)"),
    ],
)
def test_another_port_is_another_server(
    host: Host, work: Callable[..., Client], url: str, variables: dict[str, str], label: str
) -> None:
    """What is sent to another port of the host never reaches the server on 6333 and 6334."""
    ports = {"host": host.name, "rest": host.other.rest.port, "grpc": host.other.grpc.port}
    worker = work(QDRANT_URL=url.format(**ports), **{name: text.format(**ports) for name, text in variables.items()})
    exercise(worker)
    assert list(host.other.grpc.collections) == ["notes"]
    assert host.other.grpc.aliases == {"live": "notes"}
    assert host.usual.is_untouched
    assert worker.operations.store_label == label
    assert bool(host.other.rest.requests) is (label == "Qdrant server (REST)")


@pytest.mark.parametrize("transport", ["auto", "rest"])
def test_rest_on_an_unusual_port_warns_once(
    host: Host, work: Callable[..., Client], transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning names the setting that is missing, unless REST is asked for; it shows no host."""
    worker = work(QDRANT_URL=f"http://{host.name}:{host.other.rest.port}", QDRANT_TRANSPORT=transport)
    exercise(worker)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == (transport == "auto")
    assert all("set QDRANT_GRPC_PORT to use gRPC" in message for message in warnings)
    assert all(host.name not in message for message in warnings)


def test_a_path_of_a_proxy_is_another_server(host: Host, work: Callable[..., Client]) -> None:
    """Behind a path the usual port of gRPC may be another server's, so that only REST is asked, with the path."""
    worker = work(QDRANT_URL=f"http://{host.name}:6333/second/")
    worker.error({"operation": "count", "collection": "notes"}, "not_found")
    assert not host.usual.grpc.calls
    assert set(host.usual.rest.requests) == {"POST /second/collections/notes/points/count"}


def test_a_server_that_is_down_is_not_replaced_by_its_neighbour(host: Host) -> None:
    """If the named server does not answer, calls fail, whatever else listens on the host."""
    host.other.rest.stop()
    host.other.grpc.stop()
    for fields in ({}, {"grpc_port": host.other.grpc.port}, {"grpc_port": host.other.grpc.port, "transport": "grpc"}):
        store = ServerStore(f"http://{host.name}:{host.other.rest.port}", deadline_s=0.1, **fields)
        with pytest.raises(StoreUnavailable):
            store.count("notes")
        store.close()
    assert host.usual.is_untouched


def test_grpc_alone_is_never_replaced_by_rest(host: Host) -> None:
    """With `QDRANT_TRANSPORT=grpc` a server whose gRPC port does not answer is an error, and REST is not asked."""
    host.usual.grpc.stop()
    store = ServerStore(f"http://{host.name}:6333", transport="grpc", deadline_s=0.1)
    with pytest.raises(StoreUnavailable):
        store.count("notes")
    store.close()
    assert not host.usual.rest.requests
    assert host.other.is_untouched
