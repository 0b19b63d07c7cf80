"""Load JSON Lines into a collection, as many as there are, in memory that does not grow with their number.

    python -m service.bulk --collection notes passages.jsonl
    zcat dump.jsonl.gz | python -m service.bulk --collection notes-v2 --alias notes --chunk-tokens 512

Each line is `{"text": "...", "id": 7, "payload": {...}}` in UTF-8; `id` and `payload` may be absent. Model, store and
schema are those of the environment, as for the worker. The HNSW graph of a new collection is built once, at the
end. The alias is set only then, and only if no line was rejected; ids that are derived belong to it, so that they
are the same in the next collection. After an interruption run the same command again; with --insert-only it embeds
only what is missing, which is right if the collection was new.

Exit status: 0 if every point is stored, 1 if some were rejected or the alias did not move, 2 if the load could not be
finished.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import Any, TextIO

from embedder.errors import ConfigurationError, Overloaded, ResponseTooLarge, WorkerError, whereabouts
from service.leaving import leave
from service.lines import BadLineError, Job, Line, jobs, parse_line
from service.operations import Operations
from service.settings import Settings

log = logging.getLogger(__name__)

Json = dict[str, Any]

JOBS = 3
"""At once, so that the model never waits for the end of one."""

GREEN_TIMEOUT_S = 24 * 3600.0
PAUSE_S = 1.0
"""Before a job that the pool had no room for is tried again."""

SHOWN = 10
"""Rejected points that are named on the terminal, where no file is."""

_INTERRUPTED = "interrupted; run the same command again to go on"


@dataclass(slots=True)
class Total:
    """What became of everything so far, counted in points.

    Attributes:
        stored: those that are there, of which `skipped` were before.
        skipped: likewise.
        rejected: points and lines.
        failure: why the load could not be finished.
        alias: whether it moved; None where there is none to move.
        started: by the monotonic clock.
    """

    stored: int = 0
    skipped: int = 0
    rejected: int = 0
    failure: str | None = None
    alias: bool | None = None
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
        if self.alias is not None:
            found["alias"] = self.alias
        return found if self.failure is None else {**found, "error": self.failure}

    @property
    def status(self) -> int:
        """The exit status."""
        return 2 if self.failure is not None else 1 if self.rejected or self.alias is False else 0


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
        self.total = Total(alias=None if arguments.alias is None else False)
        self._lock = Lock()  # lines are read in another thread
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: dict[asyncio.Task[None], Job] = {}
        self._indexing = False
        self._deferred = False

    def stop(self) -> None:
        """Begin no further job; from any thread."""
        self._soon(self._stopping.set)

    def interrupt(self) -> None:
        """As `stop`, and tell the person who waits what for; from a signal."""
        self._soon(self._interrupted)

    def _interrupted(self) -> None:
        self._stopping.set()
        texts = sum(len(job.lines) for job in self._running.values())
        if texts:
            self._say(f"stopping: up to {texts} texts under way are finished first; a second signal ends at once")
        elif self._indexing:
            self._say("stopping when the index is built; a second signal ends at once")

    def _soon(self, call: Callable[[], None]) -> None:
        if self._loop is None:
            call()
        else:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(call)

    def load(self, raw: Iterable[bytes]) -> Total:
        """Load all lines, build the index, set the alias; what could not be done is the total's `failure`."""
        try:
            asyncio.run(self._run(raw))
        except WorkerError as error:
            self.total.failure = error.message
        if self._deferred:
            self._say(
                "the graph is still deferred: searches compare with every point until this load, or another into the "
                "collection, has run to its end and builds it"
            )
        return self.total

    async def _run(self, raw: Iterable[bytes]) -> None:
        self._loop = asyncio.get_running_loop()
        arguments, operations = self._arguments, self._operations
        operations.check(self._request([Line(0, "", None, {})]))  # options are at fault for no line
        if arguments.alias is not None:
            await operations.collections.check_alias(arguments.alias, arguments.collection)
        self._deferred = await operations.collections.prepare_load(arguments.collection, defer=arguments.defer_index)
        if self._deferred:
            self._say("the graph is built at the end")
        await self._send_all(raw)
        if self.total.failure is None and self._stopping.is_set():
            self.total.failure = _INTERRUPTED
        if self.total.failure is not None:
            return
        self._say("all sent; building the index")
        self._indexing = True
        await operations.collections.build_index(arguments.collection, timeout_s=GREEN_TIMEOUT_S)
        self._deferred = False
        if arguments.alias is None:
            return
        if self.total.stored and (arguments.allow_rejected or not self.total.rejected):
            await operations.collections.alias(arguments.alias, arguments.collection)
            self.total.alias = True
        else:
            read = self.total.stored + self.total.rejected
            self._say(f"the alias stays where it is: {'not every line is stored' if read else 'no line was read'}")

    async def _send_all(self, raw: Iterable[bytes]) -> None:
        read: asyncio.Queue[Job | None] = asyncio.Queue(maxsize=1)
        Thread(target=self._read, args=(raw, read), name="lines", daemon=True).start()  # a pipe may never end
        stopping = asyncio.create_task(self._stopping.wait())
        running = self._running
        try:
            while not self._over:
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
                if not self._over:
                    running[asyncio.create_task(self._job(job.lines))] = job
        finally:
            stopping.cancel()
            await asyncio.gather(*running)
            running.clear()

    def _read(self, raw: Iterable[bytes], read: asyncio.Queue[Job | None]) -> None:
        """In a thread of its own: a slow pipe must not keep what was read from being sent."""
        loop = self._loop
        if loop is None:
            return

        def put(job: Job | None) -> bool:
            """False: the load has ended before the lines."""
            putting = read.put(job)
            try:
                asyncio.run_coroutine_threadsafe(putting, loop).result()
            except (RuntimeError, CancelledError):
                return False
            finally:
                putting.close()  # the loop may have ended before it began
            return True

        try:
            if all(put(job) for job in jobs(self._lines(raw), self._arguments.alias or self._arguments.collection)):
                put(None)
        except OSError as error:
            self._fail(f"a file cannot be read ({error.strerror})")
        except Exception as error:  # noqa: BLE001 - whatever ended the reading would leave the load waiting
            self._fail_by(error)

    def _lines(self, raw: Iterable[bytes]) -> Iterator[Line]:
        for number, one in enumerate(raw, start=1):
            if one.strip():
                try:
                    yield parse_line(number, one)
                except BadLineError as error:
                    self._reject({"line": number, "code": "invalid_request", "message": str(error)})

    async def _job(self, lines: Sequence[Line]) -> None:
        """As `_load`; whatever goes wrong is the load's failure."""
        try:
            await self._load(lines)
        except Exception as error:  # noqa: BLE001 - a job that ended without a word would be missing from the total
            self._fail_by(error)

    async def _load(self, lines: Sequence[Line]) -> None:
        request = self._request(lines)
        while (answer := await self._operations.answer(request)).get("error_code") == Overloaded.code:
            if await self._stops_within(PAUSE_S):
                return
        code = answer.get("error_code")
        if code in ("invalid_request", ResponseTooLarge.code) and len(lines) > 1:
            middle = len(lines) // 2  # one of them is at fault; it must not take the others along
            await self._load(lines[:middle])
            if not self._over:
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
            self._fail(answer["error"])
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
            if self._rejects is None:
                self._tell(one)
                return
            try:
                print(json.dumps(one, ensure_ascii=False), file=self._rejects, flush=True)
            except OSError as error:
                self._rejects = None
                self._fail(f"--rejects cannot be written ({error.strerror})")

    def _tell(self, one: Json) -> None:
        if self.total.rejected <= SHOWN:
            chunk = f", chunk {one['chunk']}" if "chunk" in one else ""
            self._say(f"line {one['line']}{chunk}: {one['message']}")
        elif self.total.rejected == SHOWN + 1:
            self._say("more were rejected; use --rejects FILE for all")

    @property
    def _over(self) -> bool:
        return self._stopping.is_set() or self.total.failure is not None

    async def _stops_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    def _fail(self, why: str) -> None:
        """Begin no further job, and say why; the first reason is the one that is told. From any thread."""
        if self.total.failure is None:
            self.total.failure = why
        self.stop()

    def _fail_by(self, error: Exception) -> None:
        log.error("the load failed: %s", whereabouts(error))
        self._fail(f"internal error ({type(error).__name__})")

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
    parser.add_argument("--rejects", type=Path, help="a file for all that was rejected: line, code and message")
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


