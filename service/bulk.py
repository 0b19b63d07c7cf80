"""Load JSON Lines into a collection, as many as there are, in memory that does not grow with their number.

    python -m service.bulk --collection notes passages.jsonl
    zcat dump.jsonl.gz | python -m service.bulk --collection notes-v2 --alias notes --chunk-tokens 512

Each line is `{"text": "...", "id": 7, "payload": {...}}` in UTF-8; `id` and `payload` may be absent. Model, store and
schema are those of the environment, as for the worker. The HNSW graph of a new collection is built once, at the
end. The alias is set only then, and only if no line was rejected; ids that are derived belong to it, so that they
are the same in the next collection. After an interruption run the same command again; with --insert-only it embeds
only what is missing, which is right if the collection was new.

Exit status: 0 if every point is stored, 1 if some were rejected, 2 if the load could not be finished.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import Any, TextIO

from embedder.errors import ConfigurationError, Overloaded, ResponseTooLarge, WorkerError
from service.operations import Operations
from service.settings import Settings

Json = dict[str, Any]

JOB_TEXTS = 500
JOB_CHARACTERS = 1_000_000
"""Of one job: enough for the model to be busy, little enough to be lost and repeated."""

JOBS = 3
"""At once, so that the model never waits for the end of one."""

GREEN_TIMEOUT_S = 24 * 3600.0
PAUSE_S = 1.0
"""Before a job that the pool had no room for is tried again."""

_INTERRUPTED = "interrupted; run the same command again to go on"


@dataclass(frozen=True, slots=True)
class Line:
    """One document.

    Attributes:
        number: of the line, from 1, over all files.
        text: to embed.
        id: as in `qdrant.ids`, or None.
        payload: a JSON object.
    """

    number: int
    text: str
    id: int | str | None
    payload: Json

    @property
    def key(self) -> Hashable:
        """What makes it the same point as another line."""
        return self.text if self.id is None else (self.id,)


@dataclass(slots=True)
class Total:
    """What became of everything so far, counted in points."""

    stored: int = 0
    skipped: int = 0
    rejected: int = 0
    failure: str | None = None
    started: float = field(default_factory=time.monotonic)

    def json(self, collection: str) -> Json:
        """The summary."""
        found: Json = {
            "collection": collection,
            "submitted": self.stored + self.rejected,
            "stored": self.stored,
            "skipped": self.skipped,
            "rejected": self.rejected,
            "seconds": round(time.monotonic() - self.started, 1),
        }
        return found if self.failure is None else {**found, "error": self.failure}


class BadLineError(Exception):
    """A line that is no document; the message says why, without its content."""


def parse_line(number: int, raw: bytes) -> Line:
    """A document.

    Raises:
        BadLineError: the line is none.
    """
    try:
        value = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise BadLineError(f"not UTF-8 (byte {error.start})") from None
    except ValueError as error:
        raise BadLineError(f"not JSON (column {getattr(error, 'colno', '?')})") from None
    except RecursionError:
        raise BadLineError("nested too deeply") from None
    if not isinstance(value, dict):
        raise BadLineError(f"must be an object, got {type(value).__name__}")
    unknown = sorted(value.keys() - {"text", "id", "payload"})
    if unknown:
        raise BadLineError(f"unknown field {unknown[0][:64]!r}; a line has text, id and payload")
    text, identity, payload = value.get("text"), value.get("id"), value.get("payload", {})
    if not isinstance(text, str):
        raise BadLineError(f"text must be a string, got {type(text).__name__}")
    if not isinstance(payload, dict):
        raise BadLineError(f"payload must be an object, got {type(payload).__name__}")
    if identity is not None and (isinstance(identity, bool) or not isinstance(identity, int | str)):
        raise BadLineError(f"id must be an integer or a string, got {type(identity).__name__}")
    return Line(number, text, identity, payload)


class Job:
    """Lines that go together: with ids or without, each point once."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.keys: set[Hashable] = set()
        self._characters = 0

    def takes(self, line: Line) -> bool:
        """Whether there is room for this one; an empty job takes any."""
        fits = len(self.lines) < JOB_TEXTS and self._characters + len(line.text) <= JOB_CHARACTERS
        return not self.lines or (fits and line.key not in self.keys)

    def add(self, line: Line) -> None:
        """Put a line in."""
        self.lines.append(line)
        self.keys.add(line.key)
        self._characters += len(line.text)


def jobs(lines: Iterable[Line]) -> Iterator[Job]:
    """Lines in jobs, those with ids apart from those without. A point that comes twice is in two jobs, in order."""
    filling = {True: Job(), False: Job()}
    for line in lines:
        named = line.id is not None
        if not filling[named].takes(line):
            yield filling[named]
            filling[named] = Job()
        filling[named].add(line)
    yield from (job for job in filling.values() if job.lines)


