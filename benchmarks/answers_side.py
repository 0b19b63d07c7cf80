"""One side of the benchmark of answers: what an answer costs in the tree that `PYTHONPATH` names.

python -P benchmarks/answers_side.py TASK    prints a `Measured` as JSON

A program of its own, run by its path: it imports the service of one tree or of an older one, by the names that it finds
there, and nothing of the benchmarks. The engine is a stub whose vectors are ready; everything behind it is the tree's
own: pool, operations, application, handler.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

SIZE: Final = 1024
"""Components of a dense vector and of a ColBERT row."""

BATCH_MAX_TOKENS: Final = 8192
SETTINGS: Final = {"MODEL_ID": "mini", "MAX_RESPONSE_MB": "10000", "LOG_LEVEL": "ERROR"}
_SEED: Final = 1024
_READ_BYTES: Final = 1 << 20
_MS: Final = 1e3


@dataclass(frozen=True, slots=True)
class Task:
    """One measurement to make.

    Attributes:
        transport: `http` or `queue`.
        input: of an embed request, as the wire has it.
        tokens: of all its texts, as the answer must say.
        checkpoint: directory with the tokenizer.
        requests: how many are timed, after one that is not.
        parts: whether the parts of an answer are timed too; the newer tree alone has them.
    """

    transport: Literal["http", "queue"]
    input: dict[str, Any]
    tokens: int
    checkpoint: str
    requests: int
    parts: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """The cost of an answer.

    Attributes:
        ms: medians, by what was timed.
        ready_bytes: resident before the first request, the ready vectors included.
        peak_bytes: the most that was resident (`VmHWM`).
        answer_bytes: of the JSON that was sent.
        digest: SHA-256 of it.
    """

    ms: dict[str, float]
    ready_bytes: int
    peak_bytes: int
    answer_bytes: int
    digest: str


@dataclass(slots=True)
class Stopwatch:
    """Milliseconds by name, a value per request."""

    ms: dict[str, list[float]] = field(default_factory=dict)

    def timed(self, name: str, since_s: float) -> float:
        """Take the time since `since_s` under this name; returns the time now, in seconds."""
        now_s = time.perf_counter()
        self.add(name, now_s - since_s)
        return now_s

    def add(self, name: str, seconds: float) -> None:
        """Take a time under this name."""
        self.ms.setdefault(name, []).append(_MS * seconds)

    def medians(self) -> dict[str, float]:
        """The median of each name."""
        return {name: statistics.median(values) for name, values in self.ms.items()}


class Tree:
    """The modules of a tree, under the names that they have there."""

    def __init__(self) -> None:
        self.newer = find_spec("service.wire") is not None
        self.engine = self._module("embedder.engines.engine", "embedder.engine")
        self.pool = self._module("embedder.scheduling.pool", "embedder.pool")
        self.worker = self._module("service.transports.queue.worker", "service.worker")
        self.tokenizer = import_module("embedder.tokenizer")
        self.embedder = import_module("embedder.embedder")
        self.operations = import_module("service.operations")
        self.settings = import_module("service.settings")

    def _module(self, newer: str, older: str) -> Any:
        return import_module(newer if self.newer else older)

    def build(self, checkpoint: Path, tokens: int) -> Any:
        """Operations over the stub, with the tokenizer of a checkpoint; its vectors are enough for so many tokens."""
        tokenizer = self.tokenizer.Tokenizer(checkpoint)
        engines = [StubEngine(self.engine, tokenizer, tokens)]
        threads = {"batches_per_gpu": 1} if self.newer else {"lanes": 1}
        pool = self.pool.ModelPool(engines, token_budget=BATCH_MAX_TOKENS, queue_tokens=10**9, **threads)
        embedder = self.embedder.Embedder(tokenizer, engines, pool)
        return self.operations.Operations(self.settings.Settings.from_environment(), embedder)

    def application(self, operations: Any) -> Any:
        """The ASGI application, with the model behind it."""
        if self.newer:
            state = import_module("service.transports.http.state").ServerState(operations.settings)
        else:
            state = import_module("service.door").Door(operations.settings)
        state.open(operations)
        return self._module("service.transports.http.routes", "service.routes").application(state)

    def handler(self, operations: Any) -> Callable[[dict[str, Any]], Any]:
        """The handler that the queue worker gives to the platform's SDK."""
        codec = self.codec(operations) if self.newer else None

        async def handler(job: dict[str, Any]) -> Any:
            answer = operations.answer_job(job["input"]) if codec is None else codec.job(job["input"])
            return self.worker.unprinted(await answer)

        return handler

    def codec(self, operations: Any) -> Any:
        """The codec over the operations; the newer tree's alone."""
        return import_module("service.wire").Codec(operations)


