"""The MCP server: its tools over both transports, called with the SDK's own client, against a worker over HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any, Final

import pytest
from bge_m3_qdrant_client import HttpTarget, RunPodTarget
from loopback_endpoint import ENDPOINT, RunPodEndpoint
from loopback_endpoint import KEY as ENDPOINT_KEY
from mcp import Client
from mcp.types import ToolListChangedNotification
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from service.transports.mcp.in_process import OperationsTransport
from service.transports.mcp.run import McpOptions, tool_server
from service.wire import Codec
from tests.loopback import free_port
from tests.service.client import ENVIRONMENT, PATIENCE
from tests.service.client import Client as Worker
from tests.service.ingests import job
from tests.service.mcp_sessions import ROOT, Session, environment, listening, stdio
from tests.service.served import Served

KEY: Final = "sesame"
TEXTS: Final = {
    "rsync": ("rsync copies only the changed parts of files to another machine.", {"topic": "backup", "year": 1996}),
    "photorec": ("PhotoRec recovers deleted files from disks and cameras.", {"topic": "rescue", "year": 2002}),
    "sqlite": ("SQLite is a library that keeps a database in a single file.", {"topic": "data", "year": 2000}),
}
DESCRIPTIONS: Final = {"notes": "Notes on tools; filter by topic and year", "secret": "Not for everybody"}
LOADING: Final = (
    "torch",
    "transformers",
    "FlagEmbedding",
    "tokenizers",
    "qdrant_client",
    "qdrant_edge",
    "grpc",
    "service.operations",
)

Heard = list[object] | None


def operations(embedder: Embedder, store: EdgeStore, **variables: str) -> Operations:
    """The operations of a worker with described collections."""
    config = json.dumps({"descriptions": DESCRIPTIONS, "payloadIndexes": {"year": "integer"}})
    settings = Settings.from_environment({**ENVIRONMENT, "QDRANT_COLLECTION_CONFIG": config, **variables})
    return Operations(settings, embedder, store)


@pytest.fixture(scope="module")
def filled(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeStore]:
    """Qdrant Edge with the collections `notes` and `secret`."""
    store = EdgeStore(tmp_path_factory.mktemp("mcp") / "edge")
    worker = Worker(operations(embedder, store))
    for collection in ("notes", "secret"):
        worker.good(
            job(
                *(text for text, _ in TEXTS.values()),
                collection=collection,
                ids=list(TEXTS),
                payloads=[payload for _, payload in TEXTS.values()],
            )
        )
    yield store
    store.close()


@pytest.fixture(scope="module")
def served(filled: EdgeStore, embedder: Embedder) -> Iterator[Served]:
    """A worker over HTTP with a key."""
    with Served(operations(embedder, filled, API_KEY=KEY)) as server:
        yield server


@pytest.fixture(scope="module", params=["stdio", "http"])
def session(request: pytest.FixtureRequest, served: Served) -> Iterator[Session]:
    """A session over the standard streams of the program, and one over its port; both may use all collections."""
    if request.param == "stdio":
        with stdio(variables={"WORKER_URL": served.url, "WORKER_API_KEY": KEY}) as opened:
            yield opened
        return
    with listening(WORKER_URL=served.url, WORKER_API_KEY=KEY) as address, Session(lambda: Client(address)) as opened:
        yield opened


def within(url: str, key: str | None = KEY, *, mode: str = "legacy", heard: Heard = None, **options: Any) -> Session:
    """A session within this process, with a worker at this address."""
    serving = McpOptions(target=HttpTarget(url, api_key=key), timeout_s=PATIENCE, **options)
    return opened(serving, mode=mode, heard=heard)


def opened(
    options: McpOptions, transport: OperationsTransport | None = None, *, mode: str = "legacy", heard: Heard = None
) -> Session:
    """A session within this process.

    Args:
        options: what to serve.
        transport: answers in place of a worker.
        mode: how the client connects: `legacy` with a handshake, `auto` by the newest protocol.
        heard: receives what the server tells the client by itself.
    """

    async def hear(message: object) -> None:
        if heard is not None:
            heard.append(message)

    @asynccontextmanager
    async def connect() -> AsyncIterator[Client]:
        async with tool_server(options, transport) as server, Client(server, mode=mode, message_handler=hear) as client:
            yield client

    return Session(connect)


def test_the_tools_say_what_the_collections_hold_and_what_they_change(session: Session) -> None:
    """Without leave to store there are three tools that only read; the operator's words are in their descriptions."""
    tools = session.tools()
    assert set(tools) == {"search", "read_points", "list_collections"}
    assert f"- notes: {DESCRIPTIONS['notes']}" in (tools["search"].description or "")
    for tool in tools.values():
        assert tool.annotations is not None
        assert (tool.annotations.read_only_hint, tool.annotations.destructive_hint) == (True, False)
        for name, described in tool.input_schema["properties"].items():
            assert described["description"], name
    assert tools["search"].input_schema["required"] == ["query"]


