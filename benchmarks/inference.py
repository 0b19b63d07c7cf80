"""The benchmark of Qdrant's inference: what a request costs beside the model alone. `make bench-inference`.

make bench-inference                             a checkpoint of full size, about 5 minutes on two cores
make bench-inference ARGS="--quick"              a small checkpoint, seconds; its figures mean little
make bench-inference ARGS="--device cuda:0"

One process has the model and the HTTP server. A round embeds the same texts by `Embedder.embed` and, as documents of
an upsert with all three kinds, through `/qdrant/inference`, in turn; the client reads the bytes and parses nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import uvicorn

from benchmarks.checkpoint import made
from benchmarks.machine import hardware, versions
from benchmarks.sections import table
from benchmarks.texts import Writer
from embedder import KINDS, Embedder, Outputs, Priority
from service.operations import Operations
from service.settings import Settings
from service.transports.http.routes import application
from service.transports.http.server import listening
from service.transports.http.state import ServerState
from service.wire.qdrant_inference import INFERENCE

ROOT: Final = Path(__file__).parents[1]
POINTS, TOKENS, ROUNDS = 256, 40, 3
QUICK_POINTS, QUICK_ROUNDS = 16, 1
GOAL: Final = 1.3
"""Maximum time of a request, as a multiple of that of the model alone."""

_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Round:
    """Both sides of one round.

    Attributes:
        embed_s: seconds of `Embedder.embed`.
        inference_s: seconds from the request to the last byte of the answer.
        first_byte_s: seconds from the request to the first byte of the answer.
        answer_bytes: size of the answer.
    """

    embed_s: float
    inference_s: float
    first_byte_s: float
    answer_bytes: int


class _Server(uvicorn.Server):
    """uvicorn in a thread, which must not install signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers."""
        yield


@contextmanager
def _serving(operations: Operations) -> Iterator[int]:
    """Serve the operations on a loopback port, and yield the port."""
    state = ServerState(operations.settings)
    state.open(operations)
    with listening(0) as listener:
        server = _Server(uvicorn.Config(application(state), lifespan="off", ws="none", log_config=None))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


def measure(embedder: Embedder, operations: Operations, texts: Sequence[str], rounds: int) -> list[Round]:
    """Measure both sides in turn, after one round that is not counted."""
    inputs = [
        {"data": text, "data_type": "text", "model": operations.model_name, "options": {"output": kind}}
        for text in texts
        for kind in KINDS
    ]
    random.Random(1024).shuffle(inputs)  # the server's own order is that of a hash table
    body = json.dumps({"inputs": inputs, "inference": "update", "token": None}).encode()
    with _serving(operations) as port:
        measured = []
        for number in range(rounds + 1):
            if number % 2:
                embed_s, sent = _embedded(embedder, texts), _sent(port, body)
            else:
                sent, embed_s = _sent(port, body), _embedded(embedder, texts)
            measured.append(Round(embed_s, *sent))
        return measured[1:]


def _embedded(embedder: Embedder, texts: Sequence[str]) -> float:
    started = time.perf_counter()
    asyncio.run(embedder.embed(texts, Outputs(), max_length=embedder.max_length, priority=Priority.PASSAGE))
    return time.perf_counter() - started


def _sent(port: int, body: bytes) -> tuple[float, float, int]:
    """Send the request; seconds until the last and the first byte of the answer, and its size."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    started = time.perf_counter()
    connection.request("POST", INFERENCE, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    size, first_byte_s = 0, time.perf_counter() - started
    while part := response.read(_READ_BYTES):
        size += len(part)
    seconds = time.perf_counter() - started
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"the worker answered {response.status}")
    return seconds, first_byte_s, size


def main() -> int:
    """Measure, print a table, and return the exit status: 1 if the goal is missed."""
    options = _parse()
    quick = options.quick
    machine = hardware()
    folder = options.out if quick else options.out.parent
    checkpoint = options.checkpoint or made(folder / "checkpoint", quick=quick).resolve()
    settings = Settings.from_environment(
        {"MODEL_ID": str(checkpoint), "GPU_DEVICE": options.device, "DTYPE": options.dtype}
    )
    embedder = Embedder.load(settings.model_options)
    operations = Operations(settings, embedder)
    writer = Writer(checkpoint / "tokenizer.json", seed=TOKENS)
    texts = [writer.text(TOKENS) for _ in range(QUICK_POINTS if quick else POINTS)]
    rounds = measure(embedder, operations, texts, QUICK_ROUNDS if quick else ROUNDS)
    operations.close()
    options.out.mkdir(parents=True, exist_ok=True)
    findings = {
        "model": embedder.label,
        "rounds": [asdict(one) for one in rounds],
        "machine": {**machine, **versions("orjson", "uvicorn", "fastapi")},
    }
    (options.out / "inference.json").write_text(json.dumps(findings, indent=1), encoding="utf-8")
    print(render(embedder.label, len(texts), rounds))
    return 0 if quick or _ratio(rounds) <= GOAL else 1


def _ratio(rounds: Sequence[Round]) -> float:
    return statistics.median(one.inference_s / one.embed_s for one in rounds)


def render(label: str, points: int, rounds: Sequence[Round]) -> str:
    """The figures as Markdown."""
    ratio = _ratio(rounds)
    row = (
        f"{points} x {TOKENS} tokens",
        f"{1e3 * statistics.median(one.embed_s for one in rounds):.0f}",
        f"{1e3 * statistics.median(one.first_byte_s for one in rounds):.0f}",
        f"{1e3 * statistics.median(one.inference_s for one in rounds):.0f}",
        f"{rounds[0].answer_bytes / 1e6:.0f}",
        f"{ratio:.2f} x",
        f"{GOAL} x",
        "met" if ratio <= GOAL else "missed",
    )
    head = ("points", "`Embedder.embed`, ms", "first byte, ms", "last byte, ms", "answer, MB", "ratio", "goal", "")
    return f"Model: {label}; medians of {len(rounds)} rounds.\n\n{table(head, [row])}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--checkpoint", type=Path, help="default: random weights of full size, made once")
    parser.add_argument("--dtype", default="auto", help="as DTYPE")
    parser.add_argument("--device", default="cpu", help="as GPU_DEVICE")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "inference", help="of the raw results")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
