"""A whole ingest beside its two halves: the model alone, and the store alone."""

from __future__ import annotations

import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import corpus
from benchmarks.spans import Recorder, Timeline, WatchedStore, watch_model

if TYPE_CHECKING:
    from embedder import Embedder, Result
    from qdrant_sink import Store
    from service.settings import Settings

ROOT = Path(__file__).parents[1]
GOAL = 0.9
"""Least share of the rate of the slower half."""


@dataclass(frozen=True, slots=True)
class Ingest:
    """The same texts, in every round: embedded; stored; and both concurrently, by one job of the worker.

    Attributes:
        store: its name.
        texts: per run.
        model: seconds of embedding alone, by round.
        alone: seconds of storing what was embedded, alone, by round.
        whole: seconds of the job, by round.
        timeline: of the round with the median job.
    """

    store: str
    texts: int
    model: Sequence[float]
    alone: Sequence[float]
    whole: Sequence[float]
    timeline: Timeline

    @property
    def of_model(self) -> float:
        """The rate of the job as a share of that of the model alone."""
        return statistics.median(self.model) / statistics.median(self.whole)

    @property
    def of_slower(self) -> float:
        """The rate of the job as a share of that of the slower half."""
        slower = max(statistics.median(self.model), statistics.median(self.alone))
        return slower / statistics.median(self.whole)


def passages(count: int) -> list[str]:
    """Distinct texts like those of the bundled corpus: two to four of its sentences each, drawn anew."""
    sentences = sorted(
        {sentence for passage in corpus.passages() for sentence in re.split(r"(?<=[.!?])\s+", passage.text)}
    )
    draw = random.Random(0)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(draw.sample(sentences, draw.randrange(2, 5)))] = None
    return list(found)


def measure(settings: Settings, count: int, rounds: int) -> tuple[list[Ingest], str]:
    """Ingest into Qdrant Edge, and into the gRPC double in a process of its own; and the model, for a person."""
    from embedder import Embedder
    from qdrant_sink.edge import EdgeStore
    from qdrant_sink.server import ServerStore

    texts = passages(count)
    recorder = Recorder()
    embedder = Embedder.load(settings.model_options)
    watch_model(embedder, recorder)
    with ExitStack() as stack:
        stack.callback(embedder.close)
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(_double(root / "double"))
        stores: dict[str, Store] = {
            "Qdrant Edge": EdgeStore(root / "edge"),
            "gRPC double": ServerStore("http://127.0.0.1:9", grpc_port=port),
        }
        for store in stores.values():
            stack.callback(store.close)
        runs = {name: _Run(settings, embedder, store, recorder) for name, store in stores.items()}
        found: dict[str, list[tuple[float, float, Timeline]]] = {name: [] for name in stores}
        for number in range(-1 if rounds > 1 else 0, rounds):  # the first of several warms up
            for name, run in runs.items():
                seconds = run.round(texts, f"round{number}")
                if number >= 0:
                    found[name].append(seconds)
    return [_ingest(name, count, rows) for name, rows in found.items()], embedder.label


def _ingest(store: str, texts: int, rows: Sequence[tuple[float, float, Timeline]]) -> Ingest:
    model, alone, timelines = zip(*rows, strict=True)
    middle = sorted(timelines, key=lambda timeline: timeline.seconds)[len(timelines) // 2]
    return Ingest(store, texts, model, alone, [timeline.seconds for timeline in timelines], middle)


class _Run:
    """The three measurements with one store."""

    def __init__(self, settings: Settings, embedder: Embedder, store: Store, recorder: Recorder) -> None:
        from service.operations import Operations
        from service.wire import Codec

        watched: Any = WatchedStore(store, recorder)
        self._schema = settings.qdrant_collection_config.schema_for(embedder.hidden_size, embedder.colbert_size)
        self._embedder = embedder
        self._store = store
        self._recorder = recorder
        self._codec = Codec(Operations(settings, embedder, watched))

    def round(self, texts: Sequence[str], collection: str) -> tuple[float, float, Timeline]:
        """Seconds of the model alone and of the store alone, and the timeline of the job."""
        model, results = _timed(lambda: asyncio.run(self._embed(texts)))
        alone, _ = _timed(lambda: self._write(texts, results, f"{collection}-alone"))
        job = {
            "texts": list(texts),
            "isPassage": True,
            "includeText": False,
            "qdrant": {"collection": collection},
        }
        self._recorder.take(0.0, 1.0)
        start = time.perf_counter()
        answer = asyncio.run(self._codec.answer(job))
        timeline = self._recorder.take(start, time.perf_counter())
        if answer.code is not None:
            raise RuntimeError(f"the job failed: {answer.code}")
        stored = json.loads(answer.body)["upsert"]["stored"]
        if stored != len(texts):
            raise RuntimeError(f"{stored} of {len(texts)} texts are stored")
        return model, alone, timeline

    async def _embed(self, texts: Sequence[str]) -> list[Result]:
        from embedder import Outputs, Priority

        length = self._embedder.max_length
        return await self._embedder.embed(texts, Outputs(), max_length=length, priority=Priority.PASSAGE)

    def _write(self, texts: Sequence[str], results: Sequence[Result], collection: str) -> None:
        from embedder import Embedding
        from qdrant_sink import Draft, Vectors, Writer, text_id
        from qdrant_sink.writing import IN_FLIGHT_MAX

        drafts = [
            Draft(index, text_id(text, collection), {"text": text}, Vectors.of(result))
            for index, (text, result) in enumerate(zip(texts, results, strict=True))
            if isinstance(result, Embedding)
        ]
        self._store.ensure(collection, self._schema)
        with ThreadPoolExecutor(IN_FLIGHT_MAX) as senders:
            report = Writer(self._store, collection, self._schema, senders).write([drafts])
        if report.stored != len(texts):
            raise RuntimeError(f"{report.stored} of {len(texts)} points are stored: {report.rejected[:1]}")


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


@contextmanager
def _double(root: Path) -> Iterator[int]:
    """The port of a double that runs beside this process, as a server would."""
    root.mkdir()
    command = [sys.executable, "-m", "tests.sink.serve_double", str(root)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline() if process.stdout else "")
        finally:
            process.communicate(timeout=30)
