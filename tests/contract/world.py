"""The service that the requests are played against: with `engine.py` and `faulty.py`, the only code that calls it.

Four worlds: an engine (`stub`, or `mini` in float32) over a store (Qdrant Edge, or a server: the gRPC double on
loopback). Each scenario has an empty store of its own. A job goes through `Codec.job`, a request over
HTTP through the ASGI application, a bulk load through the command `bge-m3-qdrant bulk`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Final, Self, cast
from unittest import mock

import httpx
from starlette.types import ASGIApp

from embedder import Embedder
from embedder.checkpoint import MINI, revision_of
from embedder.scheduling import ModelPool
from embedder.tokenizer import Tokenizer
from qdrant_sink import Store, conformance, documents
from qdrant_sink.edge import EdgeStore
from qdrant_sink.server import ServerStore
from service.collection_config import CollectionConfig
from service.operations import Operations
from service.settings import Settings
from service.transports.cli.main import COMMANDS
from service.transports.http.body import BODY_MAX_BYTES, BODY_PART_TIMEOUT_S
from service.transports.http.routes import application
from service.transports.http.state import ServerState
from service.wire import Codec
from tests.command_line import invoke
from tests.contract.engine import WAIT_MAX_S, SharedEmbedder, StubEngine
from tests.contract.faulty import FaultyStore, script
from tests.contract.steps import Call, Engine, Fault, Job, Load, Scenario, Step, StoreKind
from tests.sink.grpc_double import GrpcDouble

Json = dict[str, Any]

ENVIRONMENT: Final = {"MODEL_ID": "mini", "GPU_DEVICE": "cpu", "DTYPE": "float32", "TOKEN_BUDGET": "4096"}
"""Settings of every scenario."""

_CALL_STALL_S: Final = 0.05
"""Time after which a body that stalls is given up."""

_DEADLINE_S: Final = 0.1
"""Time after which a call that the server does not answer is not repeated."""


class World:
    """One engine over one kind of store.

    Args:
        engine: the engine of the model.
        store: the store over which scenarios are played.
    """

    def __init__(self, engine: Engine, store: StoreKind) -> None:
        self.engine = engine
        self.store = store
        self.name = f"{engine}-{store}"
        self._tokenizer = Tokenizer(MINI)
        self._shared: SharedEmbedder | None = None

    def __enter__(self) -> Self:
        if self.engine == "mini":
            settings = Settings.from_environment(ENVIRONMENT)
            self._shared = cast("SharedEmbedder", SharedEmbedder.load(settings.model_options))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shared is not None:
            self._shared.end()

    def plays(self, scenario: Scenario) -> bool:
        """Return whether a scenario is played in this world."""
        return self.engine in scenario.engines and self.store in scenario.stores

    def embedder(self, settings: Settings, *, lost: bool = False) -> tuple[Embedder, StubEngine | None]:
        """Return a model for one set of settings, and its engine if that is the stub."""
        if self._shared is not None:
            return self._shared, None
        engine = StubEngine(self._tokenizer, lost=lost)
        pool = ModelPool([engine], batches_per_gpu=1, token_budget=4096, queue_tokens=settings.queue_tokens)
        return Embedder(self._tokenizer, [engine], pool, revision_of(MINI)), engine

    @contextmanager
    def stage(self, scenario: Scenario) -> Iterator[Stage]:
        """Yield an empty store for the scenario and the service over it."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=os.environ.get("PYTEST_DEBUG_TEMPROOT"))))
            if scenario.multivector_values is not None:
                stack.enter_context(
                    mock.patch.object(conformance, "MULTIVECTOR_VALUES_LIMIT", scenario.multivector_values)
                )
            # Versions of documents, and so the ids of chunks, are the same in every run.
            stack.enter_context(mock.patch.object(documents, "time", SimpleNamespace(time_ns=lambda: 0)))
            stack.enter_context(mock.patch.object(documents, "secrets", SimpleNamespace(randbits=lambda _bits: 0)))
            double = None
            if self.store == "server":
                double = GrpcDouble(folder)
                stack.callback(double.stop)
                with mock.patch("qdrant_sink.server.connection.math.ceil", return_value=int(WAIT_MAX_S)):
                    store: Store = ServerStore(
                        "http://127.0.0.1:9", grpc_port=double.port, deadline_s=_DEADLINE_S,
                        interactive_deadline_s=_DEADLINE_S, pause_s=0.02,
                    )  # fmt: skip
            else:
                store = EdgeStore(folder / "edge")
            stack.callback(store.close)
            stage = Stage(self, scenario, FaultyStore(store), double, folder)
            stack.callback(stage.close)
            yield stage


