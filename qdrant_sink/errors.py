"""Errors of the stores, which extend the error tree of `embedder.errors`.

WorkerError
├── NotFound                the collection or the point does not exist (embedder.errors)
├── StoreError
│   ├── StoreUnavailable    the store does not answer; retry later
│   ├── StoreRejected       the store refused the content of a request
│   │   ├── IndexRequired       a filter needs a payload index that the collection lacks
│   │   └── NothingTaken        the store refuses every request, whatever its content
│   │       └── AccessDenied        the credentials do not suffice
│   └── SchemaMismatch      the collection exists with another schema
└── DuplicateId             two points of one job have the same id
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embedder.errors import WorkerError


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


class StoreRejected(StoreError):
    """The store refused the content of a request."""


class IndexRequired(StoreRejected):
    """A filter needs a payload index that the collection lacks, because the server filters only by indexed keys.

    Attributes:
        key: path of the payload key.
    """

    def __init__(self, message: str, *, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class NothingTaken(StoreRejected):
    """The store refuses every request, whatever its content. A smaller request is refused too."""


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
    """The collection exists with another schema. It is left unchanged.

    Attributes:
        collection: name of the collection.
        differences: every field that differs.
    """

    def __init__(self, message: str, *, collection: str = "", differences: Sequence[Difference] = ()) -> None:
        super().__init__(message)
        self.collection = collection
        self.differences = tuple(differences)


class DuplicateId(WorkerError):
    """Two different points of one job have the same id."""