def _close(rejects: TextIO) -> None:
    with suppress(OSError):  # each line was flushed when it was written, and failed then
        rejects.close()


def _nothing_begun(_number: int, _frame: object) -> None:
    print(_INTERRUPTED, file=sys.stderr, flush=True)
    leave(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the load that the command line describes; returns the exit status."""
    arguments = arguments_of(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    missing = [path for path in arguments.files if str(path) != "-" and (path.is_dir() or not path.exists())]
    if missing:
        print(f"no such file: {missing[0]}", file=sys.stderr)
        return 2
    try:
        rejects = arguments.rejects.open("w", encoding="utf-8") if arguments.rejects else None
    except OSError as error:
        print(f"--rejects cannot be written ({error.strerror}): {arguments.rejects}", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _nothing_begun)
    try:
        # Answers stay in this process, however large.
        settings = Settings.from_environment().model_copy(update={"max_response_mb": 10_000.0})
        operations = Operations.build(settings)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    with ExitStack() as stack:
        stack.callback(operations.close)
        if rejects is not None:
            stack.callback(_close, rejects)
        bulk = Bulk(operations, arguments, rejects)

        def stop(number: int, _frame: object) -> None:
            bulk.interrupt()
            signal.signal(number, signal.SIG_DFL)  # the second time at once

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        total = bulk.load(_raw_lines(arguments.files))
        print(json.dumps(total.json(arguments.collection)))
    return total.status


if __name__ == "__main__":
    sys.exit(main())
