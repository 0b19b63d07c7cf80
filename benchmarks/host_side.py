"""One side of the benchmark of the host: what a request costs beside its model, in the tree that `PYTHONPATH` names.

python -P benchmarks/host_side.py TASK CASE...    prints the figures of these cases as JSON, by case

A program of its own, run by its path: it imports the embedder of one tree or of an older one, and nothing of the
benchmarks. The engine is a stub whose vectors are ready; where a case says so, it takes the time of a GPU.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

import embedder
from embedder import QUICK, Embedder, Outputs, Priority
from embedder.engines.engine import EncodedBatch, SparseBatch, TokenBatch
from embedder.scheduling.pool import ModelPool
from embedder.tokenizer import Tokenizer

SIZE: Final = 1024
"""Components of a dense vector and of a ColBERT row."""

BATCH_MAX_TOKENS: Final = 32_768
ALL: Final = Outputs(colbert_type="float16")
DENSE_SPARSE: Final = Outputs(colbert=False)
JOBS: Final = 16
"""Jobs that share batches, where a case says so: each has less than half of a batch, so that it gets copies."""

HALF: Final = {"encoding": "base64", "dtype": "float16"}
GPU_TOKENS_PER_S: Final = 850_000
"""Tokens per second of a model on a GPU, with all outputs."""

GPU_PASS_S: Final = 0.001
"""Seconds of the smallest pass on a GPU."""

GRAPH_PASS_S: Final = 0.0008
"""Seconds of the smallest pass on a GPU as a CUDA graph, without the host's part."""

_WEIGHTS_PER_TEXT: Final = 48
_MAX_LENGTH: Final = 512
_CASE_S: Final = 1.5
_REPETITIONS: Final = 5
_MS: Final = 1e3


_FIELDS: Final = {field.name for field in fields(EncodedBatch)}
_CHECKED: Final[dict[str, Any]] = (
    {"finite": frozenset(("dense", "colbert"))} if "finite" in _FIELDS else {"colbert_is_finite": True}
)
"""What this tree's own engine says of a batch whose numbers are all finite."""


