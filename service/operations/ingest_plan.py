"""The plan of an ingest, made before the model runs: its points, and those that are rejected already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Final

from embedder import Embedder, EncodedText, check_cancelled
from qdrant_sink import (
    DOCUMENT_CHUNKS,
    DOCUMENT_KEY,
    DOCUMENT_VERSION,
    CollectionSchema,
    Document,
    DuplicateId,
    PointId,
    Refusal,
    Rejection,
    chunk_id,
    claims,
    conform_payload,
    is_derived,
    laid_out,
    new_version,
    rows_max,
    too_many_rows,
)
from service.operations.ingest_rows import Row
from service.operations.ingest_values import IngestRequest

POINT_BYTES: Final = 3072
"""Memory of a planned point in bytes beside its text, with its entries in the tables of an ingest."""

_CHARACTER_BYTES: Final = 4
_ID_BYTES: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class PlannedPoint:
    """A point to store.

    Attributes:
        text: index of the text in the request.
        chunk: index of the chunk in the text; None without chunking.
        id: id of the point.
        payload: payload of the point in its layout; empty if the row of its text is refused.
        encoded: the tokens of the point.
        refusal: the reason why the row of its text cannot be stored; None if it can.
        laid_out: function from the version of a document, and the number of chunks in that version, to the id and the
            payload of this chunk; None without chunking.
    """

    text: int
    chunk: int | None
    id: PointId
    payload: Mapping[str, Any]
    encoded: EncodedText
    refusal: Refusal | None = None
    laid_out: Callable[[str, int], tuple[PointId, Mapping[str, Any] | Refusal]] | None = None

    def versioned(self, version: str, total: int) -> PlannedPoint:
        """The same chunk in a version of its document that has so many chunks."""
        if self.laid_out is None:
            return self
        identity, payload = self.laid_out(version, total)
        return replace(self, id=identity, payload=payload if isinstance(payload, Mapping) else {})


@dataclass(frozen=True, slots=True, eq=False)
class IngestPlan:
    """The points of a job, in the order of its texts.

    Attributes:
        name: name of the collection in the request.
        id_scope: name from which ids are derived.
        ids: the id of each text: that of its point or, with chunking, that of the document.
        unidentified: the texts whose own ids are invalid, so that they have none.
        documents: the document of each text; empty without chunking.
        points: all points; other attributes refer to them by index. Chunks have a provisional version.
        owners: the merged points, by the index of the point that is stored; its own index is the first.
        rejected: the points that are rejected before they are embedded.
        spans: the indices of each text's points.
    """

    name: str
    id_scope: str
    ids: Sequence[PointId]
    unidentified: frozenset[int]
    documents: Sequence[Document]
    points: Sequence[PlannedPoint]
    owners: Mapping[int, tuple[int, ...]]
    rejected: Sequence[Rejection]
    spans: Sequence[range]

    @classmethod
    def of(
        cls,
        request: IngestRequest,
        name: str,
        embedder: Embedder,
        *,
        max_length: int,
        schema: CollectionSchema,
        hold: Callable[[int], None],
    ) -> IngestPlan:
        """Chunk and tokenize texts, derive ids and lay out payloads. Blocks for about a second per 5 MB of text.

        Args:
            request: the request, with its kinds of vectors.
            name: name of the collection, with the default filled in.
            embedder: the loaded model, which chunks and tokenizes.
            max_length: tokens beyond which a text without chunking is truncated.
            schema: schema of the collection, with the layout and the text key to write by.
            hold: reservation of further bytes of memory, before the points of a text are created. It raises if there
                are not as many.

        Raises:
            InvalidRequest: the text key is a key that the worker writes.
            Cancelled: nobody waits for the plan any more. It is asked before each window of a document, each portion
                of texts and each point.
        """
        scope = request.id_scope or name
        rows = list(_rows(request, scope))
        documents = [] if request.chunk is None else [_document(row, scope) for row in rows]
        pieces = list(_pieces(request, embedder, max_length, hold))
        points = list(
            _points(request, pieces, rows, documents, embedder=embedder, max_length=max_length, schema=schema)
        )
        rejected = list(_rejections(request, rows, points, schema))
        rejected_indices = {rejection.index for rejection in rejected}
        owners, duplicates = claims(
            (index, point.id, point.payload) for index, point in enumerate(points) if index not in rejected_indices
        )
        rejected += [Rejection(index, error) for index, error in duplicates]
        ids = [row.id for row in rows]
        unidentified = frozenset(index for index, row in enumerate(rows) if row.has_invalid_id)
        spans = _spans(len(rows), points)
        return cls(name, scope, ids, unidentified, documents, points, owners, rejected, spans)

    def versioned(self, versions: Mapping[str, str], totals: Mapping[str, int]) -> IngestPlan:
        """The same plan with the version of each document and the number of its chunks, by its key."""
        keys = [self.documents[point.text].key for point in self.points]
        points = [point.versioned(versions[key], totals[key]) for point, key in zip(self.points, keys, strict=True)]
        return replace(self, points=points)


def _rows(request: IngestRequest, scope: str) -> Iterator[Row]:
    for index in range(len(request.texts)):
        check_cancelled()
        yield Row.of(request, index, scope)


def _document(row: Row, scope: str) -> Document:
    payload_id = str(row.id) if row.caller_id is None else row.caller_id
    return Document.of(row.id, scope, payload_id)


@dataclass(frozen=True, slots=True)
class _Piece:
    """The span of a text that becomes a point, in characters."""

    text: int
    chunk: int | None
    start: int
    end: int


def _pieces(
    request: IngestRequest, embedder: Embedder, max_length: int, hold: Callable[[int], None]
) -> Iterator[_Piece]:
    for index, text in enumerate(request.texts):
        if request.chunk is None:
            hold(POINT_BYTES + _ID_BYTES * min(len(text) + 2, max_length))
            yield _Piece(index, None, 0, len(text))
        else:
            chunks = embedder.split(text, max_tokens=request.chunk.max_tokens, overlap=request.chunk.overlap)
            characters = sum(chunk.end - chunk.start for chunk in chunks)
            hold(len(chunks) * POINT_BYTES + characters * (_CHARACTER_BYTES + _ID_BYTES))
            for number, chunk in enumerate(chunks):
                yield _Piece(index, number, chunk.start, chunk.end)


def _points(
    request: IngestRequest,
    pieces: Sequence[_Piece],
    rows: Sequence[Row],
    documents: Sequence[Document],
    *,
    embedder: Embedder,
    max_length: int,
    schema: CollectionSchema,
) -> Iterator[PlannedPoint]:
    texts = [request.texts[piece.text][piece.start : piece.end] for piece in pieces]
    encoded = embedder.tokenize(texts, max_length if request.chunk is None else request.chunk.max_tokens)
    provisional = new_version()
    for piece, text, tokens in zip(pieces, texts, encoded, strict=True):
        check_cancelled()
        row = rows[piece.text]
        lay_out = partial(
            laid_out,
            schema.layout,
            text=text,
            whole_text=request.texts[piece.text],
            text_key=schema.text_key,
            payload=row.payload,
        )
        chunk: Callable[[str, int], tuple[PointId, Mapping[str, Any] | Refusal]] | None = None
        payload: Mapping[str, Any] | Refusal
        if piece.chunk is None:
            worker_keys = {"id": row.caller_id} if row.caller_id is not None and is_derived(row.caller_id) else {}
            identity, payload = row.id, lay_out(written=worker_keys, point_id=str(row.id))
        else:
            chunk = partial(_chunk, lay_out, documents[piece.text], piece)
            identity, payload = chunk(provisional, 0)
        if row.refusal is not None:
            payload = row.refusal
        if isinstance(payload, Refusal):
            yield PlannedPoint(piece.text, piece.chunk, identity, {}, tokens, refusal=payload)
        else:
            yield PlannedPoint(piece.text, piece.chunk, identity, payload, tokens, laid_out=chunk)


def _chunk(
    lay_out: Callable[..., Mapping[str, Any] | Refusal], document: Document, piece: _Piece, version: str, total: int
) -> tuple[PointId, Mapping[str, Any] | Refusal]:
    """The id and the payload of a chunk in a version of its document."""
    number = piece.chunk or 0
    identity = chunk_id(document.key, version, number)
    worker_keys = {
        "doc_id": document.payload_id,
        "chunk": number,
        "start": piece.start,
        "end": piece.end,
        DOCUMENT_KEY: document.key,
        DOCUMENT_VERSION: version,
        DOCUMENT_CHUNKS: total,
    }
    return identity, lay_out(written=worker_keys, point_id=str(identity))


def _rejections(
    request: IngestRequest, rows: Sequence[Row], points: Sequence[PlannedPoint], schema: CollectionSchema
) -> Iterator[Rejection]:
    """The points that Qdrant could not store, so that they need not be embedded."""
    colbert = schema.colbert if "colbert" in request.vectors and not request.pool_colbert else None
    valid_texts: set[int] = set()
    invalid: set[int] = set()
    for index, point in enumerate(points):
        check_cancelled()
        colbert_rows = len(point.encoded) - 1
        refusal = point.refusal or conform_payload(point.payload, schema)
        if refusal is None and colbert is not None and colbert_rows > rows_max(colbert.size):
            refusal = too_many_rows(colbert_rows, colbert.size)
        if refusal is None:
            valid_texts.add(point.text)
        else:
            invalid.add(index)
            yield Rejection(index, refusal)
    conflicts = _conflicting_texts(request, rows, valid_texts)
    for index, point in enumerate(points):
        if point.text in conflicts and index not in invalid:
            yield Rejection(index, conflicts[point.text])


def _conflicting_texts(
    request: IngestRequest, rows: Sequence[Row], valid_texts: Collection[int]
) -> dict[int, DuplicateId]:
    """The texts whose document id belongs to an earlier, different text of the job, since chunks must not mix.

    `valid_texts` are the texts with at least one valid chunk.
    """
    if request.chunk is None:
        return {}
    documents = (
        (index, rows[index].id, {"text": text, "payload": rows[index].payload})
        for index, text in enumerate(request.texts)
        if index in valid_texts
    )
    return dict(claims(documents)[1])


def _spans(texts: int, points: Sequence[PlannedPoint]) -> list[range]:
    ends = [0] * texts
    for index, point in enumerate(points):
        ends[point.text] = index + 1
    return [range(start, end) for start, end in pairwise([0, *ends])]
