"""The plan of an ingest, made before any vector is computed: its points, and those that are rejected already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

from embedder import Embedder, EncodedText, check_cancelled
from qdrant_sink import (
    DOCUMENT_CHUNKS,
    DOCUMENT_KEY,
    DOCUMENT_VERSION,
    CollectionSchema,
    Document,
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
from service.operations.text_pieces import Piece, cut, tokenized


@dataclass(frozen=True, slots=True, eq=False)
class PlannedPoint:
    """A point to store.

    Attributes:
        text: index of the text in the request.
        chunk: index of the chunk in the text; None without chunking.
        id: id of the point.
        payload: payload of the point in its layout; empty if the row of its text is refused.
        refusal: the reason why the row of its text cannot be stored; None if it can.
        laid_out: function from the version of a document, and the number of chunks in that version, to the id and the
            payload of this chunk; None without chunking.
    """

    text: int
    chunk: int | None
    id: PointId
    payload: Mapping[str, Any]
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
        encoded: the tokens of each point; empty if the vectors of the points are given.
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
    encoded: Sequence[EncodedText] = ()

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
        texts, chunk = request.texts, request.chunk
        pieces = list(cut(texts, chunk, embedder, max_length=max_length, hold=hold))
        encoded = tokenized(pieces, texts, chunk, embedder, max_length=max_length)
        rows = [len(tokens) - 1 for tokens in encoded]
        plan = cls.of_pieces(request, name, pieces, rows, schema=schema, is_chunked=chunk is not None)
        return replace(plan, encoded=encoded)

    @classmethod
    def of_pieces(
        cls,
        request: IngestRequest,
        name: str,
        pieces: Sequence[Piece],
        colbert_rows: Sequence[int],
        *,
        schema: CollectionSchema,
        is_chunked: bool,
    ) -> IngestPlan:
        """Derive ids and lay out payloads for texts that are cut already, without a model.

        Args:
            request: the request, with its kinds of vectors.
            name: name of the collection, with the default filled in.
            pieces: the pieces of the texts, in the order of the texts.
            colbert_rows: number of ColBERT rows of each piece; 0 for one without.
            schema: schema of the collection, with the layout and the text key to write by.
            is_chunked: whether the texts are documents in chunks.

        Raises:
            InvalidRequest: the text key is a key that the worker writes.
            Cancelled: nobody waits for the plan any more.
        """
        scope = request.id_scope or name
        rows = list(_rows(request, scope))
        documents = [_document(row, scope) for row in rows] if is_chunked else []
        points = list(_points(request, pieces, rows, documents, schema=schema))
        rejected = list(_rejections(request, points, colbert_rows, schema))
        if is_chunked:
            rejected += _conflicts(request, rows, points, {rejection.index for rejection in rejected})
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


def _points(
    request: IngestRequest,
    pieces: Sequence[Piece],
    rows: Sequence[Row],
    documents: Sequence[Document],
    *,
    schema: CollectionSchema,
) -> Iterator[PlannedPoint]:
    provisional = new_version()
    for piece in pieces:
        check_cancelled()
        row = rows[piece.text]
        lay_out = partial(
            laid_out,
            schema.layout,
            text=piece.content(request.texts),
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
            yield PlannedPoint(piece.text, piece.chunk, identity, {}, refusal=payload)
        else:
            yield PlannedPoint(piece.text, piece.chunk, identity, payload, laid_out=chunk)


def _chunk(
    lay_out: Callable[..., Mapping[str, Any] | Refusal], document: Document, piece: Piece, version: str, total: int
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
    request: IngestRequest, points: Sequence[PlannedPoint], colbert_rows: Sequence[int], schema: CollectionSchema
) -> Iterator[Rejection]:
    """The points that Qdrant could not store, so that they need not be embedded."""
    colbert = schema.colbert if "colbert" in request.vectors and not request.pool_colbert else None
    for index, (point, rows) in enumerate(zip(points, colbert_rows, strict=True)):
        check_cancelled()
        refusal = point.refusal or conform_payload(point.payload, schema)
        if refusal is None and colbert is not None and rows > rows_max(colbert.size):
            refusal = too_many_rows(rows, colbert.size)
        if refusal is not None:
            yield Rejection(index, refusal)


def _conflicts(
    request: IngestRequest, rows: Sequence[Row], points: Sequence[PlannedPoint], invalid: Collection[int]
) -> Iterator[Rejection]:
    """The chunks of texts whose document id belongs to an earlier, different text of the job: chunks must not mix.

    A text without a valid chunk has no part in that.
    """
    valid_texts = {point.text for index, point in enumerate(points) if index not in invalid}
    documents = (
        (index, rows[index].id, {"text": text, "payload": rows[index].payload})
        for index, text in enumerate(request.texts)
        if index in valid_texts
    )
    conflicts = dict(claims(documents)[1])
    for index, point in enumerate(points):
        if point.text in conflicts and index not in invalid:
            yield Rejection(index, conflicts[point.text])


def _spans(texts: int, points: Sequence[PlannedPoint]) -> list[range]:
    ends = [0] * texts
    for index, point in enumerate(points):
        ends[point.text] = index + 1
    return [range(start, end) for start, end in pairwise([0, *ends])]