class StubEngine:
    """An engine whose vectors are ready, views of buffers that are made once.

    Args:
        tokens_per_s: how fast it pretends to be; 0 returns immediately.
        pass_s: what any pass takes beside its tokens.
    """

    name = "stub"
    device = "cuda:0"
    dtype = "float16"
    hidden_size = SIZE
    colbert_size = SIZE
    max_length = 8192
    width = 1

    def __init__(self, tokens_per_s: float = 0, pass_s: float = 0) -> None:
        draw = np.random.default_rng(0)
        self._tokens_per_s = tokens_per_s
        self._pass_s = pass_s
        self._dense = draw.uniform(-0.1, 0.1, (BATCH_MAX_TOKENS // 2, SIZE)).astype(np.float32)
        rows = draw.uniform(-0.1, 0.1, (BATCH_MAX_TOKENS, SIZE)).astype(np.float32)
        self._rows_by_type: dict[str, Any] = {"float32": rows, "float16": rows.astype(np.float16)}
        texts = BATCH_MAX_TOKENS // 2
        self._offsets = np.arange(texts + 1, dtype=np.int64) * _WEIGHTS_PER_TEXT
        self._indices = np.tile(np.arange(_WEIGHTS_PER_TEXT, dtype=np.uint32), texts)
        self._values = np.full(texts * _WEIGHTS_PER_TEXT, 0.25, dtype=np.float32)
        self.first_s = 0.0
        self.batches = 0

    def encode(self, batch: TokenBatch, outputs: Outputs, _yield_point: object = None) -> EncodedBatch:
        """The vectors that `outputs` names."""
        if not self.batches:
            self.first_s = time.perf_counter()
        self.batches += 1
        texts, tokens = len(batch), len(batch.ids)
        if self._tokens_per_s:
            time.sleep(self._pass_s + tokens / self._tokens_per_s)
        weights = texts * _WEIGHTS_PER_TEXT
        rows = tokens - texts
        both = (
            {"colbert_float16": self._rows_by_type["float16"][:rows]} if getattr(outputs, "also_float16", False) else {}
        )
        return EncodedBatch(
            self._dense[:texts] if outputs.dense else None,
            SparseBatch(self._offsets[: texts + 1], self._indices[:weights], self._values[:weights])
            if outputs.sparse
            else None,
            self._rows_by_type[outputs.colbert_type][:rows] if outputs.colbert else None,
            **_CHECKED,
            **both,
        )

    def launch(self, batch: TokenBatch, outputs: Outputs, yield_point: object = None) -> Any:
        """Computed at once; the newer tree alone asks for it."""
        from embedder.engines import ReadyBatch

        return ReadyBatch(self.encode(batch, outputs, yield_point))

    def warm(self) -> None:
        """Do nothing."""

    def prepare(self, _tokens: int) -> None:
        """Do nothing."""

    def memory_share(self, _batch: object) -> float:
        """No share: a stub takes no memory."""
        return 0.0

    def probe(self, _batch: object) -> None:
        """Do nothing."""


class LauncherEngine(StubEngine):
    """The host's half of a GPU: batches go through the tree's own `CudaLauncher`, and kernels take time alone.

    What the launcher calls of torch.cuda is replaced, so this needs no GPU; the host computes all that it computes
    for one. Results are views of buffers that are made once: a GPU copies them without the host.
    """

    width = 4

    def __init__(self, tokens_per_s: float = GPU_TOKENS_PER_S, pass_s: float = GRAPH_PASS_S) -> None:
        super().__init__(tokens_per_s, pass_s)
        import torch

        from embedder.engines import cuda
        from embedder.model.heads import Heads

        finite = torch.ones(BATCH_MAX_TOKENS, dtype=torch.bool)
        module: Any = cuda
        module.torch = _Torch(self)
        module.capture = lambda _work, _stream, _pool: self._start_pass
        module.normalised_rows = lambda states, rows, _type: (states[: len(rows)], finite[: len(rows)])
        module._copied = lambda tensor: tensor  # noqa: SLF001 - the device's work
        self._ready_s = 0.0
        linear: Any = None
        heads = Heads(torch.zeros(0), torch.zeros(0), linear, SIZE, np.array([0, 1, 2, 3], dtype=np.int32))
        config = SimpleNamespace(pad_id=1, hidden=SIZE)
        model: Any = SimpleNamespace(device="cpu", config=config, heads=heads, tiled=True, state_type=torch.float16)
        with torch.inference_mode():
            self._launcher = cuda.CudaLauncher(model, graphs=True)
            self._launcher.prepare(BATCH_MAX_TOKENS)
            for lane in (self._launcher._urgent, self._launcher._patient):  # noqa: SLF001
                passes: Any = lane._passes  # noqa: SLF001
                for results in (passes._dense, passes._sparse, passes._projected):  # noqa: SLF001
                    results.fill_(0.05)

    def launch(self, batch: TokenBatch, outputs: Outputs, yield_point: Any = None) -> Any:
        """Through the launcher, as `PackedEngine` does it."""
        import torch

        self.batches += 1
        self._tokens = len(batch.ids)
        with torch.inference_mode():
            return self._launcher.launch(batch, outputs, yield_point)

    def _start_pass(self) -> None:
        took_s = self._pass_s + self._tokens / self._tokens_per_s if self._tokens_per_s else 0.0
        self._ready_s = max(self._ready_s, time.perf_counter()) + took_s

    def event(self, **_options: Any) -> Any:
        """What is recorded behind the pass that was started last: its `synchronize` sleeps until then."""
        ready_s = self._ready_s
        wait = lambda: time.sleep(max(0.0, ready_s - time.perf_counter()))  # noqa: E731
        return SimpleNamespace(record=lambda _stream: None, synchronize=wait)


class _Torch:
    """The torch of a `LauncherEngine`: memory is not page-locked, and streams are names."""

    def __init__(self, engine: LauncherEngine) -> None:
        stream = SimpleNamespace(wait_stream=lambda _other: None)
        self.cuda = SimpleNamespace(
            device=nullcontext,
            set_device=lambda _device: None,
            stream=nullcontext,
            Stream=lambda *_args, **_options: stream,
            Event=engine.event,
            graph_pool_handle=lambda: None,
            empty_cache=lambda: None,
        )

    def __getattr__(self, name: str) -> Any:
        import torch

        own = getattr(torch, name)
        return partial(_allocated, own) if name in {"zeros", "empty"} else own


def _allocated(allocate: Callable[..., Any], *size: Any, pin_memory: bool = False, **options: Any) -> Any:
    """Memory of this machine: page-locked memory needs a GPU."""
    del pin_memory
    return allocate(*size, **options)


_WIDTH = next(name for name in signature(ModelPool).parameters if name.endswith("per_gpu"))
"""This tree's name for the number of batches or threads of a GPU."""


class Bench:
    """The embedder of this tree over a stub.

    Args:
        task: the texts: `queries`, `passages` of mixed lengths, and `equal` ones of 139 tokens.
    """

    def __init__(self, task: dict[str, Any]) -> None:
        self.queries: list[str] = task["queries"]
        self.passages: list[str] = task["passages"]
        self.equal: list[str] = task["equal"]
        root = Path(embedder.__file__).parent
        self.tokenizer = Tokenizer(Path(task.get("checkpoint") or root / "checkpoint" / "mini"))

    def embedder(self, engine: StubEngine) -> Embedder:
        """An embedder over one engine."""
        width: Any = {_WIDTH: engine.width}
        pool = ModelPool([engine], **width, token_budget=BATCH_MAX_TOKENS, queue_tokens=10**9)
        return Embedder(self.tokenizer, [engine], pool)


async def queries(bench: Bench, clients: int, engine: StubEngine) -> dict[str, float]:
    """Clients that ask one query after another."""
    model = bench.embedder(engine)
    took_s: list[float] = []
    ends_s = time.perf_counter() + _CASE_S / 3

    async def client(number: int) -> None:
        while (started_s := time.perf_counter()) < ends_s:
            number += 1
            text = bench.queries[number % len(bench.queries)]
            await model.embed([text], ALL, max_length=_MAX_LENGTH, priority=Priority.QUERY)
            took_s.append(time.perf_counter() - started_s)

    await asyncio.gather(*(client(number) for number in range(clients)))  # warm
    took_s.clear()
    started_s, cpu_s = time.perf_counter(), time.process_time()
    ends_s = started_s + _CASE_S
    await asyncio.gather(*(client(number) for number in range(clients)))
    seconds = time.perf_counter() - started_s
    cpu = time.process_time() - cpu_s
    model.close()
    return {
        "us per query": 1e6 * seconds / len(took_s),
        "CPU us per query": 1e6 * cpu / len(took_s),
        "p50, ms": _MS * statistics.median(took_s),
    }


async def request(bench: Bench, outputs: Outputs, tokens_per_s: float) -> dict[str, float]:
    """One request with all passages: until the model has its first batch, and until the last result."""
    engine = StubEngine(tokens_per_s)
    model = bench.embedder(engine)
    first_ms, total_ms = [], []
    for _ in range(_REPETITIONS):
        engine.batches = 0
        started_s = time.perf_counter()
        results = await model.embed(bench.passages, outputs, max_length=_MAX_LENGTH, priority=Priority.PASSAGE)
        total_ms.append(_MS * (time.perf_counter() - started_s))
        first_ms.append(_MS * (engine.first_s - started_s))
        tokens = sum(result.tokens for result in results if isinstance(result, embedder.Embedding))
        del results
    model.close()
    return {"first batch, ms": min(first_ms), "total, ms": min(total_ms), "tokens/s": _MS * tokens / min(total_ms)}


async def behind(
    bench: Bench, outputs: Sequence[Outputs], *, streamed: bool = False, engine: StubEngine | None = None
) -> dict[str, float]:
    """Tokenized passages, an engine that returns immediately: what scheduling and unpacking cost.

    Args:
        bench: the passages.
        outputs: of each job; the jobs share the passages and the batches.
        streamed: whether the results are pulled from a stream.
        engine: the stub; by default one whose vectors are ready.
    """
    model = bench.embedder(engine or StubEngine())
    encoded = model.tokenize(bench.passages, _MAX_LENGTH)
    tokens = sum(map(len, encoded))
    jobs = [(encoded[number :: len(outputs)], kinds) for number, kinds in enumerate(outputs)]
    seconds = []
    for _ in range(3 * _REPETITIONS):
        started_s = time.perf_counter()
        if streamed:
            await QUICK.run(lambda: _consume(model, encoded, outputs[0]))
        else:
            await asyncio.gather(
                *(model.embed_tokens(texts, kinds, priority=Priority.PASSAGE) for texts, kinds in jobs)
            )
        seconds.append(time.perf_counter() - started_s)
    model.close()
    return {"tokens/s": tokens / min(seconds)}


async def tokenization(bench: Bench) -> dict[str, float]:
    """The tokenizer alone over all passages."""
    seconds = []
    for _ in range(_REPETITIONS):
        started_s = time.perf_counter()
        encoded = bench.tokenizer.encode(bench.passages, _MAX_LENGTH)
        seconds.append(time.perf_counter() - started_s)
    return {"tokens/s": sum(map(len, encoded)) / min(seconds)}


async def stages(bench: Bench, outputs: Outputs) -> dict[str, float]:
    """The stages between tokenized passages and their results, each alone, in the thread that asks."""
    import torch

    from embedder.engines.inputs import Inputs
    from embedder.engines.outputs import HeadInputs
    from embedder.scheduling import runner
    from embedder.scheduling.scheduler import Flights, Scheduler

    encoded = bench.tokenizer.encode(bench.passages, _MAX_LENGTH)
    tokens = sum(map(len, encoded))
    engine = LauncherEngine(0, 0)
    engine._tokens = 0  # noqa: SLF001
    lane = engine._launcher._patient  # noqa: SLF001
    heads = engine._launcher._model.heads  # noqa: SLF001
    figures: dict[str, float] = {}

    def measured(stage: str, work: Callable[[], Any]) -> Any:
        seconds = []
        for _ in range(_REPETITIONS):
            started_s = time.perf_counter()
            result = work()
            seconds.append(time.perf_counter() - started_s)
        figures[f"{stage}, ns per token"] = 1e9 * min(seconds) / tokens
        return result

    def scheduled() -> list[Any]:
        scheduler: Scheduler[str] = Scheduler(budget=BATCH_MAX_TOKENS)
        scheduler.add("job", [len(text) for text in encoded], Priority.PASSAGE)
        flights, batches = Flights(1), []
        while (batch := scheduler.next_batch(flights)) is not None:
            batches.append(batch)
            scheduler.finish(batch, flights)
        return batches

    with torch.inference_mode():
        batches = measured("form batches", scheduled)
        texts = [[runner.Text(encoded[pick.index], outputs, "job") for pick in batch.picks] for batch in batches]
        joined = measured("join the ids", lambda: [TokenBatch.of([text.encoded.ids for text in own]) for own in texts])
        inputs = measured("order the texts", lambda: [Inputs.of(batch, 1) for batch in joined])
        of_heads = measured("sparse entries", lambda: [HeadInputs.of(own, outputs, heads) for own in inputs])

        def launched() -> list[Any]:
            return [lane.launch(own, head, lambda: None) for own, head in zip(inputs, of_heads, strict=True)]

        measured("stage and launch", launched)
        done = measured("stage, launch and take", lambda: [pending.wait() for pending in launched()])
        measured(
            "check and divide",
            lambda: [runner._results(own, batch, outputs) for own, batch in zip(texts, done, strict=True)],  # noqa: SLF001
        )
    return figures


async def job(bench: Bench, texts: Sequence[str], tokens_per_s: float, **options: Any) -> dict[str, float]:
    """One job of the queue, until the values are there that its SDK encodes."""
    from service.operations import Operations
    from service.settings import Settings
    from service.wire import Codec

    settings = {"MODEL_ID": "mini", "MAX_RESPONSE_MB": "10000", "LOG_LEVEL": "ERROR"}
    model = bench.embedder(StubEngine(tokens_per_s))
    codec = Codec(Operations(Settings.from_environment(settings), model))
    raw = {"texts": texts, "isPassage": True, **options}
    took_s, cpu_s = [], []
    for _ in range(_REPETITIONS):
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        answer = await codec.job(raw)
        took_s.append(time.perf_counter() - started_s)
        cpu_s.append(time.process_time() - started_cpu_s)
        if "results" not in answer:
            raise RuntimeError(str(answer)[:1000])
        tokens = answer["usage"]["tokens"]
        del answer
    model.close()
    figures = {"ms": _MS * min(took_s), "CPU ms": _MS * min(cpu_s), "tokens/s": tokens / min(took_s)}
    return figures | ({"x the model's": min(took_s) * tokens_per_s / tokens} if tokens_per_s else {})


def _consume(model: Embedder, encoded: Sequence[Any], outputs: Outputs) -> None:
    with model.stream(encoded, outputs, priority=Priority.PASSAGE) as stream:
        for portion in stream:
            stream.release([index for index, _ in portion])


CASES: Final[dict[str, Callable[[Bench], Awaitable[dict[str, float]]]]] = {
    "query, 1 client": lambda bench: queries(bench, 1, StubEngine()),
    "query, 1 client, pace of a GPU": lambda bench: queries(bench, 1, StubEngine(GPU_TOKENS_PER_S, GPU_PASS_S)),
    "query, 128 clients": lambda bench: queries(bench, 128, StubEngine()),
    "query, 128 clients, pace of a GPU": lambda bench: queries(bench, 128, StubEngine(GPU_TOKENS_PER_S, GPU_PASS_S)),
    "query, 512 clients": lambda bench: queries(bench, 512, StubEngine()),
    "query, 512 clients, pace of a GPU": lambda bench: queries(bench, 512, StubEngine(GPU_TOKENS_PER_S, GPU_PASS_S)),
    "query, 1 client, launched": lambda bench: queries(bench, 1, LauncherEngine()),
    "query, 8 clients, launched": lambda bench: queries(bench, 8, LauncherEngine()),
    "query, 128 clients, launched": lambda bench: queries(bench, 128, LauncherEngine()),
    "query, 512 clients, launched": lambda bench: queries(bench, 512, LauncherEngine()),
    "request, all outputs": lambda bench: request(bench, ALL, 0),
    "request, dense + sparse": lambda bench: request(bench, DENSE_SPARSE, 0),
    "request, all outputs, pace of a GPU": lambda bench: request(bench, ALL, GPU_TOKENS_PER_S),
    "request, dense + sparse, pace of a GPU": lambda bench: request(bench, DENSE_SPARSE, GPU_TOKENS_PER_S),
    "tokens, all outputs": lambda bench: behind(bench, [ALL]),
    "tokens, dense + sparse": lambda bench: behind(bench, [DENSE_SPARSE]),
    "tokens, all outputs, launched": lambda bench: behind(bench, [ALL], engine=LauncherEngine(0, 0)),
    "tokens, dense + sparse, launched": lambda bench: behind(bench, [DENSE_SPARSE], engine=LauncherEngine(0, 0)),
    "tokens, all outputs, 16 jobs": lambda bench: behind(bench, [ALL] * JOBS),
    "tokens, all outputs, 16 jobs of both types": lambda bench: behind(bench, [ALL, Outputs()] * (JOBS // 2)),
    "tokens, dense + sparse, 16 jobs": lambda bench: behind(bench, [DENSE_SPARSE] * JOBS),
    "stream, all outputs": lambda bench: behind(bench, [ALL], streamed=True),
    "stream, dense + sparse": lambda bench: behind(bench, [DENSE_SPARSE], streamed=True),
    "tokenizer": tokenization,
    "stages, all outputs": lambda bench: stages(bench, ALL),
    "stages, dense + sparse": lambda bench: stages(bench, DENSE_SPARSE),
    "job, 1 query, base64": lambda bench: job(bench, bench.queries[:1], 0, **HALF),
    "job, 512 passages, base64": lambda bench: job(bench, bench.equal, 0, **HALF),
    "job, 512 passages, base64, pace of a GPU": lambda bench: job(bench, bench.equal, GPU_TOKENS_PER_S, **HALF),
    "job, 64 passages, lists": lambda bench: job(bench, bench.equal[:64], 0),
    "job, 512 passages, dense lists": lambda bench: job(bench, bench.equal, 0, vectors=["dense"]),
}


if __name__ == "__main__":
    bench = Bench(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print(json.dumps({case: asyncio.run(CASES[case](bench)) for case in sys.argv[2:] or CASES}))  # type: ignore[arg-type]