class StubEngine:
    """An engine whose vectors are ready: float32 rows of length 1, views of one buffer, no two batches the same.

    Args:
        seam: the module that defines the values of a batch.
        tokenizer: of the checkpoint.
        tokens: of the texts of a request; the rows of the buffer.
    """

    name = "stub"
    device = "cpu"
    dtype = "float32"
    hidden_size = SIZE
    colbert_size = SIZE
    max_length = 8192

    def __init__(self, seam: Any, tokenizer: Any, tokens: int) -> None:
        self._seam = seam
        self._dropped = list(tokenizer.dropped_ids)
        draw = np.random.default_rng(_SEED)
        self._rows = _unit_rows(draw, tokens)
        self._weights = draw.uniform(0.01, 0.4, tokenizer.vocabulary_size).astype(np.float32)
        self._next = 0

    def encode(self, batch: Any, _outputs: Any, _yield_point: object = None) -> Any:
        """All three kinds, whatever is asked for."""
        lengths = batch.lengths
        ids = [text[~np.isin(text, self._dropped)] for text in np.split(batch.ids, np.cumsum(lengths)[:-1])]
        indices = [np.unique(text).astype(np.uint32) for text in ids]
        offsets = self._seam.offsets_of(np.array([len(text) for text in indices], dtype=np.int32))
        tokens = np.concatenate(indices)
        sparse = self._seam.SparseBatch(offsets, tokens, self._weights[tokens])
        dense = self._taken(len(lengths))
        return self._seam.EncodedBatch(dense, sparse, self._taken(int(lengths.sum()) - len(lengths)))

    def launch(self, batch: Any, outputs: Any, yield_point: object = None) -> Any:
        """Computed at once; the newer tree alone asks for it."""
        return self._seam.ReadyBatch(self.encode(batch, outputs, yield_point))

    def memory_share(self, _batch: object) -> float:
        """A CPU's."""
        return 0.0

    def probe(self, _batch: object) -> None:
        """Do nothing."""

    def _taken(self, count: int) -> NDArray[np.float32]:
        if self._next + count > len(self._rows):
            self._next = 0
        self._next += count
        return self._rows[self._next - count : self._next]


class Server:
    """The application under uvicorn on the loopback, in a thread, as the service runs it."""

    def __init__(self, application: Any) -> None:
        from service.transports.http.connections import ConnectionLimits, Connections
        from service.transports.http.gate import ErrorResponses
        from service.transports.http.uvicorn_server import UvicornServer

        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self._listener.getsockname()[1]
        self._server = UvicornServer(application, Connections(ConnectionLimits(), ErrorResponses()), grace_s=30.0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._listener]))


