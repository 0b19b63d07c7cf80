"""Load JSON Lines into a collection, as many as there are, in memory that does not grow with their number.

    python -m service.bulk --collection notes passages.jsonl
    zcat dump.jsonl.gz | python -m service.bulk --collection notes-v2 --alias notes --chunk-tokens 512

Each line is `{"text": "...", "id": 7, "payload": {...}}`; `id` and `payload` may be absent. Model, store and schema are
those of the environment, as for the worker. The HNSW graph is built once, at the end, and the alias is set only
then. Run again after an interruption, with --insert-only to embed only what is missing.

Exit status: 0 if every point is stored, 1 if some were rejected, 2 if the load could not be finished.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, TextIO

from embedder.errors import ConfigurationError, WorkerError
from service.operations import Operations
from service.settings import Settings

Json = dict[str, Any]

JOB_TEXTS = 500
JOB_CHARACTERS = 1_000_000
"""Of one job: enough for the model to be busy, little enough to be lost and repeated."""

JOBS = 3
"""At once, so that the model never waits for the end of one."""

GREEN_TIMEOUT_S = 24 * 3600.0


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


def parse_line(number: int, raw: str) -> Line:
    """A document.

    Raises:
        BadLineError: the line is none.
    """
    try:
        value = json.loads(raw)
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


def jobs(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Lines in groups for one job each; with ids or without, never mixed."""
    job: list[Line] = []
    characters = 0
    for line in lines:
        other = job and (job[0].id is None) != (line.id is None)
        if other or len(job) >= JOB_TEXTS or (job and characters + len(line.text) > JOB_CHARACTERS):
            yield job
            job, characters = [], 0
        job.append(line)
        characters += len(line.text)
    if job:
        yield job


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
        self._stopped = False
        self._lock = Lock()  # lines are read in another thread

    def stop(self) -> None:
        """Begin no further job."""
        self._stopped = True

    def load(self, raw: Iterable[str]) -> Total:
        """Load all lines, build the index, set the alias; what could not be done is the total's `failure`."""
        try:
            asyncio.run(self._run(raw))
        except WorkerError as error:
            self.total.failure = error.message
        except UnicodeDecodeError:
            self.total.failure = "a file is not UTF-8"
        return self.total

    async def _run(self, raw: Iterable[str]) -> None:
        arguments = self._arguments
        self._operations.check(self._request([Line(0, "", None, {})]))  # options are at fault for no line
        if not arguments.keep_index:
            await self._operations.defer_index(arguments.collection)
        running: set[asyncio.Task[None]] = set()
        waiting = jobs(self._lines(raw))
        while not self._stopped and (job := await asyncio.to_thread(next, waiting, None)):  # a pipe may be slow
            running.add(asyncio.create_task(self._load(job)))
            if len(running) >= JOBS:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        await asyncio.gather(*running)
        if self._stopped and self.total.failure is None:
            self.total.failure = "interrupted; run again with --insert-only to go on"
        if self.total.failure is None:
            self._say("all sent; building the index")
            await self._operations.build_index(arguments.collection, timeout_s=GREEN_TIMEOUT_S)
            if arguments.alias is not None:
                await self._operations.alias(arguments.alias, arguments.collection)

    def _lines(self, raw: Iterable[str]) -> Iterator[Line]:
        for number, one in enumerate(raw, start=1):
            if one.strip():
                try:
                    yield parse_line(number, one)
                except BadLineError as error:
                    self._reject({"line": number, "code": "invalid_request", "message": str(error)})

    async def _load(self, job: Sequence[Line]) -> None:
        answer = await self._operations.answer(self._request(job))
        report = answer.get("upsert") or answer.get("details", {}).get("upsert")
        if report is None and len(job) > 1 and answer["error_code"] == "invalid_request":
            middle = len(job) // 2  # one of them is at fault; it must not take the others along
            await self._load(job[:middle])
            await self._load(job[middle:])
            return
        if report is None:
            for line in job:
                self._reject({"line": line.number, "code": answer["error_code"], "message": answer["error"]})
            return
        self.total.stored += report["stored"]
        self.total.skipped += report["skipped"]
        for one in report["rejected"]:
            self._reject({"line": job[one["index"]].number, **{k: v for k, v in one.items() if k != "index"}})
        if "error" in answer:
            self.total.failure = answer["error"]
            self._stopped = True
        done = self.total.stored + self.total.rejected
        self._say(f"{done} points, {done / max(time.monotonic() - self.total.started, 1e-3):.0f} a second")

    def _request(self, job: Sequence[Line]) -> Json:
        arguments = self._arguments
        qdrant: Json = {
            "collection": arguments.collection,
            "payloads": [line.payload for line in job],
            "mode": "insertOnly" if arguments.insert_only else "upsert",
            "textKey": arguments.text_key,
            "colbertPooling": arguments.colbert_pooling,
        }
        if job[0].id is not None:
            qdrant["ids"] = [line.id for line in job]
        if arguments.chunk_tokens:
            qdrant["chunk"] = {"maxTokens": arguments.chunk_tokens}
            if arguments.chunk_overlap is not None:
                qdrant["chunk"]["overlap"] = arguments.chunk_overlap
        return {
            "texts": [line.text for line in job],
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
    parser.add_argument("--keep-index", action="store_true", help="do not defer the HNSW graph of a collection in use")
    parser.add_argument("--rejects", type=Path, help="a file for what was rejected: line, code and message")
    return parser.parse_args(argv)


def _raw_lines(files: Sequence[Path]) -> Iterator[str]:
    for path in files or [Path("-")]:
        if str(path) == "-":
            yield from sys.stdin
        else:
            with path.open(encoding="utf-8") as file:
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
        operations = Operations.build(Settings.from_environment())
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
