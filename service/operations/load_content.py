"""What decides the content of the points of a load: from the requests of its lines, and in words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from embedder import KINDS, InvalidRequest, Kind
from qdrant_sink import CollectionSchema, text_key_of
from qdrant_sink.loading import LoadContent, LoadRecord
from service.operations.ingest_values import IngestRequest
from service.validation import invalid_field, is_unicode

INPUT_MAX_OPTIONS: Final = 20
"""Maximum number of options by which lines are read from the input, in the record of a load."""

INPUT_NAME_MAX_CHARACTERS: Final = 64
"""Maximum length of the name of such an option in characters."""

INPUT_VALUE_MAX_CHARACTERS: Final = 200
"""Maximum length of its value in characters. Of a longer one the record has a digest."""

_FIELDS: Final = {
    "chunk_tokens": "chunk.maxTokens",
    "chunk_overlap": "chunk.overlap",
    "max_length": "PASSAGE_MAX_LENGTH",
    "colbert_pooling": "colbertPooling",
    "text_key": "textKey",
    "id_scope": "idScope",
}
"""The fields of a request, and the setting, by the attributes of the content."""


def content_of(
    request: IngestRequest,
    scope: str,
    *,
    kinds: Sequence[Kind] = (),
    max_length: int | None = None,
    read_by: Mapping[str, object] | None = None,
) -> LoadContent:
    """What decides the content of the points of a load.

    Args:
        request: the request of its lines.
        scope: name from which ids are derived.
        kinds: kinds of vectors that the lines have; empty if they are embedded.
        max_length: tokens beyond which a text without chunks is truncated if the request does not say it; None for
            lines that have vectors, and for an endpoint.
        read_by: options by which the lines are read, with their names. Those without a value are left out.
    """
    chunk = request.chunk
    read = ((name, _text(value)) for name, value in (read_by or {}).items())
    return LoadContent(
        vectors=_ordered(request.vectors or kinds),
        chunk_tokens=None if chunk is None else chunk.max_tokens,
        chunk_overlap=None if chunk is None else chunk.overlap,
        max_length=None if chunk is not None else request.max_length or max_length,
        colbert_pooling="mean" if request.pool_colbert else "none",
        text_key=request.text_key,
        id_scope=scope,
        input=tuple(sorted((name, text) for name, text in read if text)),
    )


def _text(value: object) -> str:
    """The value of an option as a text; empty for none. Of a long one, and of one that is no UTF-8, it is a digest."""
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    text = "" if value is None else str(value)
    if len(text) <= INPUT_VALUE_MAX_CHARACTERS and is_unicode(text):
        return text
    return f"sha256:{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:16]}"


def _ordered(kinds: Iterable[str]) -> tuple[str, ...]:
    given = set(kinds)
    return tuple(kind for kind in KINDS if kind in given)


def in_collection(content: LoadContent, schema: CollectionSchema, collection: str) -> LoadContent:
    """The content in which what the collection decides is filled in.

    Args:
        content: the content.
        schema: schema of the collection, by whose layout and text key the load writes.
        collection: its name.
    """
    return replace(
        content,
        vectors=_ordered(kind for kind in schema.kinds if not content.vectors or kind in content.vectors),
        text_key=text_key_of(schema.layout, schema.text_key),
        id_scope=content.id_scope or collection,
    )


def differences(contents: Sequence[LoadContent]) -> dict[str, tuple[str, ...]]:
    """The fields in which contents differ, with the value that each has in words."""
    values = [content.values for content in contents]
    names = dict.fromkeys(name for of_one in values for name in of_one)
    given = {name: tuple(of_one.get(name) for of_one in values) for name in names}
    return {
        _FIELDS.get(name, name[:INPUT_NAME_MAX_CHARACTERS]): tuple(map(_told, of_all))
        for name, of_all in given.items()
        if len(set(of_all)) > 1
    }


def refusal(mine: LoadRecord, unlike: Sequence[LoadRecord]) -> InvalidRequest:
    """The error of a load whose points have other content than those that it must be completed with.

    Args:
        mine: record of the load.
        unlike: records of the others, at least one.
    """
    other = unlike[0]
    contents = [content for content in (other.content, mine.content) if content is not None]
    told = ", ".join(f"{name} {theirs} (here {ours})" for name, (theirs, ours) in differences(contents).items())
    if other.load == mine.load:
        return invalid_field(
            "insertOnly",
            f"must be false, because the points that load {other.load!r} has stored were made with {told}; leave it "
            "out, or run the load with the same options",
        )
    shard, name = other.shard, other.load if other.shard is None else other.shard.name_of(other.load)
    return invalid_field(
        "loadId",
        f"must be of a load of the same options: shard {shard} of load {name!r} was begun with {told}; run all shards "
        "with the same options, or begin anew, the first shard with --drop-load "
        f"{name if shard is None else f'{name}/{shard.count}'}, and all of them without --insert-only",
    )


def _told(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if value is None:
        return "none"
    return repr(value[:INPUT_NAME_MAX_CHARACTERS]) if isinstance(value, str) else str(value)
