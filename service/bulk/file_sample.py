"""A sample of the documents of files: how many there are, and what one has of tokens, words and bytes.

Of each file only the beginning is read, and of that beginning some documents are drawn and tokenized. So the figures of
gigabytes of files take seconds.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, Final

import orjson

from embedder.chunking import Chunker
from embedder.tokenizer import Tokenizer, check_unicode
from service.bulk.extras import library
from service.bulk.formats import suffix_format
from service.bulk.line import BadLine, InputError, Line
from service.bulk.reading import Reader, ReadOptions
from service.bulk.sources import Source
from service.operations import Chunking
from service.planning.passages import Passages

FILES_READ_MAX: Final = 200
"""Files whose beginning is read; of more files these are drawn, evenly over the order of their names."""

SAMPLE_DOCUMENTS: Final = 2000
"""Documents that are tokenized."""

FILE_SAMPLE_MIN_BYTES: Final = 1_000_000
"""Bytes of a file's beginning that are read even if there are many files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """How files are sampled.

    Attributes:
        read: how files are read.
        sample_bytes: bytes that are read of all files, about.
        max_length: maximum tokens of a text.
        chunk: limits of the chunks of a text; None for no chunks.
    """

    read: ReadOptions
    sample_bytes: int
    max_length: int
    chunk: Chunking | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSample:
    """What a sample of files says of all of them.

    Attributes:
        passages: all passages, one per document or chunk.
        documents: number of documents.
        files: number of files.
        read_documents: documents that were read.
        bad_lines: lines that are not documents, among those read.
        tokenized: documents that were tokenized.
        exact: whether every file was read to its end, so that the number of documents is exact.
    """

    passages: Passages
    documents: int
    files: int
    read_documents: int
    bad_lines: int
    tokenized: int
    exact: bool


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sums over the passages of one document."""

    passages: int
    tokens: int
    distinct: int
    text_bytes: int
    payload_bytes: int


@dataclass(slots=True)
class _FileDraw:
    """Documents drawn from the beginning of one file."""

    drawn: list[Line]
    read: int = 0
    bad: int = 0
    total: float = 0.0
    exact: bool = True


def sample_files(
    sources: Sequence[Source], tokenizer: Tokenizer, options: SampleOptions, say: Callable[[str], None]
) -> FileSample:
    """Sample files.

    Args:
        sources: the files.
        tokenizer: the tokenizer of the model.
        options: how.
        say: prints a message.

    Raises:
        InputError: a file is wrong as a whole, or no document is in the sample.
        InvalidRequest: the limits of chunks are out of range.
    """
    chosen = _spread(sources, FILES_READ_MAX)
    budget = max(options.sample_bytes // len(chosen), FILE_SAMPLE_MIN_BYTES)
    share = max(SAMPLE_DOCUMENTS // len(chosen), 1)
    draws = [_draw(source, budget, share, options, say) for source in chosen]
    scale = len(sources) / len(chosen)
    weighted = [
        (scale * draw.total / len(draw.drawn), shape)
        for draw in draws
        if draw.drawn
        for shape in _shapes(draw.drawn, tokenizer, options)
    ]
    if not weighted:
        raise InputError("the files have no documents in the part that was read")
    return FileSample(
        passages=_passages(weighted),
        documents=round(scale * sum(draw.total for draw in draws)),
        files=len(sources),
        read_documents=sum(draw.read for draw in draws),
        bad_lines=sum(draw.bad for draw in draws),
        tokenized=len(weighted),
        exact=len(chosen) == len(sources) and all(draw.exact for draw in draws),
    )


def _spread(sources: Sequence[Source], most: int) -> list[Source]:
    if len(sources) <= most:
        return list(sources)
    return [sources[index * len(sources) // most] for index in range(most)]


def _draw(source: Source, budget: int, share: int, options: SampleOptions, say: Callable[[str], None]) -> _FileDraw:
    """Read the beginning of a file, draw some of its documents, and estimate how many it has."""
    chance = random.Random(0)  # noqa: S311 - the same files give the same plan
    opened: list[BinaryIO] = []

    def remember() -> BinaryIO:
        opened.append(source.open())
        return opened[-1]

    draw, taken = _FileDraw([]), 0
    for line in Reader(options.read, say).lines([replace(source, open=remember)]):
        if taken >= budget and opened[-1].seekable():  # what cannot be seeked has no known length
            draw.exact = False
            draw.total = draw.read * _length_over_read(source, opened[-1], options.read.format, draw.read + draw.bad)
            return draw
        if isinstance(line, BadLine):
            draw.bad += 1
            taken += len(line.raw or b"")
        else:
            _keep(draw, line, share, chance)
            taken += line.size
    draw.total = draw.read
    return draw


def _keep(draw: _FileDraw, line: Line, share: int, chance: random.Random) -> None:
    """Count a document, and keep it so that each one that was read is drawn with the same probability."""
    draw.read += 1
    if len(draw.drawn) < share:
        draw.drawn.append(line)
    elif (index := chance.randrange(draw.read)) < share:
        draw.drawn[index] = line


def _length_over_read(source: Source, file: BinaryIO, form: str | None, lines: int) -> float:
    """The length of a file over the length of what was read of it."""
    if (form or suffix_format(source.name)) == "parquet":
        with source.open() as again:
            rows: int = library("pyarrow.parquet", "Parquet").read_metadata(again).num_rows
        return rows / lines
    position = file.tell()
    return max(file.seek(0, io.SEEK_END) / max(position, 1), 1.0)


def _shapes(lines: Sequence[Line], tokenizer: Tokenizer, options: SampleOptions) -> Iterator[_Shape]:
    """The passages of each document.

    Raises:
        InvalidRequest: the limits of chunks are out of range.
    """
    chunker = Chunker(tokenizer)
    for line in lines:
        try:
            check_unicode([line.text])
        except UnicodeEncodeError:
            continue  # a load rejects it
        texts = [line.text]
        if options.chunk is not None:
            chunks = chunker.split(line.text, max_tokens=options.chunk.max_tokens, overlap=options.chunk.overlap)
            texts = [line.text[chunk.start : chunk.end] for chunk in chunks]
        encoded = [text.ids for text in tokenizer.encode(texts, options.max_length)]
        yield _Shape(
            passages=len(texts),
            tokens=sum(map(len, encoded)),
            distinct=sum(len(set(ids.tolist()) - tokenizer.dropped_ids) for ids in encoded),
            text_bytes=sum(len(text.encode()) for text in texts),
            payload_bytes=len(texts) * _json_bytes(line.payload),
        )


def _json_bytes(payload: object) -> int:
    return 0 if payload is None else len(orjson.dumps(payload, default=str))


def _passages(weighted: Sequence[tuple[float, _Shape]]) -> Passages:
    count = sum(weight * shape.passages for weight, shape in weighted)

    def mean(field: str) -> float:
        return sum(weight * float(getattr(shape, field)) for weight, shape in weighted) / count

    return Passages(
        count=round(count),
        tokens=mean("tokens"),
        distinct=mean("distinct"),
        text_bytes=mean("text_bytes"),
        payload_bytes=mean("payload_bytes"),
    )
