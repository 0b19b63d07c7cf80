"""Errors of the stores, which extend the error tree of `embedder.errors`.

WorkerError
├── NotFound                the collection or the point does not exist (embedder.errors)
│   ├── CollectionChanged       the collection was replaced or deleted while a job wrote to it
│   └── PointMissing            a point whose vectors are to be set does not exist
├── StoreError
│   ├── StoreUnavailable    the store does not answer; retry later
│   │   └── CallAbandoned       the caller of several calls has gone after one of them
│   ├── StoreRejected       the store refused the content of a request
│   │   ├── AnswerTooLarge      one answer of the server exceeds what is received
│   │   ├── IndexRequired       a filter needs a payload index that the collection lacks
│   │   ├── LimitExceeded       a number of the request exceeds a limit of the server
│   │   └── NothingTaken        the store refuses every request, whatever its content
│   │       ├── AccessDenied        the credentials do not suffice
│   │       └── FeatureMissing      the server is too old for the request
│   ├── SchemaMismatch      the collection exists with another schema
│   │   └── ModelMismatch       the collection has the vectors of another model
│   └── Superseded          another job stored a later version of the document meanwhile
└── DuplicateId             two points of one job have the same id
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedder.errors import NotFound, WorkerError
from embedder.vectors import Kind


class StoreError(WorkerError):
    """Base class of all errors of a store."""


class StoreUnavailable(StoreError):
    """The store does not answer, or asks the client to retry later.

    Attributes:
        retry_after_s: seconds that the store asks the client to wait; None if it does not say.
    """

    retryable = True

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CallAbandoned(StoreUnavailable):
    """The caller of several calls has gone after one of them, so that the next one is not sent."""


class StoreRejected(StoreError):
    """The store refused the content of a request."""


class IndexRequired(StoreRejected):
    """A filter needs a payload index that the collection lacks, because the server filters only by indexed keys.

    Attributes:
        key: path of the payload key.
        types: types of index that suit the condition, in the words of the server; empty if unknown.
    """

    def __init__(self, message: str, *, key: str = "", types: str = "") -> None:
        super().__init__(message)
        self.key = key
        self.types = types


class LimitExceeded(StoreRejected):
    """A number of the request exceeds a limit of the server.

    Attributes:
        field: the server's name of the number, such as "limit", "search batch size" or "condition size".
        maximum: greatest accepted value.
    """

    def __init__(self, message: str, *, field: str, maximum: float) -> None:
        super().__init__(message)
        self.field = field
        self.maximum = maximum


class AnswerTooLarge(StoreRejected):
    """The answer of a server is larger than this side receives. A request for fewer points may pass."""


class NothingTaken(StoreRejected):
    """The store refuses every request, whatever its content. A smaller request is refused too."""


class FeatureMissing(NothingTaken):
    """The server is too old for a part of the request."""


class AccessDenied(NothingTaken):
    """The credentials of this worker do not suffice for the store."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which an existing collection differs from the wanted schema.

    Attributes:
        field: path of the field in the schema, such as `dense.size`.
        found: value that the collection has.
        wanted: value that the schema asks for.
    """

    field: str
    found: str | int
    wanted: str | int


class SchemaMismatch(StoreError):
    """The collection exists with another schema, or leaves open what has to be known. It is left unchanged.

    Attributes:
        collection: name of the collection.
        differences: every field that differs.
        choices: what the collection has to offer, by the setting that decides; empty choices if it offers nothing.
    """

    def __init__(
        self,
        message: str,
        *,
        collection: str = "",
        differences: Sequence[Difference] = (),
        choices: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(message)
        self.collection = collection
        self.differences = tuple(differences)
        self.choices = {} if choices is None else dict(choices)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A kind of vector whose stored vectors are not those that the model computes for the stored texts.

    Attributes:
        kind: kind of vector.
        cosine: median cosine of stored and computed vectors.
        texts: number of texts that were compared.
    """

    kind: Kind
    cosine: float
    texts: int

    def __str__(self) -> str:
        """Describe the disagreement for a message."""
        return f"{self.kind} has a median cosine of {self.cosine:.2f} over {self.texts} text{'s' * (self.texts != 1)}"


class ModelMismatch(SchemaMismatch):
    """The collection has the vectors of another model. It is left unchanged.

    Attributes:
        disagreements: the kinds that disagree; empty if the metadata of the collection names another model, which is
            then the only one of the `differences`.
    """

    def __init__(
        self,
        message: str,
        *,
        collection: str = "",
        differences: Sequence[Difference] = (),
        disagreements: Sequence[Disagreement] = (),
    ) -> None:
        super().__init__(message, collection=collection, differences=differences)
        self.disagreements = tuple(disagreements)


class Superseded(StoreError):
    """Another job stored a later version of the same document meanwhile, and that version is kept."""


class CollectionChanged(NotFound):
    """The collection that a job wrote to was deleted, was created again, or no longer has the job's name.

    The same job can be sent again.
    """

    retryable = True


class PointMissing(NotFound):
    """A point whose vectors are to be set does not exist. Other points of the request may be written."""


class DuplicateId(WorkerError):
    """Two different points of one job have the same id."""