class Bulk:
    """One load.

    Args:
        operations: the model and the store.
        arguments: of the command line.
        rejects: where rejected lines are named, one JSON object a line.
    """

    def __init__(self, operations: Operations, arguments: argparse.Namespace, rejects: TextIO | None) -> None:
        self._operations = operations
        self._arguments = arguments
        self._rejects = rejects
        self.total = Total()
        self._lock = Lock()  # lines are read in another thread
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def stop(self) -> None:
        """Begin no further job; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)

    def load(self, raw: Iterable[bytes]) -> Total:
        """Load all lines, build the index, set the alias; what could not be done is the total's `failure`."""
        try:
            asyncio.run(self._run(raw))
        except WorkerError as error:
            self.total.failure = error.message
        return self.total

    async def _run(self, raw: Iterable[bytes]) -> None:
        self._loop = asyncio.get_running_loop()
        arguments, operations = self._arguments, self._operations
        operations.check(self._request([Line(0, "", None, {})]))  # options are at fault for no line
        if arguments.alias is not None:
            await operations.check_alias(arguments.alias)
        if await operations.prepare_load(arguments.collection, defer=arguments.defer_index):
            self._say("the graph is built at the end")
        await self._send_all(raw)
        if self.total.failure is None and self._stopping.is_set():
            self.total.failure = _INTERRUPTED
        if self.total.failure is not None:
            return
        self._say("all sent; building the index")
        await operations.build_index(arguments.collection, timeout_s=GREEN_TIMEOUT_S)
        if arguments.alias is None:
            return
        if self.total.stored and (arguments.allow_rejected or not self.total.rejected):
            await operations.alias(arguments.alias, arguments.collection)
        else:
            self._say("the alias stays where it is: not every line is stored")

    async def _send_all(self, raw: Iterable[bytes]) -> None:
        read: asyncio.Queue[Job | None] = asyncio.Queue(maxsize=1)
        Thread(target=self._read, args=(raw, read), name="lines", daemon=True).start()  # a pipe may never end
        stopping = asyncio.create_task(self._stopping.wait())
        running: dict[asyncio.Task[None], Job] = {}
        try:
            while not self._stopping.is_set():
                coming = asyncio.create_task(read.get())
                await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    break
                job = coming.result()
                if job is None:
                    break
                # A later line of the same point must not be overtaken by the earlier one.
                while len(running) >= JOBS or any(job.keys & other.keys for other in running.values()):
                    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        del running[task]
                        task.result()
                if not self._stopping.is_set():
                    running[asyncio.create_task(self._load(job.lines))] = job
        finally:
            stopping.cancel()
            for outcome in await asyncio.gather(*running, return_exceptions=True):
                if isinstance(outcome, WorkerError) and self.total.failure is None:
                    self.total.failure = outcome.message

    def _read(self, raw: Iterable[bytes], read: asyncio.Queue[Job | None]) -> None:
        """In a thread of its own: a slow pipe must not keep what was read from being sent."""
        loop = self._loop
        if loop is None:
            return

        def put(job: Job | None) -> None:
            putting = read.put(job)
            try:
                asyncio.run_coroutine_threadsafe(putting, loop).result()
            finally:
                putting.close()  # the loop may have ended before it began

        try:
            for job in jobs(self._lines(raw)):
                put(job)
            put(None)
        except (RuntimeError, asyncio.CancelledError):  # the load has ended before the lines
            return
        except OSError as error:
            self.total.failure = f"a file cannot be read ({error.strerror})"
            self.stop()

    def _lines(self, raw: Iterable[bytes]) -> Iterator[Line]:
        for number, one in enumerate(raw, start=1):
            if one.strip():
                try:
                    yield parse_line(number, one)
                except BadLineError as error:
                    self._reject({"line": number, "code": "invalid_request", "message": str(error)})

    async def _load(self, lines: Sequence[Line]) -> None:
        answer = await self._operations.answer(self._request(lines))
        code = answer.get("error_code")
        if code == Overloaded.code:
            await asyncio.sleep(PAUSE_S)
            await self._load(lines)
            return
        if code in ("invalid_request", ResponseTooLarge.code) and len(lines) > 1:
            middle = len(lines) // 2  # one of them is at fault; it must not take the others along
            await self._load(lines[:middle])
            if not self._stopping.is_set():
                await self._load(lines[middle:])
            return
        report = answer.get("upsert") or answer["details"].get("upsert")
        if report is None or code == "invalid_request":
            for line in lines:
                self._reject({"line": line.number, "code": code, "message": answer["error"]})
            return
        self.total.stored += report["stored"]
        self.total.skipped += report["skipped"]
        for one in report["rejected"]:
            self._reject({"line": lines[one["index"]].number, **{k: v for k, v in one.items() if k != "index"}})
        if code is not None:
            self.total.failure = answer["error"]
            self._stopping.set()
        done = self.total.stored + self.total.rejected
        self._say(f"{done} points, {done / max(time.monotonic() - self.total.started, 1e-3):.0f} a second")

    def _request(self, lines: Sequence[Line]) -> Json:
        arguments = self._arguments
        qdrant: Json = {
            "collection": arguments.collection,
            "payloads": [line.payload for line in lines],
            "mode": "insertOnly" if arguments.insert_only else "upsert",
            "textKey": arguments.text_key,
            "colbertPooling": arguments.colbert_pooling,
        }
        if arguments.alias is not None:
            qdrant["idScope"] = arguments.alias
        if lines[0].id is not None:
            qdrant["ids"] = [line.id for line in lines]
        if arguments.chunk_tokens:
            qdrant["chunk"] = {"maxTokens": arguments.chunk_tokens}
            if arguments.chunk_overlap is not None:
                qdrant["chunk"]["overlap"] = arguments.chunk_overlap
        return {
            "texts": [line.text for line in lines],
            "isPassage": True,
            "vectors": arguments.vectors,
            "includeText": False,
            "qdrant": qdrant,
        }

    def _reject(self, one: Json) -> None:
        with self._lock:
            self.total.rejected += 1
            if self._rejects is not None:
                print(json.dumps(one, ensure_ascii=False), file=self._rejects, flush=True)

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, read; None is the process's own."""
    parser = argparse.ArgumentParser(
        prog="python -m service.bulk", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="JSON Lines; none or - reads the standard input")
    parser.add_argument("--collection", required=True, help="made if it is not there")
    parser.add_argument("--alias", help="set to the collection when it is complete and indexed: blue-green")
    parser.add_argument("--allow-rejected", action="store_true", help="set the alias though lines were rejected")
    parser.add_argument("--insert-only", action="store_true", help="leave points that exist, and do not embed them")
    parser.add_argument(
        "--chunk-tokens", type=int, default=0, help="cut texts into points of so many tokens; 0: do not"
    )
    parser.add_argument("--chunk-overlap", type=int, help="tokens that a chunk repeats of the last")
    parser.add_argument("--colbert-pooling", choices=["none", "mean"], default="none")
    parser.add_argument(
        "--vectors", nargs="+", choices=["dense", "sparse", "colbert"], default=["dense", "sparse", "colbert"]
    )
    parser.add_argument("--text-key", default="text", help="where the payload keeps the text")
    parser.add_argument("--defer-index", action="store_true", help="defer the graph of a collection in use, too")
    parser.add_argument("--rejects", type=Path, help="a file for what was rejected: line, code and message")
    arguments = parser.parse_args(argv)
    if arguments.chunk_overlap is not None and not arguments.chunk_tokens:
        parser.error("--chunk-overlap needs --chunk-tokens")
    return arguments