class Reader:
    """A client that reads the bytes of an answer and keeps none but the last."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self.size = 0

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def read(self, body: bytes, watch: Stopwatch, digest: Any = None) -> bytes:
        """Ask and read; returns the end of the answer. Times the whole, and the part from the first byte on."""
        started_s, cpu_s = time.perf_counter(), time.process_time()
        self._connection.request("POST", "/embed", body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        first_s = time.perf_counter()
        self.size, end = 0, b""
        while count := response.readinto(self._buffer):
            self.size += count
            end = (end + bytes(self._buffer[max(0, count - 200) : count]))[-200:]
            if digest is not None:
                digest.update(self._buffer[:count])
        watch.timed("sent", first_s)
        watch.timed("total", started_s)
        watch.add("cpu", time.process_time() - cpu_s)
        if response.status != 200:
            raise RuntimeError(f"the service answered with {response.status}: {end!r}")
        return end


def measured(task: Task) -> Measured:
    """Measure the cost of an answer in this tree."""
    tree = Tree()
    operations = tree.build(Path(task.checkpoint), task.tokens + len(task.input["texts"]))
    try:
        return _over_http(tree, operations, task) if task.transport == "http" else _on_the_queue(tree, operations, task)
    finally:
        operations.close()


def _over_http(tree: Tree, operations: Any, task: Task) -> Measured:
    body = json.dumps(task.input).encode()
    server = Server(tree.application(operations))
    client = Reader(server.port)
    digest = hashlib.sha256()
    ready_bytes = _resident("VmRSS")
    _check(client.read(body, Stopwatch(), digest), task)
    watch = Stopwatch()
    for _ in range(task.requests):
        client.read(body, watch)
    peak_bytes = _resident("VmHWM")
    client.close()
    server.close()
    if task.parts:
        _time_parts(operations, task, watch)
    return Measured(watch.medians(), ready_bytes, peak_bytes, client.size, digest.hexdigest())


def _on_the_queue(tree: Tree, operations: Any, task: Task) -> Measured:
    from runpod.serverless.modules.rp_job import run_job

    handler = tree.handler(operations)
    loop = asyncio.new_event_loop()  # not asyncio.run, which spells out what its task returned
    returned_s = returned_cpu_s = 0.0

    async def noted(job: dict[str, Any]) -> Any:
        nonlocal returned_s, returned_cpu_s
        answer = await handler(job)
        returned_s, returned_cpu_s = time.perf_counter(), time.process_time()
        return answer

    def sent(watch: Stopwatch) -> bytes:
        """Run a job as the SDK does: `rp_job.run_job`, then `rp_http._handle_result`."""
        started_s, cpu_s = time.perf_counter(), time.process_time()
        result = loop.run_until_complete(run_job(noted, {"id": "1", "input": task.input}))
        body = json.dumps(result, ensure_ascii=False).encode()
        watch.timed("total", started_s)
        watch.add("cpu", time.process_time() - cpu_s)
        watch.add("returned", returned_s - started_s)
        watch.add("returned cpu", returned_cpu_s - cpu_s)
        return body

    ready_bytes = _resident("VmRSS")
    body = sent(Stopwatch())
    _check(body[-200:], task)
    digest, size = hashlib.sha256(body).hexdigest(), len(body)
    del body
    watch = Stopwatch()
    for _ in range(task.requests):
        sent(watch)
    peak_bytes = _resident("VmHWM")
    if task.parts:
        _time_parts(operations, task, watch)
    return Measured(watch.medians(), ready_bytes, peak_bytes, size, digest)


def _time_parts(operations: Any, task: Task, watch: Stopwatch) -> None:
    """Time the stages of an answer one after the other, as the newer tree's codec runs them."""
    parsing, answers, size = (import_module(f"service.wire.{name}") for name in ("parsing", "answers", "size"))
    if task.transport == "http":
        form, made = import_module("service.wire.body").Body, "write"
    else:
        form, made = import_module("service.wire.values").Values, "values"
    limits = import_module("service.wire.fields").Limits(max_texts=10_000, max_length=operations.max_length)
    limit = size.SizeLimit(int(operations.settings.max_response_mb * 1e6), "")
    loop = asyncio.new_event_loop()
    for _ in range(task.requests):
        now_s = time.perf_counter()
        request = parsing.parse(task.input, limits)
        now_s = watch.timed("parse", now_s)
        result = loop.run_until_complete(operations.embed(request.embed_value()))
        now_s = watch.timed("embed", now_s)
        answer = answers.embed_answer(request, result, operations.model_name)
        now_s = watch.timed("render", now_s)
        content = form.of(answer)
        now_s = watch.timed(made, now_s)
        limit.check(content)
        watch.timed("check", now_s)
        del answer, result, content


def _check(end: bytes, task: Task) -> None:
    """The texts must have the tokens that they were made to have."""
    usage = f'"usage":{{"tokens":{task.tokens}}}'.encode()
    if usage not in end.replace(b" ", b""):
        raise RuntimeError(f"the answer is not that of {task.tokens} tokens: {end!r}")


def _unit_rows(draw: np.random.Generator, count: int) -> NDArray[np.float32]:
    rows = np.empty((count, SIZE), dtype=np.float32)
    for start in range(0, count, BATCH_MAX_TOKENS):  # part by part: the peak of memory must be the service's
        part = rows[start : start + BATCH_MAX_TOKENS]
        draw.standard_normal(dtype=np.float32, out=part)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def _resident(field_name: str) -> int:
    """A figure of Linux's, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field_name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field_name}")


if __name__ == "__main__":
    os.environ.update(SETTINGS)
    print(json.dumps(asdict(measured(Task(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))))