def test_a_search_has_texts_ids_and_payloads(session: Session) -> None:
    """Hits are best first, each with its id, its score, its text once, and the rest of its payload."""
    answer = session.call("search", query="send only what changed", collection="notes", limit=2)
    assert (answer["collection"], len(answer["hits"])) == ("notes", 2)
    hit = answer["hits"][0]
    assert set(hit) == {"id", "score", "text", "payload"}
    assert hit["text"] == TEXTS["rsync"][0]
    assert hit["payload"] == {"id": "rsync", "topic": "backup", "year": 1996}


def test_a_search_takes_a_filter_and_a_reranker_and_explains(session: Session) -> None:
    """The filter holds for every hit, the reranker changes the scores, and the explanation names words."""
    newer = {"must": [{"key": "year", "range": {"gte": 2000}}]}
    question = "copy a file"
    found = session.call("search", query=question, collection="notes", filter=newer, explain=True)["hits"]
    assert {hit["payload"]["id"] for hit in found} == {"photorec", "sqlite"}
    assert all(set(hit["explain"]["ranks"]) == {"dense", "sparse"} for hit in found)
    assert any("file" in hit["explain"].get("shared_tokens", ()) for hit in found)
    reranked = session.call("search", query=question, collection="notes", filter=newer, rerank=True)["hits"]
    assert {hit["score"] for hit in reranked}.isdisjoint(hit["score"] for hit in found)


def test_points_are_read_by_the_id_of_the_caller_and_by_that_of_a_hit(session: Session) -> None:
    """Both ids lead to the point, and an id without a point is named."""
    (hit,) = session.call("search", query="deleted photos", collection="notes", limit=1)["hits"]
    answer = session.call("read_points", ids=["rsync", hit["id"], "absent"], collection="notes")
    assert [point["text"] for point in answer["points"]] == [TEXTS["rsync"][0], hit["text"]]
    assert answer["missing"] == ["absent"]


def test_collections_are_listed_with_descriptions_counts_and_filter_keys(session: Session) -> None:
    """A language model sees what to search, and by which keys it can filter."""
    answer = session.call("list_collections")
    notes = next(listed for listed in answer["collections"] if listed["name"] == "notes")
    assert notes == {
        "name": "notes",
        "description": DESCRIPTIONS["notes"],
        "points": 3,
        "filter_keys": {"year": "integer"},
    }


@pytest.mark.parametrize(
    ("tool", "arguments", "code", "says"),
    [
        ("search", {"query": "x", "collection": "absent"}, "not_found", "absent"),
        ("search", {"query": "x"}, "invalid_request", "collection is required; the collections are notes"),
        ("search", {"query": "", "limit": 51}, "invalid_request", "limit must be at most 50, got 51"),
        ("search", {"query": "x", "colection": "notes"}, "invalid_request", "unknown field 'colection'"),
        ("search", {"query": "x", "collection": "notes", "filter": {"must": 3}}, "invalid_request", "filter.must"),
        ("read_points", {"ids": [], "collection": "notes"}, "invalid_request", "ids must have at least 1 item, got 0"),
        ("read_points", {"ids": [1.5], "collection": "notes"}, "invalid_request", "ids[0]"),
        ("store", {"texts": ["x"], "collection": "notes"}, "invalid_request", "the tool is unknown"),
        ("list_collections", {"all": True}, "invalid_request", "unknown field 'all'"),
    ],
)
def test_a_wrong_call_is_an_error_that_says_what_to_change(
    session: Session, tool: str, arguments: dict[str, Any], code: str, says: str
) -> None:
    """The error has the code of the worker, whether the same call may succeed later, and what is wrong."""
    answer = session.refused(tool, **arguments)
    assert says in answer["error"]
    assert (answer["error_code"], answer["retryable"]) == (code, False)


