"""What an ingest writes to: the collection that a name leads to, its schema, and the kinds of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from embedder import KINDS, Kind
from qdrant_sink import CollectionSchema, Recognised, Taken
from service.operations.ingest_values import IngestRequest
from service.validation import invalid_field


@dataclass(frozen=True, slots=True, eq=False)
class IngestTarget:
    """What a job writes to its collection.

    Attributes:
        request: the request with its kinds of vectors.
        schema: schema of the collection, with the layout and the text key to write by.
        taken: what of it was taken from the collection rather than from the config.
        collection: the collection that the name of the request leads to.
    """

    request: IngestRequest
    schema: CollectionSchema
    taken: Taken
    collection: str

    @classmethod
    def guessed(cls, request: IngestRequest, guess: Recognised, available: Sequence[Kind] = KINDS) -> IngestTarget:
        """The target if the collection is as it was, or new. It is good for a plan, and not for writing."""
        kinds = request.vectors or _shared(guess.schema.kinds, available)
        return cls(replace(request, vectors=kinds), guess.read_by(request.text_key), Taken(), guess.collection)

    @classmethod
    def of(
        cls, request: IngestRequest, recognised: Recognised, collection: str, available: Sequence[Kind] = KINDS
    ) -> IngestTarget:
        """The target in the collection that the name of the request leads to.

        Args:
            request: the request.
            recognised: what the collection has, or will have.
            collection: the collection.
            available: kinds of vectors that there are; others of the collection are left out.

        Raises:
            InvalidRequest: the collection lacks a kind of vector that the request names, or all that are available.
            SchemaMismatch: a kind, the layout or the text key is ambiguous.
        """
        recognised.require(request.vectors or _shared(recognised.kinds, available))
        check_kinds(request.vectors, recognised.schema.kinds)
        kinds = request.vectors or _shared(recognised.schema.kinds, available)
        if not kinds:
            check_kinds(available, recognised.schema.kinds)
        schema, taken = recognised.written_by(request.text_key), recognised.taken_with(request.text_key)
        return cls(replace(request, vectors=kinds), schema, taken, collection)

    @property
    def planning(self) -> tuple[object, ...]:
        """What a plan depends on."""
        return tuple(self.request.vectors), self.schema.layout, self.schema.text_key


def check_kinds(vectors: Sequence[Kind], kinds: Sequence[Kind]) -> None:
    """Check that a collection has the kinds of vectors that a request names.

    Raises:
        InvalidRequest: it lacks one.
    """
    for index, kind in enumerate(vectors):
        if kind not in kinds:
            message = f"must be a kind of vector that the collection has ({', '.join(kinds)}), got '{kind}'"
            raise invalid_field(f"vectors[{index}]", message)


def _shared(kinds: Sequence[Kind], available: Sequence[Kind]) -> tuple[Kind, ...]:
    return tuple(kind for kind in kinds if kind in available)
