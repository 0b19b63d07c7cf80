"""The actor that embeds rows: a model, and no store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from embedder import Embedder, Embedding, InvalidRequest, Kind, Outputs, Overloaded, Result
from qdrant_sink import Refusal, conform_id, kind_of, pooled, rows_max, too_many_rows
from service.bulk.columnar import table_lines
from service.bulk.field_mapping import FieldOptions
from service.bulk.line import BadLine, InputError, Line, as_json
from service.bulk.load import OVERLOADED_PAUSE_S
from service.bulk.vector_files.description import Description
from service.operations import Chunking, EncodedPiece, Operations
from service.ray_data.outcome import FailedRow
from service.ray_data.vector_rows import EmbeddedDocument, vector_table
from service.settings import Settings
from service.wire.errors import code_for, code_of

_GROUPS: Final = 4
"""Groups into which the window of the model is divided, so that it computes one while others wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """What is computed of rows.

    Attributes:
        kinds: kinds of vectors to compute.
        chunk: chunking of each text; None for one point per text.
        dtype: type of the numbers of dense and ColBERT vectors.
        pool_colbert: whether ColBERT rows that Qdrant does not take are pooled instead of refused.
        fields: the columns that the user names.
    """

    kinds: tuple[Kind, ...]
    chunk: Chunking | None = None
    dtype: str = "float32"
    pool_colbert: bool = False
    fields: FieldOptions = FieldOptions()  # noqa: RUF009 - it is frozen


class EmbedActor:
    """Embeds the rows of batches.

    Args:
        settings: the settings; those of a store have no effect.
        options: what is computed.
    """

    def __init__(self, settings: Settings, options: EmbedOptions) -> None:
        kinds, chunk = options.kinds, options.chunk
        core = Operations(settings, Embedder.load(settings.model_options))
        self._vectors = core.piece_vectors
        self._chunk = chunk
        self._fields = options.fields
        self._outputs = Outputs.of(kinds, "float16" if options.dtype == "float16" else "float32")
        self._rows_max = rows_max(core.colbert_size) if "colbert" in kinds else None
        self._pools = options.pool_colbert
        self._description = Description.of_model(
            core.model_identity,
            core.vocabulary,
            model_dtype=core.model_dtype,
            kinds=kinds,
            dtype=options.dtype,
            dense_size=core.hidden_size,
            colbert_size=core.colbert_size,
            max_length=core.piece_vectors.max_length,
            chunk_tokens=0 if chunk is None else chunk.max_tokens,
            chunk_overlap=0 if chunk is None else chunk.overlap,
            colbert_pooling="mean" if options.pool_colbert else "none",
        )

    async def __call__(self, batch: Any) -> Any:
        """Embed the rows of a batch; returns a table as `vector_rows` describes it.

        Raises:
            ValueError: a column is missing.
        """
        failed: list[FailedRow] = []
        lines: list[Line] = []
        try:
            for line in table_lines(batch, self._fields):
                refusal = _refusal(line)
                if refusal is not None:
                    failed.append(refusal)
                elif isinstance(line, Line):
                    lines.append(line)
        except InputError as error:
            raise ValueError(str(error)) from None  # an error that every process of the cluster can read
        pieces = await self._cut(lines, failed)
        documents: dict[int, EmbeddedDocument] = {}
        failed_pieces: list[tuple[int, FailedRow]] = []
        for (index, piece), result in zip(pieces, await self._embedded([piece for _, piece in pieces]), strict=True):
            line = lines[index]
            if isinstance(result, Embedding):
                document = documents.setdefault(index, EmbeddedDocument(line))
                document.pieces.append(replace(piece.piece, text=0))
                document.vectors.append(self._pooled(result))
            else:
                row = FailedRow(as_json(line), code_of(result), result.message, piece.piece.chunk)
                failed_pieces.append((index, row))
        counted = set(documents)
        for index, row in failed_pieces:
            failed.append(replace(row, is_part=index in counted))
            counted.add(index)
        return vector_table(list(documents.values()), failed, self._description)

    async def _cut(
        self, lines: Sequence[Line], failed: list[FailedRow], first: int = 0
    ) -> list[tuple[int, EncodedPiece]]:
        """The pieces of all lines, each with the index of its line. Lines that cannot be cut are added to `failed`."""
        if not lines:
            return []
        try:
            pieces = await self._vectors.cut([line.text for line in lines], self._chunk)
        except InvalidRequest as error:
            if len(lines) == 1:
                failed.append(FailedRow(as_json(lines[0]), code_of(error), error.message))
                return []
            middle = len(lines) // 2
            left = await self._cut(lines[:middle], failed, first)
            return left + await self._cut(lines[middle:], failed, first + middle)
        return [(first + piece.piece.text, piece) for piece in pieces]

    async def _embedded(self, pieces: Sequence[EncodedPiece]) -> list[Result | Refusal]:
        """The result of each piece, in groups that fit into the window of the model."""
        refusals = [self._too_long(piece) for piece in pieces]
        results: list[Result] = []
        group: list[EncodedPiece] = []
        tokens, group_tokens = 0, max(self._vectors.window // _GROUPS, 1)
        for piece, refusal in zip(pieces, refusals, strict=True):
            if refusal is not None:
                continue
            if group and tokens + len(piece.encoded) > group_tokens:
                results += await self._computed(group)
                group, tokens = [], 0
            group.append(piece)
            tokens += len(piece.encoded)
        if group:
            results += await self._computed(group)
        computed = iter(results)
        return [next(computed) if refusal is None else refusal for refusal in refusals]

    async def _computed(self, group: Sequence[EncodedPiece]) -> Sequence[Result]:
        while True:
            try:
                return await self._vectors.embed(group, self._outputs)
            except Overloaded:
                await asyncio.sleep(OVERLOADED_PAUSE_S)

    def _too_long(self, piece: EncodedPiece) -> Refusal | None:
        rows = len(piece.encoded) - 1
        if self._rows_max is None or self._pools or rows <= self._rows_max:
            return None
        return too_many_rows(rows, self._description.colbert_size)

    def _pooled(self, embedding: Embedding) -> Embedding:
        if self._rows_max is None or embedding.colbert is None:
            return embedding
        return replace(embedding, colbert=pooled(embedding.colbert, self._rows_max))


def _refusal(line: Line | BadLine) -> FailedRow | None:
    """Why a row is not a document; None if it is one."""
    if isinstance(line, BadLine):
        return FailedRow(as_json(line), code_for(InvalidRequest), line.message)
    identity = None if line.id is None else conform_id(line.id, "")
    if isinstance(identity, Refusal):
        return FailedRow(as_json(line), code_of(identity), identity.message)
    if line.payload is not None and not isinstance(line.payload, Mapping):
        message = f"payload: must be an object, got {kind_of(line.payload)}"
        return FailedRow(as_json(line), "invalid_payload", message)
    return None
