"""The errors of the store, beside those of `embedder.errors`.

WorkerError
├── NotFound                the collection or the point does not exist (embedder.errors)
├── StoreError
│   ├── StoreUnavailable    the store does not answer; retry later
│   ├── StoreRejected       the store refused what it was sent
│   │   └── NothingTaken        the store refuses whatever it is sent
│   │       └── AccessDenied        the store does not let the worker in
│   └── SchemaMismatch      the collection differs from what is wanted
└── DuplicateId             two points of one job claim one id
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embedder.errors import WorkerError


class StoreError(WorkerError):
    """Base of the errors of the store."""


class StoreUnavailable(StoreError):
    """The store does not answer, or asks for patience.

    Attributes:
        retry_after_s: seconds that the store asks for; None where it says nothing.
    """

    retryable = True

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreRejected(StoreError):
    """The store refused the content of a request."""


class NothingTaken(StoreRejected):
    """The store refuses whatever it is sent: no content is at fault, and less of it fares no better."""


class AccessDenied(NothingTaken):
    """The store does not let this worker in."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which a collection is not what is wanted.

    Attributes:
        field: path in the schema, such as `dense.size`.
        found: what the collection has.
        wanted: what the schema asks for.
    """

    field: str
    found: str | int
    wanted: str | int


class SchemaMismatch(StoreError):
    """A collection exists with another schema; it is never altered silently.

    Attributes:
        collection: by name.
        differences: every field that differs.
    """

    def __init__(self, message: str, *, collection: str = "", differences: Sequence[Difference] = ()) -> None:
        super().__init__(message)
        self.collection = collection
        self.differences = tuple(differences)


class DuplicateId(WorkerError):
    """Two different points of one job claim the same id."""