class Stage:
    """The service during one scenario: operations per set of settings over one store."""

    def __init__(
        self, world: World, scenario: Scenario, store: FaultyStore, double: GrpcDouble | None, folder: Path
    ) -> None:
        self._world = world
        self._scenario = scenario
        self._store = store
        self._double = double
        self._folder = folder
        self._operations: dict[str, tuple[Operations, StubEngine | None]] = {}
        self._applications: dict[object, ASGIApp] = {}
        self._runner = asyncio.Runner()

    def close(self) -> None:
        """Close the operations."""
        for operations, _ in self._operations.values():
            operations.close()
        self._runner.close()

    def play(self, step: Step) -> Any:
        """Return the answer to a step as its caller reads it."""
        environment = {**ENVIRONMENT, **self._scenario.settings, **step.settings}
        if isinstance(step, Load):
            with self._failing(step.fault):
                return self._loaded(step, environment)
        settings = Settings.from_environment(environment)
        operations, engine = self._over(settings, lost=step.fault == "device lost")
        with ExitStack() as stack:
            if step.fault == "queue full":
                stack.enter_context(_filled(operations, cast("StubEngine", engine)))
            else:
                stack.enter_context(self._failing(step.fault))
            if isinstance(step, Job):
                return self._answered(step, operations)
            return self._runner.run(_called(step, self._application(step, settings, operations)))

    def _answered(self, step: Job, operations: Operations) -> Any:
        reports: list[Json] = []
        answer = _read(self._runner.run(Codec(operations).job(_read(step.input), reports.append)))
        return {"answer": answer, "last_report": _read(reports[-1])} if step.reports else answer

    def _over(self, settings: Settings, *, lost: bool) -> tuple[Operations, StubEngine | None]:
        key = f"{settings.model_dump_json()} {settings.api_key} {lost}"
        if key not in self._operations:
            embedder, engine = self._world.embedder(settings, lost=lost)
            self._operations[key] = Operations(settings, embedder, cast("Store", self._store)), engine
        return self._operations[key]

    def _application(self, step: Call, settings: Settings, operations: Operations) -> ASGIApp:
        """Return the ASGI application in the state of the step; building one takes longer than a request."""
        key = (id(operations), step.state, step.body_max_bytes, step.stalls)
        if key not in self._applications:
            state = ServerState(settings)
            if step.state != "loading":
                state.open(operations)
            if step.state in ("draining", "lost"):
                state.close(lost=step.state == "lost")
            self._applications[key] = application(
                state,
                body_max_bytes=step.body_max_bytes or BODY_MAX_BYTES,
                body_part_timeout_s=_CALL_STALL_S if step.stalls else BODY_PART_TIMEOUT_S,
            )
        return self._applications[key]

    @contextmanager
    def _failing(self, fault: Fault | None) -> Iterator[None]:
        """Make the store fail with this fault inside the context; the engine handles a fault of the model."""
        if fault is None or fault == "device lost":
            yield
        elif self._double is not None and fault not in ("defect", "another writer"):
            script(self._double, fault)
            yield
            self._double.failures.clear()
            self._double.refused_ids.clear()
        else:
            self._store.fault = fault
            yield
            self._store.fault = None

    def _loaded(self, step: Load, environment: Mapping[str, str]) -> Json:
        """Return a bulk load's exit status, summary and rejected lines, and its message if there is no summary."""
        source, rejects = self._folder / "lines.jsonl", self._folder / "rejects.jsonl"
        for path in (source, rejects):
            path.unlink(missing_ok=True)
        if step.lines is not None:
            source.write_bytes(b"".join(map(_line, step.lines)))
        with ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM):
                stack.callback(signal.signal, number, signal.getsignal(number))
            stack.enter_context(mock.patch.dict(os.environ, environment, clear=True))
            arguments = [str(source), "--rejects", str(rejects), "--json", *step.options]
            ended = invoke("bulk", *arguments, build=self._build)
        answer: Json = {"status": ended.status, "summary": json.loads(ended.out or "null")}
        if rejects.exists():
            # The directory is another one in each run.
            written = rejects.read_text(encoding="utf-8").replace(f"{source.parent}/", "")
            lines = [json.loads(line) for line in written.splitlines()]
            answer["rejects"] = sorted(lines, key=lambda line: (line["line"], line.get("chunk", 0)))
        if not ended.out:
            answer["message"] = ended.err.replace(str(self._folder), "")
        return answer

    def _build(self, settings: Settings) -> Operations:
        return Operations(settings, self._world.embedder(settings)[0], cast("Store", self._store))