def _raw_lines(files: Sequence[Path]) -> Iterator[bytes]:
    for path in files or [Path("-")]:
        if str(path) == "-":
            # Its own file object: Python aborts at exit if a thread waits inside sys.stdin.
            with os.fdopen(os.dup(sys.stdin.fileno()), "rb") as file:
                yield from file
        else:
            with path.open("rb") as file:
                yield from file


def main(argv: Sequence[str] | None = None) -> int:
    """Run the load that the command line describes; returns the exit status."""
    arguments = arguments_of(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    missing = [path for path in arguments.files if str(path) != "-" and not path.is_file()]
    if missing:
        print(f"no such file: {missing[0]}", file=sys.stderr)
        return 2
    try:
        # Answers stay in this process, however large.
        settings = Settings.from_environment().model_copy(update={"max_response_mb": 10_000.0})
        operations = Operations.build(settings)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    with ExitStack() as stack:
        stack.callback(operations.close)
        rejects = stack.enter_context(arguments.rejects.open("w", encoding="utf-8")) if arguments.rejects else None
        bulk = Bulk(operations, arguments, rejects)

        def stop(number: int, _frame: object) -> None:
            bulk.stop()
            signal.signal(number, signal.SIG_DFL)  # the second time at once

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        total = bulk.load(_raw_lines(arguments.files))
        print(json.dumps(total.json(arguments.collection)))
    return 2 if total.failure is not None else 1 if total.rejected else 0


if __name__ == "__main__":
    sys.exit(main())