def test_hostile_sizes_are_refused_before_the_worker_is_asked() -> None:
    """A query, a filter, ids, texts and payloads beyond their limits are errors even where there is no worker."""
    with within("http://127.0.0.1:9", collections=("notes",), allow_store=True) as session:
        for tool, arguments, says in (
            ("search", {"query": "x" * 32_769}, "query must have at most 32768 characters, got 32769"),
            ("search", {"query": "x", "filter": {"must": ["y" * 65_536]}}, "filter must have at most 65536 characters"),
            ("read_points", {"ids": list(range(101))}, "ids must have at most 100 items, got 101"),
            ("read_points", {"ids": ["x" * 1025]}, "must have at most 1024 characters, got 1025"),
            ("store", {"texts": ["x"] * 101}, "texts must have at most 100 items, got 101"),
            ("store", {"texts": ["x" * 2_000_001] * 2}, "texts must have at most 4000000 characters together"),
            ("store", {"texts": ["x"], "payloads": [{"y": "x" * 4_000_001}]}, "payloads must have at most 4000000"),
            ("store", {"texts": ["x"], "ids": [1, 2]}, "ids must have one item per text (1), got 2"),
        ):
            error = session.refused(tool, **arguments)
            assert says in error["error"], error
            assert len(json.dumps(error)) < 1000


def test_texts_are_stored_where_the_operator_allows_it(served: Served) -> None:
    """The tool says that it replaces points, stores once under each id, and names what was rejected."""
    with within(served.url, collections=("stored",), allow_store=True) as session:
        annotations = session.tools()["store"].annotations
        assert annotations is not None
        assert (annotations.read_only_hint, annotations.destructive_hint, annotations.idempotent_hint) == (
            False,
            True,
            True,
        )
        texts = ["Restic encrypts backups.", "tar writes archives."]
        for _ in range(2):
            answer = session.call("store", texts=texts, ids=["restic", 7], payloads=[{"topic": "backup"}, {}])
            assert answer == {"collection": "stored", "stored": 2, "rejected": 0}
        (hit,) = session.call("search", query="encrypted backups", limit=1)["hits"]
        assert (hit["text"], hit["payload"]) == (texts[0], {"topic": "backup", "id": "restic"})
        refused = session.call("store", texts=["one", "two"], ids=[9, 9])
        assert (refused["stored"], refused["rejected"]) == (1, 1)
        assert [(reason["index"], reason["code"]) for reason in refused["reasons"]] == [(1, "duplicate_id")]


def test_only_the_named_collections_can_be_used(served: Served) -> None:
    """A single collection is the default; another one is refused, and appears in no list."""
    with within(served.url, collections=("notes",)) as session:
        tools = session.tools()
        assert "secret" not in (tools["search"].description or "")
        assert tools["search"].input_schema["properties"]["collection"]["enum"] == ["notes"]
        assert session.call("search", query="files", limit=1)["collection"] == "notes"
        for tool, arguments in (("search", {"query": "files"}), ("read_points", {"ids": ["rsync"]})):
            error = session.refused(tool, collection="secret", **arguments)["error"]
            assert error == "collection must be one of notes"
        listed = session.call("list_collections")
        assert ([entry["name"] for entry in listed["collections"]], listed["default"]) == (["notes"], "notes")
    with within(served.url, collections=("notes", "secret")) as session:
        error = session.refused("search", query="files")["error"]
        assert error == "collection is required; the collections are notes, secret"


def test_a_collection_that_does_not_exist_is_named(served: Served) -> None:
    """A misspelt `--collection` shows in the description of the tools before the first call fails."""
    with within(served.url, collections=("nots",)) as session:
        assert "These collections do not exist yet: nots." in (session.tools()["search"].description or "")


def test_a_wrong_key_is_an_error_without_the_key(served: Served) -> None:
    """The tools are listed without descriptions, and a call says which variable has the wrong key."""
    with within(served.url, "open-barley", collections=("notes",)) as session:
        assert "has not answered yet. They are: notes" in (session.tools()["search"].description or "")
        text, is_error = session.text("search", query="files")
    assert is_error
    assert (json.loads(text)["error_code"], json.loads(text)["retryable"]) == ("invalid_request", False)
    assert "WORKER_API_KEY" in json.loads(text)["error"]
    assert "open-barley" not in text
    assert "127.0.0.1" not in text


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_a_worker_that_comes_up_later_is_found(filled: EdgeStore, embedder: Embedder, mode: str) -> None:
    """The server starts without a worker and says so; later calls succeed, and clients hear of the new descriptions."""
    port = free_port()
    heard: list[object] = []
    with within(f"http://127.0.0.1:{port}", mode=mode, heard=heard) as session:
        assert "has not answered yet" in (session.tools()["search"].description or "")
        error = session.refused("search", query="files", collection="notes")
        assert error["error"].startswith("the worker does not answer: ")
        assert (error["error_code"], error["retryable"]) == ("connection_failed", True)
        with Served(operations(embedder, filled, API_KEY=KEY), port=port):
            assert session.call("list_collections")["collections"]
            assert DESCRIPTIONS["notes"] in (session.tools()["search"].description or "")
    changes = [message for message in heard if isinstance(message, ToolListChangedNotification)]
    assert len(changes) == (1 if mode == "legacy" else 0)