def _line(value: Any) -> bytes:
    raw = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
    return raw + b"\n"


def _read(value: Any) -> Any:
    """Parse the value as the other side does: strict JSON."""
    return json.loads(json.dumps(value, allow_nan=False))


@contextmanager
def _filled(operations: Operations, engine: StubEngine) -> Iterator[None]:
    """Block the model and fill its queue inside the context."""
    engine.gate.clear()
    engine.begun.clear()
    room = operations.settings.queue_tokens
    jobs = ({"texts": ["a"]}, {"texts": [""] * (room // 2), "isPassage": True, "vectors": ["dense"]})

    def fill(job: Json) -> None:
        asyncio.run(Codec(operations).answer(job))

    threads = [threading.Thread(target=fill, args=(job,)) for job in jobs]
    try:
        threads[0].start()
        _until(engine.begun.is_set)
        threads[1].start()
        _until(lambda: operations.waiting_tokens >= room // 2 * 2)
        yield
    finally:
        engine.gate.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(WAIT_MAX_S)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_MAX_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.001)


async def _called(step: Call, app: ASGIApp) -> Json:
    """Return the status, headers and body of an HTTP response."""
    headers, content = {"Accept-Encoding": "identity", **step.headers}, step.content
    if step.json is not None:
        content = json.dumps(step.json, ensure_ascii=False).encode("utf-8", "surrogatepass")
        headers = {"Content-Type": "application/json", **headers}
    if step.stalls or (content is not None and not isinstance(content, bytes)):
        body: Any = _parts([content] if isinstance(content, bytes) else content or [], stalls=step.stalls)
    else:
        body = content
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=WAIT_MAX_S) as client:
        response = await client.request(step.method, step.path, content=body, headers=headers)
    return {
        "status": response.status_code,
        "headers": dict(sorted(response.headers.items())),
        "body": _body(response.headers.get("content-type"), response.content),
    }


async def _parts(parts: Sequence[bytes], *, stalls: bool) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    if stalls:
        await asyncio.sleep(WAIT_MAX_S)


def _body(kind: str | None, content: bytes) -> Any:
    text = content.decode("utf-8")
    return json.loads(text) if kind == "application/json" and text else text


WORLDS: Final[Mapping[str, tuple[Engine, StoreKind]]] = {
    "stub-edge": ("stub", "edge"),
    "stub-server": ("stub", "server"),
    "mini-edge": ("mini", "edge"),
    "mini-server": ("mini", "server"),
}
"""By name: the engine and the store."""


def opened(name: str) -> World:
    """Return the world of this name; enter it to play."""
    return World(*WORLDS[name])


def settings() -> Json:
    """Return the default of every setting by its variable name."""
    defaults = Settings.model_validate({}).model_dump(mode="json", by_alias=True)
    return {name.upper(): default for name, default in defaults.items()}


def collection_fields() -> Json:
    """Return the JSON schema of `QDRANT_COLLECTION_CONFIG`."""
    return CollectionConfig.model_json_schema()


def command_help() -> dict[str, str]:
    """Return the help of every command that has options."""
    return {name: invoke(name, "--help").out for name in COMMANDS}
