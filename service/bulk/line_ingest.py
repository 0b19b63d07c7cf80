"""The ingest of lines: texts that a model or an endpoint embeds, or documents that have their vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, overload

import numpy as np

from embedder import Kind
from qdrant_sink.loading import LoadContent
from service.bulk.backend import Backend
from service.bulk.line import Line
from service.bulk.vector_line import VectorLine
from service.operations import (
    GivenPoint,
    IngestRequest,
    IngestResult,
    Operations,
    Piece,
    VectorOperations,
)
from service.operations.ingest_plan import IngestPlan
from service.operations.load_content import content_of


@dataclass(frozen=True, slots=True, eq=False)
class PlannedLines:
    """Lines as they would be stored.

    Attributes:
        plan: the plan of their points.
        tokens: tokens that the model would embed.
        colbert_rows: ColBERT rows of all points that would be written.
        sparse_weights: weights of their sparse vectors. Of lines to embed there is one for each distinct token, which
            is the most that the model gives.
    """

    plan: IngestPlan
    tokens: int
    colbert_rows: int
    sparse_weights: int


class LineIngest(Protocol):
    """Stores lines."""

    async def check(self, request: IngestRequest) -> None:
        """Validate the request of every batch.

        Raises:
            WorkerError: it is invalid, or the collection has vectors of another model than the lines.
        """
        ...

    def content(self, request: IngestRequest, scope: str, read_by: Mapping[str, object]) -> LoadContent:
        """What decides the content of the points of a load.

        Args:
            request: the request of every batch.
            scope: name from which ids are derived.
            read_by: options by which lines are read, with their names.
        """
        ...

    async def __call__(self, request: IngestRequest, lines: Sequence[Line]) -> IngestResult:
        """Store lines.

        Args:
            request: the request of every batch, without its texts, ids and payloads.
            lines: the lines, at least one.

        Raises:
            WorkerError: as an ingest does.
        """
        ...


class PlannedIngest(LineIngest, Protocol):
    """Stores lines from this process, which can also plan them."""

    def kinds(self, request: IngestRequest) -> Sequence[Kind]:
        """Kinds of vectors that are stored in a new collection."""
        ...

    async def planned(self, request: IngestRequest, lines: Sequence[Line]) -> PlannedLines:
        """Plan lines for a new collection, without the store. The arguments are those of a call.

        Raises:
            InvalidRequest: the request or a line is invalid.
        """
        ...


@overload
def line_ingest(core: Operations | VectorOperations) -> PlannedIngest: ...
@overload
def line_ingest(core: Operations | VectorOperations | Backend) -> LineIngest: ...
def line_ingest(core: Operations | VectorOperations | Backend) -> LineIngest:
    """The ingest of lines for these operations, or over an endpoint."""
    if isinstance(core, Operations):
        return _TextIngest(core)
    return _GivenIngest(core) if isinstance(core, VectorOperations) else _RemoteIngest(core)


class _TextIngest:
    """Embeds lines and stores them."""

    def __init__(self, core: Operations) -> None:
        self._ingest = core.ingest
        self._wanted = core.collections.wanted
        self._max_length = core.limits.passage
        self._dropped_ids = core.vocabulary.dropped_ids

    async def check(self, request: IngestRequest) -> None:
        self._ingest.check(request)

    def content(self, request: IngestRequest, scope: str, read_by: Mapping[str, object]) -> LoadContent:
        return content_of(request, scope, max_length=self._max_length, read_by=read_by)

    def kinds(self, request: IngestRequest) -> Sequence[Kind]:
        return tuple(request.vectors) or self._wanted.kinds

    async def planned(self, request: IngestRequest, lines: Sequence[Line]) -> PlannedLines:
        plan = await self._ingest.planned(_request(request, lines))
        tokens = sum(len(plan.encoded[owner]) for owner in plan.owners)
        distinct = (np.setdiff1d(plan.encoded[owner].ids, self._dropped_ids) for owner in plan.owners)
        weights = sum(ids.size for ids in distinct)
        return PlannedLines(plan, tokens, colbert_rows=tokens - len(plan.owners), sparse_weights=weights)

    async def __call__(self, request: IngestRequest, lines: Sequence[Line]) -> IngestResult:
        return await self._ingest(_request(request, lines))


class _GivenIngest:
    """Stores lines with the vectors that they have."""

    def __init__(self, core: VectorOperations) -> None:
        self._ingest = core.ingest
        self._wanted = core.collections.wanted

    async def check(self, request: IngestRequest) -> None:
        self._ingest.check(request)
        if request.collection is not None:
            await self._ingest.check_model(request.collection)

    def content(self, request: IngestRequest, scope: str, read_by: Mapping[str, object]) -> LoadContent:
        return content_of(request, scope, kinds=self._ingest.kinds, read_by=read_by)

    def kinds(self, request: IngestRequest) -> Sequence[Kind]:
        return tuple(request.vectors) or tuple(kind for kind in self._wanted.kinds if kind in self._ingest.kinds)

    async def planned(self, request: IngestRequest, lines: Sequence[Line]) -> PlannedLines:
        points = _points(lines)
        plan = self._ingest.planned(_request(request, lines), points, is_chunked=_has_chunks(points))
        written = [points[owner].vectors for owner in plan.owners]
        rows = sum(len(vectors.colbert) for vectors in written if vectors.colbert is not None)
        weights = sum(vectors.sparse.indices.size for vectors in written if vectors.sparse is not None)
        return PlannedLines(plan, 0, colbert_rows=rows, sparse_weights=weights)

    async def __call__(self, request: IngestRequest, lines: Sequence[Line]) -> IngestResult:
        points = _points(lines)
        report = await self._ingest(_request(request, lines), points, is_chunked=_has_chunks(points))
        return IngestResult((), 0, report)


class _RemoteIngest:
    """Has lines embedded and stored by an endpoint, whose workers check every request."""

    def __init__(self, core: Backend) -> None:
        self._ingest = core.ingest

    async def check(self, request: IngestRequest) -> None:
        """Nothing: the first batch ends the load if the request is invalid."""

    def content(self, request: IngestRequest, scope: str, read_by: Mapping[str, object]) -> LoadContent:
        return content_of(request, scope, read_by=read_by)

    async def __call__(self, request: IngestRequest, lines: Sequence[Line]) -> IngestResult:
        return await self._ingest(_request(request, lines))


def _points(lines: Sequence[Line]) -> list[GivenPoint]:
    return [
        GivenPoint(Piece(index, point.chunk, point.start, point.end), point.vectors)
        for index, line in enumerate(lines)
        if isinstance(line, VectorLine)
        for point in line.points
    ]


def _has_chunks(points: Sequence[GivenPoint]) -> bool:
    """Whether the points are chunks: all points of a load are, or none is."""
    return points[0].piece.chunk is not None


def _request(request: IngestRequest, lines: Sequence[Line]) -> IngestRequest:
    return replace(
        request,
        texts=[line.text for line in lines],
        ids=[line.id for line in lines],
        payloads=[line.payload for line in lines],
    )
