"""The run of `embed`: lines become rows of vectors in the parts of a folder, in memory that does not grow with them.

lines (a thread) -> batches -> pieces -> groups that the model computes -> rows, in the order of the lines -> parts
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from threading import Lock, Thread
from typing import Any, BinaryIO, Final

from embedder import Embedding, InvalidRequest, ModelFailure, Outputs, Overloaded, Result, WorkerError, whereabouts
from qdrant_sink import Refusal, conform_id, conform_payload, kind_of, pooled, rows_max, too_many_rows
from service.bulk.handover import hand_over
from service.bulk.line import BadLine, InputError, Line
from service.bulk.line_batches import BATCH_MAX_BYTES, BATCH_MAX_CHARACTERS, BATCH_MAX_TEXTS
from service.bulk.rejections import Rejections
from service.bulk.report import LoadReport
from service.bulk.vector_files.description import Description, Position
from service.bulk.vector_files.parts import PartFolder
from service.bulk.vector_files.points import PointRow, payload_json
from service.operations import Chunking, EncodedPiece, Operations, Piece
from service.operations.load_values import INTERRUPTED
from service.wire.errors import code_for, code_of

log = logging.getLogger(__name__)

OVERLOADED_PAUSE_S: Final = 0.1
"""Pause before a group is retried for which the queue of the model was full."""

_GROUPS: Final = 4
"""Groups into which the window of the model is divided, so that it computes one while others wait."""


class _OutputError(Exception):
    """The folder cannot be written. The message says why."""


@dataclass(frozen=True, slots=True)
class _Document:
    """A valid line, and where the input stands after it."""

    line: Line
    end: Position


@dataclass(frozen=True, slots=True)
class _Entry:
    """A piece of a document."""

    document: _Document
    piece: EncodedPiece
    text: str
    is_last: bool


class EmbedRun:
    """A run of `embed`.

    Args:
        core: the operations.
        description: what the vectors are.
        folder: takes the rows.
        rejects: file for rejections, one JSON object per line; None prints the first ones.
        say: prints a message.
        rejected_lines: file for the rejected lines themselves; None for none.
        progress: called with the report after each group of rows.

    Attributes:
        report: the report, whose `stored` are the rows of this run.
    """

    def __init__(
        self,
        core: Operations,
        description: Description,
        folder: PartFolder,
        rejects: BinaryIO | None,
        say: Callable[[str], None],
        *,
        rejected_lines: BinaryIO | None = None,
        progress: Callable[[LoadReport], None] = lambda _report: None,
    ) -> None:
        self._core = core
        self._description = description
        self._folder = folder
        self._say = say
        self._progress = progress
        self.report = LoadReport()
        self._counting = Lock()
        self._rejections = Rejections(rejects, rejected_lines, say, self._fail, self.report)
        self._outputs = Outputs.of(tuple(description.kinds), "float16" if description.dtype == "float16" else "float32")
        chunked = description.chunk_tokens
        self._chunk = Chunking(chunked, description.chunk_overlap) if chunked else None
        self._rows_max = rows_max(description.colbert_size) if "colbert" in description.kinds else None
        self._pools = description.colbert_pooling == "mean"
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._digest = hashlib.blake2b(digest_size=16)
        self._lines = 0
        self._failed = folder.start.failed
        self._document: _Document | None = None
        self._in_flight: deque[tuple[Sequence[_Entry], asyncio.Task[Sequence[Result]]]] = deque()
        self._in_flight_tokens = 0
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parts")

    def interrupt(self) -> None:
        """Begin no further batch, and finish what is under way; for signal handlers."""
        self._call_in_loop(self._stopping.set)
        self._say("stopping after the running batches; a second signal stops immediately")

    def run(self, lines: Iterable[Line | BadLine]) -> LoadReport:
        """Embed all lines. An error becomes the report's `failure`."""
        self.report.rejected = self._failed
        try:
            asyncio.run(self._run(lines))
        except WorkerError as error:
            self._fail(error.message)
        except InputError as error:
            self._fail(str(error))
        except _OutputError as error:
            self._fail(str(error))
        except Exception as error:  # noqa: BLE001 - the report must say that it is not all
            log.error("the run failed: %s", whereabouts(error))
            self._fail(f"internal error ({type(error).__name__})")
        self._writer.shutdown()
        return self.report

    async def _run(self, lines: Iterable[Line | BadLine]) -> None:
        self._loop = asyncio.get_running_loop()
        batches: asyncio.Queue[list[_Document] | Exception | None] = asyncio.Queue(maxsize=1)
        Thread(target=self._read, args=(lines, batches), name="lines", daemon=True).start()  # a pipe may never end
        is_read = is_written = False
        fault: Exception | None = None
        try:
            while not self._stopping.is_set():
                batch = await self._next(batches)
                if not isinstance(batch, list):
                    fault = batch
                    is_read = batch is None and not self._stopping.is_set()
                    break
                await self._embed(batch)
            while self._in_flight:
                await self._take()
            is_written = is_read
        finally:
            for _, task in self._in_flight:
                task.cancel()
            end = self._position if is_written and self.report.failure is None else None
            await self._write(lambda: self._folder.close(end))
        if fault is not None:
            raise fault
        if self._stopping.is_set():
            self._fail(INTERRUPTED)

    async def _next(
        self, batches: asyncio.Queue[list[_Document] | Exception | None]
    ) -> list[_Document] | Exception | None:
        """The next batch; None at the end, or if the run is stopped meanwhile."""
        reading = asyncio.create_task(batches.get())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if reading.done():
            return reading.result()
        reading.cancel()
        return None

    def _read(
        self, lines: Iterable[Line | BadLine], batches: asyncio.Queue[list[_Document] | Exception | None]
    ) -> None:
        """Read lines into batches, in a thread of its own, so that the model computes meanwhile."""
        loop = self._loop
        if loop is None:
            return

        try:
            hand_over(chain(_batches(self._documents(lines)), (None,)), batches, loop)
        except Exception as error:  # noqa: BLE001 - the run raises it
            hand_over((error,), batches, loop)

    def _documents(self, lines: Iterable[Line | BadLine]) -> Iterator[_Document]:
        """The valid lines behind what earlier runs have embedded.

        Raises:
            InputError: the input is not the one that earlier runs have read.
        """
        start = self._folder.start
        for line in lines:
            self._lines += 1
            self._digest.update(_content(line))
            refusal = self._refusal(line)
            if refusal is not None:
                self._rejections.add(line, *refusal)
            if self._lines <= start.lines:
                self._count(passed=1)
                if self._lines == start.lines:
                    self._check_start()
                continue
            if self._folder.is_complete:
                raise InputError(
                    f"the folder is complete, and the input has more than its {start.lines} lines; embed the new ones "
                    "into another --out"
                )
            if refusal is not None:
                self._count()
            elif isinstance(line, Line):
                yield _Document(line, self._position)
        if self._lines < start.lines:
            raise InputError(
                f"the input has {self._lines} lines, and the parts in the folder were embedded from its first "
                f"{start.lines}; give the same files again, or another --out"
            )

    def _check_start(self) -> None:
        if self._position.digest != self._folder.start.digest:
            raise InputError(
                f"the first {self._lines} lines of the input, or the fields that are read, have changed since the "
                "parts in the folder were embedded; give another --out"
            )
        rows = self._folder.rows_before
        self._say(f"going on after line {self._lines} of the input; {rows} rows are written already")

    def _count(self, passed: int = 0) -> None:
        """Count a line whose fate is known. Thread-safe."""
        with self._counting:
            self.report.lines += 1
            self.report.passed += passed

    def _refusal(self, line: Line | BadLine) -> tuple[str, str] | None:
        """Code and message of a line that could not be stored; None for a valid one."""
        if isinstance(line, BadLine):
            return code_for(InvalidRequest), line.message
        if line.id is not None:
            identity = conform_id(line.id, "")
            if isinstance(identity, Refusal):
                return code_of(identity), identity.message
        if line.payload is None:
            return None
        if not isinstance(line.payload, Mapping):
            return "invalid_payload", f"payload: must be an object, got {kind_of(line.payload)}"
        refusal = conform_payload(line.payload, self._core.collections.wanted)
        return None if refusal is None else (code_of(refusal), refusal.message)

    @property
    def _position(self) -> Position:
        return Position(self._lines, self._digest.hexdigest(), self._failed)

    async def _embed(self, documents: Sequence[_Document]) -> None:
        """Cut the texts of a batch, and give their pieces to the model in groups."""
        group: list[_Entry] = []
        tokens = 0
        group_tokens = max(self._core.piece_vectors.window // _GROUPS, 1)
        for entry in await self._entries(documents):
            size = len(entry.piece.encoded)
            if group and tokens + size > group_tokens:
                await self._submit(group, tokens)
                group, tokens = [], 0
            group.append(entry)
            tokens += size
        if group:
            await self._submit(group, tokens)

    async def _entries(self, documents: Sequence[_Document]) -> list[_Entry]:
        texts = [document.line.text for document in documents]
        try:
            pieces = await self._core.piece_vectors.cut(texts, self._chunk)
        except InvalidRequest as error:
            if len(documents) > 1:  # find the invalid line, and cut the others
                middle = len(documents) // 2
                return [*await self._entries(documents[:middle]), *await self._entries(documents[middle:])]
            self._failed += 1
            self._count()
            self._rejections.add(documents[0].line, code_of(error), error.message)
            return []
        last = {piece.piece.text: index for index, piece in enumerate(pieces)}
        return [
            _Entry(documents[piece.piece.text], piece, piece.piece.content(texts), last[piece.piece.text] == index)
            for index, piece in enumerate(pieces)
        ]

    async def _submit(self, group: Sequence[_Entry], tokens: int) -> None:
        """Give a group to the model, once it has room for it."""
        while self._in_flight and self._in_flight_tokens + tokens > self._core.piece_vectors.window:
            await self._take()
        self._in_flight.append((group, asyncio.create_task(self._computed(group))))
        self._in_flight_tokens += tokens

    async def _computed(self, group: Sequence[_Entry]) -> Sequence[Result]:
        """The results of a group. Pieces with too many ColBERT rows are not computed: their result is the error."""
        fitting = [entry.piece for entry in group if self._too_long(entry) is None]
        while True:
            try:
                results = iter(await self._core.piece_vectors.embed(fitting, self._outputs) if fitting else ())
            except Overloaded:
                await asyncio.sleep(OVERLOADED_PAUSE_S)
                continue
            return [
                next(results) if self._too_long(entry) is None else ModelFailure("too many rows") for entry in group
            ]

    def _too_long(self, entry: _Entry) -> Refusal | None:
        rows = len(entry.piece.encoded) - 1
        if self._rows_max is None or self._pools or rows <= self._rows_max:
            return None
        return too_many_rows(rows, self._description.colbert_size)

    async def _take(self) -> None:
        """Write the rows of the group that was submitted first."""
        group, computing = self._in_flight.popleft()
        try:
            results = await computing
        finally:
            tokens = sum(len(entry.piece.encoded) for entry in group)
            self._in_flight_tokens -= tokens
        self.report.tokens += tokens
        await self._write(lambda: self._add(group, results))
        self._progress(self.report)

    async def _write(self, call: Callable[[], None]) -> None:
        """Run a call in the thread that writes the folder.

        Raises:
            _OutputError: the folder cannot be written.
        """
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, call)
        except OSError as error:
            reason = error.strerror if error.errno is None else os.strerror(error.errno)  # pyarrow's has details
            lines = self._folder.end.lines
            resumes = f"goes on after line {lines} of the input" if lines else "begins again"
            raise _OutputError(
                f"--out cannot be written ({reason}), and the part that was open is lost; once it can be written, the "
                f"same command {resumes}"
            ) from None

    def _add(self, group: Sequence[_Entry], results: Sequence[Result]) -> None:
        """Add the rows of a group to the folder."""
        for entry, result in zip(group, results, strict=True):
            line, piece = entry.document.line, entry.piece.piece
            refusal = self._too_long(entry)
            if refusal is not None:
                self._failed += 1
                self._rejections.add(line, code_of(refusal), refusal.message, chunk=piece.chunk)
            elif isinstance(result, Embedding):
                self._folder.add(self._row(entry, result))
                self._document = entry.document
                self.report.stored += 1
            else:
                self._failed += 1
                self._rejections.add(line, code_of(result), result.message, chunk=piece.chunk)
            if entry.is_last:
                self._count()
                self._folder.end_line(replace(entry.document.end, failed=self._failed))

    def _row(self, entry: _Entry, embedding: Embedding) -> PointRow:
        line, piece = entry.document.line, entry.piece.piece
        is_first = self._document is not entry.document
        if self._rows_max is not None and embedding.colbert is not None:
            embedding = replace(embedding, colbert=pooled(embedding.colbert, self._rows_max))
        payload: Any = line.payload
        return PointRow(
            id=line.id if isinstance(line.id, int | str) else None,
            text=entry.text,
            payload=payload_json(payload or {}) if is_first else None,
            document=line.text if is_first and piece.chunk is not None else None,
            piece=Piece(0, piece.chunk, piece.start, piece.end),
            vectors=embedding,
        )

    def _call_in_loop(self, call: Callable[[], Any]) -> None:
        if self._loop is None:
            call()
        else:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(call)

    def _fail(self, reason: str) -> None:
        """End the run with a reason; later reasons are ignored. Thread-safe."""
        if self.report.failure is None:
            self.report.failure = reason
        self._call_in_loop(self._stopping.set)


def _batches(documents: Iterable[_Document]) -> Iterator[list[_Document]]:
    """Divide documents into batches. If they break off, the last batch comes before the error."""
    batch: list[_Document] = []
    characters = size = 0
    fault: Exception | None = None
    try:
        for document in documents:
            line = document.line
            fits = (
                len(batch) < BATCH_MAX_TEXTS
                and characters + len(line.text) <= BATCH_MAX_CHARACTERS
                and size + line.size <= BATCH_MAX_BYTES
            )
            if batch and not fits:
                yield batch
                batch, characters, size = [], 0, 0
            batch.append(document)
            characters += len(line.text)
            size += line.size
    except Exception as error:  # noqa: BLE001 - raised below
        fault = error
    if batch:
        yield batch
    if fault is not None:
        raise fault


def _content(line: Line | BadLine) -> bytes:
    """What a line says, for a digest: the same for a line that is read twice."""
    said: tuple[Any, ...] = (line.message,) if isinstance(line, BadLine) else (line.text, line.id, line.payload)
    try:
        return json.dumps(said, default=str).encode()
    except (ValueError, RecursionError):
        return repr(type(line)).encode()
