"""What an ingest will store, decided before anything is computed: its points, and which of them are refused already."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from embedder.embedder import Embedder
from embedder.tokenizer import EncodedText
from qdrant_sink.conformance import Refusal, conform_payload, most_rows, too_many_rows
from qdrant_sink.layouts import laid_out
from qdrant_sink.points import PointId, chunk_id, claims, is_derived, point_id, text_id
from qdrant_sink.schema import CollectionSchema, Layout
from qdrant_sink.writer import Rejection
from service.requests import EmbedRequest, QdrantTarget

Json = dict[str, Any]

_MAX_INTEGER = 2**63 - 1
"""In a payload of Qdrant."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A point that is to be stored.

    Attributes:
        text: number of the text in the request.
        chunk: number of the chunk in the text; None where the text is one point.
        id: of the point.
        payload: of the point.
        encoded: what the model will see.
    """

    text: int
    chunk: int | None
    id: PointId
    payload: Json
    encoded: EncodedText


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The points of a job, in the order of its texts. A position is a place in `entries`.

    Attributes:
        collection: where they go.
        id_scope: what derived ids belong to: the collection, unless the caller names something more lasting.
        ids: of each text: its point's or, where it is cut into chunks, the document's.
        entries: the points.
        owners: by the position of each point to be stored, all positions that it stands for, its own first.
        rejected: by position, what is refused before it is embedded.
        insert_only: leave points that exist untouched.
        pools: whether ColBERT matrices with too many rows are pooled.
        documents: of each text, the positions of its points.
    """

    collection: str
    id_scope: str
    ids: Sequence[PointId]
    entries: Sequence[Entry]
    owners: Mapping[int, tuple[int, ...]]
    rejected: Sequence[Rejection]
    insert_only: bool
    pools: bool
    documents: Sequence[range]

    @classmethod
    def of(
        cls,
        request: EmbedRequest,
        target: QdrantTarget,
        collection: str,
        embedder: Embedder,
        *,
        max_length: int,
        schema: CollectionSchema,
    ) -> Plan:
        """Cut, tokenize, name and lay out. Blocks for about a second per 5 MB of text.

        Args:
            request: what to embed.
            target: its `qdrant` block.
            collection: where the points go.
            embedder: cuts and tokenizes.
            max_length: tokens after which a text that is not cut into chunks is truncated.
            schema: of the collection.

        Raises:
            InvalidRequest: a caller's key collides with one that the worker writes.
        """
        scope = target.id_scope or collection
        ids = [_identity(request, target, scope, index) for index in range(len(request.texts))]
        made = _entries(
            request, target, ids, scope=scope, embedder=embedder, max_length=max_length, layout=schema.layout
        )
        entries = list(made)
        rejected = list(_refused(request, target, ids, entries, schema))
        out = {one.index for one in rejected}
        owners, duplicates = claims(
            (position, entry.id, entry.payload) for position, entry in enumerate(entries) if position not in out
        )
        rejected += [Rejection(position, error.code, error.message) for position, error in duplicates]
        insert_only, pools = target.mode == "insertOnly", target.colbert_pooling == "mean"
        return cls(collection, scope, ids, entries, owners, rejected, insert_only, pools, _documents(len(ids), entries))


def _identity(request: EmbedRequest, target: QdrantTarget, scope: str, index: int) -> PointId:
    if target.ids is None:
        return text_id(request.texts[index], scope)
    return point_id(target.ids[index], scope, field=f"qdrant.ids[{index}]")


def _entries(
    request: EmbedRequest,
    target: QdrantTarget,
    ids: Sequence[PointId],
    *,
    scope: str,
    embedder: Embedder,
    max_length: int,
    layout: Layout,
) -> Iterator[Entry]:
    pieces: list[tuple[int, int | None, int, int]] = []  # text, chunk, start, end
    for index, text in enumerate(request.texts):
        if target.chunk is None:
            pieces.append((index, None, 0, len(text)))
        else:
            cut = embedder.split(text, max_tokens=target.chunk.max_tokens, overlap=target.chunk.overlap_tokens)
            pieces += [(index, number, one.start, one.end) for number, one in enumerate(cut)]
    texts = [request.texts[index][start:end] for index, _, start, end in pieces]
    encoded = embedder.tokenize(texts, max_length if target.chunk is None else target.chunk.max_tokens)
    for (index, number, start, end), text, tokens in zip(pieces, texts, encoded, strict=True):
        named = None if target.ids is None else target.ids[index]
        identity, written = ids[index], {}
        if number is not None:
            document = str(identity) if named is None else named
            identity = chunk_id(identity, number, scope)
            # As Qdrant's payloads have no integers of 64 bits without sign, which ids are.
            shown = str(document) if isinstance(document, int) and document > _MAX_INTEGER else document
            written = {"doc_id": shown, "chunk": number, "start": start, "end": end}
        elif named is not None and is_derived(named):
            written = {"id": named}
        payload = laid_out(
            layout,
            text=text,
            text_key=target.text_key,
            payload=target.payloads[index] if target.payloads is not None else {},
            written=written,
            point_id=str(identity),
            field=f"qdrant.payloads[{index}]",
        )
        yield Entry(index, number, identity, payload, tokens)


def _refused(
    request: EmbedRequest,
    target: QdrantTarget,
    ids: Sequence[PointId],
    entries: Sequence[Entry],
    schema: CollectionSchema,
) -> Iterator[Rejection]:
    """What need not be embedded: it could not be stored."""
    size = schema.colbert.size
    bounded = "colbert" in request.vectors and target.colbert_pooling == "none"
    kept: set[int] = set()
    out: set[int] = set()
    for position, entry in enumerate(entries):
        rows = len(entry.encoded) - 1
        payload = conform_payload(position, entry.payload, schema)
        if isinstance(payload, Refusal):
            yield Rejection(position, payload.code, payload.message)
        elif bounded and rows > most_rows(size):
            yield Rejection(position, "colbert_too_long", too_many_rows(rows, size))
        else:
            kept.add(entry.text)
            continue
        out.add(position)
    contested = _contested(request, target, ids, kept)
    for position, entry in enumerate(entries):
        if entry.text in contested and position not in out:
            yield Rejection(position, "duplicate_id", contested[entry.text])


def _contested(
    request: EmbedRequest, target: QdrantTarget, ids: Sequence[PointId], kept: Collection[int]
) -> dict[int, str]:
    """Texts in chunks whose document is another one of the same id: their chunks must not mix.

    `kept` are the texts of which at least one chunk is going to be stored.
    """
    if target.chunk is None:
        return {}
    payloads = target.payloads or [{}] * len(ids)
    whole = (
        (index, ids[index], {"text": text, "payload": payloads[index]})
        for index, text in enumerate(request.texts)
        if index in kept
    )
    return {index: error.message for index, error in claims(whole)[1]}


def _documents(texts: int, entries: Sequence[Entry]) -> list[range]:
    ends = [0] * texts
    for position, entry in enumerate(entries):
        ends[entry.text] = position + 1
    return [range(start, end) for start, end in pairwise([0, *ends])]
