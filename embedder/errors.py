"""Every error that reaches a caller, with its code on the wire and whether a retry can help.

    WorkerError
    ├── InvalidRequest      invalid_request      the request cannot be served as written
    ├── NotFound            not_found            the collection or the point is not there
    ├── Overloaded          overloaded           the queue is full; retry later
    ├── ResponseTooLarge    response_too_large   the answer is over the limit of the platform
    ├── ModelFailure        model_failure        the model could not produce a vector
    │   └── DeviceLost          model_failure        the device computes no more; another worker can
    ├── StoreError
    │   ├── StoreUnavailable    store_unavailable    the store does not answer; retry later
    │   ├── StoreRejected       store_rejected       the store refused what it was sent
    │   │   └── NothingTaken        store_rejected       the store takes nothing, whatever it is sent
    │   │       └── AccessDenied        store_rejected       the store does not let the worker in
    │   └── SchemaMismatch      schema_mismatch      the collection differs from what is wanted
    ├── DuplicateId         duplicate_id         two points of one job claim one id
    ├── Cancelled           cancelled            the job was cancelled
    └── Internal            internal             a defect of the worker

    ConfigurationError      never on the wire: the worker refuses to start

Messages name the field, the limit and the actual value, and never quote a text, a key or a host.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar


class WorkerError(Exception):
    """Base of all errors of the wire.

    Attributes:
        code: stable name on the wire.
        retryable: whether the same request can succeed later, unchanged.
        message: for the caller; names the field, the limit and the value.
        details: JSON values that travel beside the message.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: Mapping[str, Any] = MappingProxyType(dict(details or {}))


class InvalidRequest(WorkerError):
    """The request cannot be served as it is written."""

    code = "invalid_request"


class NotFound(WorkerError):
    """What the request names does not exist."""

    code = "not_found"


class Overloaded(WorkerError):
    """The queue of the model pool is full."""

    code = "overloaded"
    retryable = True


class ResponseTooLarge(WorkerError):
    """The answer would be larger than what the platform carries."""

    code = "response_too_large"


class ModelFailure(WorkerError):
    """The model could not produce what was asked of it."""

    code = "model_failure"


class DeviceLost(ModelFailure):
    """The device computes no more until the process starts anew; another worker can serve the request."""

    retryable = True


class StoreError(WorkerError):
    """Base of the errors of the store."""


class StoreUnavailable(StoreError):
    """The store does not answer, or asks for patience."""

    code = "store_unavailable"
    retryable = True


class StoreRejected(StoreError):
    """The store refused the content of a request."""

    code = "store_rejected"


class NothingTaken(StoreRejected):
    """The store refuses whatever it is sent: no content is at fault, and less of it fares no better."""


class AccessDenied(NothingTaken):
    """The store does not let this worker in."""


class SchemaMismatch(StoreError):
    """A collection exists with another schema; it is never altered silently."""

    code = "schema_mismatch"


class DuplicateId(WorkerError):
    """Two different points of one job claim the same id."""

    code = "duplicate_id"


class Cancelled(WorkerError):
    """The job was cancelled before it was done."""

    code = "cancelled"


class Internal(WorkerError):
    """A defect of the worker itself."""


class ConfigurationError(Exception):
    """The settings cannot work; the message names the setting and the fix."""


def whereabouts(error: BaseException) -> str:
    """Type and place of an unexpected exception, for the log: its message may quote a user's text."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return type(error).__name__
    code = frame.tb_frame.f_code
    file = "/".join(code.co_filename.replace("\\", "/").split("/")[-2:])
    return f"{type(error).__name__} in {code.co_name} ({file}:{frame.tb_lineno})"