def test_subscribers_hear_of_new_descriptions_by_the_newest_protocol(filled: EdgeStore, embedder: Embedder) -> None:
    """A client that listens for changes of the tools is told once the worker has answered."""

    async def first_change(client: Client, listening: asyncio.Event) -> None:
        async with client.listen(tools_list_changed=True) as changes:
            listening.set()
            async for _ in changes:
                return

    port = free_port()
    with within(f"http://127.0.0.1:{port}", mode="auto") as session:
        assert "has not answered yet" in (session.tools()["search"].description or "")
        with Served(operations(embedder, filled, API_KEY=KEY), port=port):

            async def call_while_listening() -> None:
                ready = asyncio.Event()
                change = asyncio.create_task(first_change(session.client, ready))
                await ready.wait()
                await session.client.call_tool("list_collections", {})
                await asyncio.wait_for(change, PATIENCE)

            session.run(call_while_listening())


def test_progress_of_a_store_is_reported(served: Served) -> None:
    """A client that asks for progress hears how many texts are settled."""
    heard: list[tuple[float, float | None]] = []

    async def settled(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total))

    with within(served.url, collections=("progress",), allow_store=True) as session:
        call = session.client.call_tool("store", {"texts": ["one", "two"]}, progress_callback=settled)
        assert not session.run(call).is_error
        session.run(asyncio.sleep(0))
    assert heard[-1] == (2, 2)


def test_the_operations_of_the_process_answer_as_a_worker_does(tmp_path: Path) -> None:
    """With `--in-process` every tool, and every error, is the same as with a worker."""
    calls: tuple[tuple[str, dict[str, Any]], ...] = (
        ("search", {"query": "copy a file", "collection": "notes", "rerank": True, "explain": True}),
        ("search", {"query": "x", "collection": "absent"}),
        ("search", {"query": "x", "collection": "a/b"}),
        ("search", {"query": "x", "collection": "notes", "filter": {"must": 3}}),
        ("read_points", {"ids": ["rsync", "absent"], "collection": "notes"}),
        ("list_collections", {}),
    )
    texts: dict[str, Any] = {"texts": ["one", "two", "copies of files"], "ids": ["rsync", "rsync", 3]}
    own = operations(Embedder.load(Settings.from_environment(ENVIRONMENT).model_options), EdgeStore(tmp_path / "edge"))
    with Served(own) as served, within(served.url, None, allow_store=True) as session:
        stored = session.text("store", **texts, collection="notes")
        expected = [session.text(tool, **arguments) for tool, arguments in calls]
    with opened(McpOptions(target=None, allow_store=True), OperationsTransport(own)) as session:
        assert session.text("store", **texts, collection="notes") == stored
        assert [session.text(tool, **arguments) for tool, arguments in calls] == expected


@pytest.mark.slow
def test_the_program_answers_by_itself(tmp_path: Path) -> None:
    """`--in-process` loads the miniature, stores and searches in a folder of its own, and ends with its client."""
    variables = {**ENVIRONMENT, "QDRANT_PATH": str(tmp_path / "store")}
    with stdio("--in-process", "--collection", "own", "--allow-store", variables=variables) as session:
        assert session.call("store", texts=[text for text, _ in TEXTS.values()])["stored"] == 3
        assert session.call("search", query="recover photos", limit=1)["hits"][0]["text"] == TEXTS["photorec"][0]
    with stdio("--in-process", "--collection", "own", variables=variables) as session:
        assert session.call("list_collections")["collections"][0]["points"] == 3


