"""The vectors of stored texts, computed while points are copied."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from threading import Event, Lock

from embedder import DeviceLost, Embedder, Embedding, EncodedText, Kind, ModelFailure, Result, ResultStream
from qdrant_sink import (
    CollectionSchema,
    Draft,
    PointId,
    Refusal,
    Rejection,
    Stored,
    Vectors,
    rows_max,
    text_key_of,
    text_of,
    too_many_rows,
)
from qdrant_sink.copying import Round
from service.operations.passage_stream import passage_stream


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    """A point, what is copied of it, and the tokens of its text."""

    point: PointId
    stored: Stored
    encoded: EncodedText


class ReindexedTexts:
    """Makes drafts of points that were read, with vectors of some kinds from their texts. It is thread-safe.

    Args:
        embedder: the loaded model.
        schema: schema of the new collection, whose layout and text key say where texts are.
        kinds: kinds of vectors to compute.
        max_length: tokens beyond which a text is truncated.
        pools: whether ColBERT rows that a multivector cannot hold are pooled instead of refused.
        stopping: event that ends waits for the model.
        check_running: callback that raises to end the copy.

    Attributes:
        without_text: number of points that were passed on without a text.
        truncated: number of texts that were cut.
    """

    def __init__(
        self,
        embedder: Embedder,
        schema: CollectionSchema,
        kinds: Sequence[Kind],
        *,
        max_length: int,
        pools: bool,
        stopping: Event,
        check_running: Callable[[], None],
    ) -> None:
        self._embedder = embedder
        self._schema = schema
        self._kinds = kinds
        self._max_length = max_length
        self._stopping = stopping
        self._check_running = check_running
        is_bounded = "colbert" in kinds and not pools and schema.colbert is not None
        self._rows_max = rows_max(schema.colbert.size) if is_bounded and schema.colbert is not None else None
        self._lock = Lock()  # guards the attributes below
        self.without_text = 0
        self.truncated = 0

    def rounds(self, points: Mapping[PointId, Stored]) -> Generator[Round]:
        """Yield the points in rounds that the queue of the model holds. Points that need no model come first."""
        texts = {
            point: text_of(self._schema.layout, stored.payload or {}, self._schema.text_key)
            for point, stored in points.items()
        }
        present = [(point, text) for point, text in texts.items() if text is not None]
        encoded = self._embedder.tokenize([text for _, text in present], self._max_length) if present else []
        embeddable: list[_Text] = []
        others: dict[PointId, Refusal | None] = {point: None for point, text in texts.items() if text is None}
        for (point, _), tokens in zip(present, encoded, strict=True):
            if self._rows_max is not None and len(tokens) - 1 > self._rows_max and self._schema.colbert is not None:
                others[point] = too_many_rows(len(tokens) - 1, self._schema.colbert.size)
            else:
                embeddable.append(_Text(point, points[point], tokens))
        if others:
            drafts = [
                self._without_vectors(index, point, points[point], refusal)
                for index, (point, refusal) in enumerate(others.items())
            ]
            yield Round(ids=list(others), portions=[drafts])
        for part in self._parts(embeddable):
            with self._stream(part) as stream:
                yield Round(
                    ids=[text.point for text in part],
                    portions=self._portions(part, stream),
                    release=stream.release,
                    wake=stream.wake,
                )

    def _without_vectors(
        self, index: int, point: PointId, stored: Stored, refusal: Refusal | None
    ) -> Draft | Rejection:
        """A point that gets no vector from the model: as it is stored, or a rejection."""
        if refusal is not None:
            return Rejection(index, refusal)
        if stored.vectors is None:
            key = text_key_of(self._schema.layout, self._schema.text_key)
            return Rejection(index, Refusal("invalid_payload", f"payload: must have a text under {key!r}, got none"))
        with self._lock:
            self.without_text += 1
        return Draft(index, point, stored.payload or {}, stored.vectors)

    def _parts(self, texts: Sequence[_Text]) -> Generator[Sequence[_Text]]:
        part: list[_Text] = []
        tokens = 0
        for text in texts:
            if part and tokens + len(text.encoded) > self._embedder.window:
                yield part
                part, tokens = [], 0
            part.append(text)
            tokens += len(text.encoded)
        if part:
            yield part

    def _stream(self, part: Sequence[_Text]) -> ResultStream:
        return passage_stream(
            self._embedder,
            [text.encoded for text in part],
            self._kinds,
            self._schema,
            stopping=self._stopping,
            check_running=self._check_running,
        )

    def _portions(self, part: Sequence[_Text], stream: ResultStream) -> Generator[Sequence[Draft | Rejection]]:
        for portion in stream:
            drafts = [self._draft(index, part[index], result) for index, result in portion]
            del portion
            yield drafts
            del drafts  # during the wait for the next portion, only the writer holds vectors

    def _draft(self, index: int, text: _Text, result: Result) -> Draft | Rejection:
        if isinstance(result, DeviceLost):
            raise result
        if isinstance(result, ModelFailure):
            return Rejection(index, result)
        if text.encoded.truncated:
            with self._lock:
                self.truncated += 1
        return Draft(index, text.point, text.stored.payload or {}, self._joined(text.stored.vectors, result))

    def _joined(self, stored: Vectors | None, computed: Embedding) -> Vectors:
        """The vectors of the model, and the stored ones of all other kinds."""
        kept = stored or Vectors()
        return Vectors(
            computed.dense if "dense" in self._kinds else kept.dense,
            computed.sparse if "sparse" in self._kinds else kept.sparse,
            computed.colbert if "colbert" in self._kinds else kept.colbert,
        )
