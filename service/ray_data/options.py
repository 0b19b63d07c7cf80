"""The options of a load, as those of a bulk load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from embedder import CHUNK_MIN_TOKENS, InvalidRequest, Kind
from service.bulk import LoadOptions
from service.bulk.field_mapping import FieldOptions
from service.operations import Chunking, IngestRequest

DEFAULT_LOAD_ID: Final = "ray"
"""Default id of a load."""


def load_options(
    collection: str,
    *,
    alias: str | None = None,
    vectors: Sequence[Kind] = (),
    chunk: Chunking | None = None,
    pool_colbert: bool = False,
    text_key: str | None = None,
    insert_only: bool = False,
    allow_rejected: bool = False,
    allow_lost: bool = False,
    defer_index: bool = False,
    load_id: str = DEFAULT_LOAD_ID,
    fields: FieldOptions = FieldOptions(),  # noqa: B008 - it is frozen
) -> LoadOptions:
    """The options of a load into a collection; see `load`.

    Raises:
        InvalidRequest: the chunking is out of range.
    """
    check_chunking(chunk)
    request = IngestRequest(
        texts=[""],
        vectors=tuple(vectors),
        collection=collection,
        id_scope=alias,
        chunk=chunk,
        pool_colbert=pool_colbert,
        text_key=text_key,
        insert_only=insert_only,
        compare_kept=insert_only and not allow_lost,
    )
    return LoadOptions(
        request,
        collection,
        alias,
        allow_rejected=allow_rejected,
        allow_lost=allow_lost,
        defer_index=defer_index,
        load_id=load_id,
        read_by=fields.by_option,
    )


def check_chunking(chunk: Chunking | None) -> None:
    """Check a chunking without a model.

    Raises:
        InvalidRequest: chunks have fewer tokens than the minimum.
    """
    if chunk is not None and chunk.max_tokens < CHUNK_MIN_TOKENS:
        raise InvalidRequest(f"max_tokens of a chunk must be at least {CHUNK_MIN_TOKENS}, got {chunk.max_tokens}")