def test_an_endpoint_on_runpod_answers_as_a_worker_does(filled: EdgeStore, embedder: Embedder) -> None:
    """A search is a job of the endpoint, and the descriptions are known after the first call."""
    codec = Codec(operations(embedder, filled))
    with RunPodEndpoint(lambda raw, report: asyncio.run(codec.job(raw, report))) as endpoint:
        target = RunPodTarget(ENDPOINT, api_key=ENDPOINT_KEY, base_url=endpoint.base_url)
        with opened(McpOptions(target=target, timeout_s=PATIENCE)) as session:
            assert "has not answered yet" in (session.tools()["search"].description or "")
            hits = session.call("search", query="send only what changed", collection="notes", limit=1)["hits"]
            assert hits[0]["text"] == TEXTS["rsync"][0]
            assert session.call("list_collections")["collections"][0]["description"] == DESCRIPTIONS["notes"]
            assert DESCRIPTIONS["notes"] in (session.tools()["search"].description or "")
        wrong = RunPodTarget(ENDPOINT, api_key="wrong", base_url=endpoint.base_url)
        with opened(McpOptions(target=wrong, timeout_s=PATIENCE)) as session:
            refused = session.refused("list_collections")
            assert (refused["retryable"], "WORKER_API_KEY" in refused["error"]) == (False, True)


def test_a_result_is_no_longer_than_the_operator_allows(served: Served) -> None:
    """Long texts are cut with a mark that says how much is missing, and every result stays within the limit."""
    with within(served.url, collections=("long",), allow_store=True, max_characters=1000) as session:
        texts = ["rsync copies files. " * 200, "rsync copies disks. " * 10]
        assert session.call("store", texts=texts, ids=[1, 2])["stored"] == 2
        text, is_error = session.text("search", query="rsync copies files")
        assert not is_error
        assert len(text) <= 1000
        assert {hit["id"] for hit in json.loads(text)["hits"]} == {1, 2}
        assert "characters]" in text


@pytest.mark.slow
def test_starting_needs_neither_a_model_nor_a_store(served: Served, tmp_path: Path) -> None:
    """A session with a search needs only the packages that the page names, and no library of a model or of a store."""
    file = tmp_path / "imported"
    program = (
        "import atexit, pathlib, sys\n"
        f"sys.modules.update(dict.fromkeys({not_named_by_the_page()!r}))\n"
        "from service.transports.cli.main import main\n"
        f"names = {LOADING!r}\n"
        f"write = pathlib.Path({str(file)!r}).write_text\n"
        "atexit.register(lambda: write(' '.join(name for name in names if sys.modules.get(name)) or 'none'))\n"
        "sys.argv[1:] = ['mcp', *sys.argv[1:]]\n"
        "main()\n"
    )
    arguments = ("--url", served.url, "--collection", "notes")
    with stdio(*arguments, program=("-c", program), variables={"WORKER_API_KEY": KEY}) as session:
        assert session.call("search", query="files")["hits"]
    assert file.read_text(encoding="utf-8") == "none"


@pytest.mark.slow
def test_http_needs_no_further_package() -> None:
    """The packages that the page names are enough to serve over HTTP as well."""
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({not_named_by_the_page()!r}))\n"
        "import service.transports.mcp.streamable_http\n"
        f"print(' '.join(name for name in {LOADING!r} if sys.modules.get(name)) or 'none')\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("none", "")


def not_named_by_the_page() -> list[str]:
    """The modules of the service's dependencies that `pip install` does not bring without them, as the page has it."""
    page = (ROOT / "docs" / "mcp.md").read_text(encoding="utf-8")
    (named,) = re.findall(r"^pip install \./clients/python (.* orjson)$", page, re.MULTILINE)
    installed, waiting = set[str](), ["bge-m3-qdrant-client", *named.replace("'", "").split()]
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name not in installed and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            installed.add(name)
            waiting += requires(name) or ()
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {canonicalize_name(Requirement(line).name) for line in pyproject["project"]["dependencies"]}
    distributions = packages_distributions().items()
    return [module for module, names in distributions if (needed - installed) & set(map(canonicalize_name, names))]


@pytest.mark.slow
def test_the_program_is_quiet_on_its_standard_output(served: Served) -> None:
    """Only messages of the protocol are on the standard output, and a client that leaves ends the program."""
    params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    done = subprocess.run(
        [sys.executable, "-m", "service", "mcp", "--url", served.url],
        cwd=ROOT,
        env=environment(WORKER_API_KEY=KEY, LOG_LEVEL="DEBUG"),
        input=f"{json.dumps(request)}\nno JSON at all\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert messages[0]["result"]["serverInfo"]["name"] == "bge-m3-qdrant"
    assert messages[0]["result"]["capabilities"]["tools"] == {"listChanged": True}
    assert KEY not in done.stdout + done.stderr
