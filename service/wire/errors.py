"""Errors in JSON: the table from error types to codes and HTTP statuses, and the rendering.

The JSON of an error is `{"error", "error_code", "retryable", "details"}`. `error` is always a string; programs branch
on `error_code`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict  # pydantic cannot describe that of Python 3.11

from embedder import (
    Cancelled,
    DeviceLost,
    Internal,
    InvalidRequest,
    ModelFailure,
    NotFound,
    Overloaded,
    WorkerError,
)
from qdrant_sink import (
    Disagreement,
    DuplicateId,
    ModelMismatch,
    Refusal,
    SchemaMismatch,
    StoreRejected,
    StoreUnavailable,
    Superseded,
)
from service.connection_errors import (
    BodyStalled,
    HeadStalled,
    HeadTooLarge,
    TargetTooLong,
    TooManyConnections,
)
from service.operations import IngestFailed


class ResponseTooLarge(WorkerError):
    """The answer exceeds the size limit.

    Attributes:
        size: size of the answer in bytes, or a lower bound on it.
        limit: the limit in bytes.
    """

    def __init__(self, message: str, *, size: int, limit: int) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class Unauthorized(InvalidRequest):
    """The key is missing or wrong."""


class UnknownPath(NotFound):
    """The path of the URL is unknown."""


class MethodNotAllowed(InvalidRequest):
    """The path does not support the method."""


class WrongHost(InvalidRequest):
    """The request names a host that this worker does not answer for."""


class ForeignOrigin(InvalidRequest):
    """The request comes from the page of an origin that may not use this worker."""


class BodyTooLarge(InvalidRequest):
    """The request body exceeds the limit of the HTTP server."""


class NotJson(InvalidRequest):
    """The content type is not JSON."""


class UnknownCoding(InvalidRequest):
    """The request body is compressed in a way that is not understood."""


class Loading(Overloaded):
    """The model is still loading."""


class ShuttingDown(Cancelled):
    """The worker accepts no new requests; another worker may."""

    retryable = True


@dataclass(frozen=True, slots=True)
class WireError:
    """The code and the status of an error.

    Attributes:
        code: the stable name that programs branch on.
        status: the HTTP status.
    """

    code: str
    status: int


ERRORS: Final[Mapping[type[WorkerError], WireError]] = {
    InvalidRequest: WireError("invalid_request", 400),
    Unauthorized: WireError("invalid_request", 401),
    MethodNotAllowed: WireError("invalid_request", 405),
    BodyStalled: WireError("invalid_request", 408),
    HeadStalled: WireError("invalid_request", 408),
    HeadTooLarge: WireError("invalid_request", 431),
    TargetTooLong: WireError("invalid_request", 414),
    WrongHost: WireError("invalid_request", 421),
    ForeignOrigin: WireError("invalid_request", 403),
    BodyTooLarge: WireError("invalid_request", 413),
    NotJson: WireError("invalid_request", 415),
    UnknownCoding: WireError("invalid_request", 415),
    NotFound: WireError("not_found", 404),
    Overloaded: WireError("overloaded", 429),
    TooManyConnections: WireError("overloaded", 503),
    Loading: WireError("overloaded", 503),
    ResponseTooLarge: WireError("response_too_large", 413),
    ModelFailure: WireError("model_failure", 500),
    DeviceLost: WireError("model_failure", 503),
    StoreUnavailable: WireError("store_unavailable", 503),
    StoreRejected: WireError("store_rejected", 502),
    SchemaMismatch: WireError("schema_mismatch", 409),
    DuplicateId: WireError("duplicate_id", 409),
    Superseded: WireError("superseded", 409),
    Cancelled: WireError("cancelled", 503),
    Internal: WireError("internal", 500),
}
"""Codes and statuses by error type; a subclass that is not listed has those of its base."""

CODES: Final = tuple(sorted({error.code for error in ERRORS.values()}))
"""All values of `error_code`."""

ErrorCode = Annotated[str, WithJsonSchema({"enum": list(CODES)})]

RETRY_AFTER_S: Final[Mapping[int, int]] = {429: 1, 503: 5}
"""Default seconds of the `Retry-After` header by status, unless the error has its own."""


ID_MAX_CHARACTERS: Final = 200
"""Maximum characters of an id in the details of an error, which leave out a longer one."""

IDS_MAX: Final = 200
"""Maximum ids in the details of an error, as many as a search can name."""


class Error(TypedDict):
    """The JSON of an error."""

    error: Annotated[str, Field(description="message with the field, the limit and the value")]
    error_code: ErrorCode
    retryable: bool
    details: dict[str, Any]


def cause_of(error: WorkerError) -> WorkerError:
    """The error that the caller gets: the cause of a failed ingest, or the error itself."""
    return error.cause if isinstance(error, IngestFailed) else error


def wire_error(error: WorkerError) -> WireError:
    """The code and the status of an error."""
    return _wire_error_for(type(cause_of(error)))


def code_for(kind: type[WorkerError]) -> str:
    """The code of an error type."""
    return _wire_error_for(kind).code


def code_of(cause: WorkerError | Refusal) -> str:
    """The code of an error, or of a point that failed validation."""
    return cause.code if isinstance(cause, Refusal) else wire_error(cause).code


def error_answer(error: WorkerError, **details: Any) -> Error:
    """The JSON of an error.

    Args:
        error: the error.
        details: further values for `details`.
    """
    cause = cause_of(error)
    return {
        "error": cause.message,
        "error_code": wire_error(cause).code,
        "retryable": cause.retryable,
        "details": {**_details(cause), **details},
    }


def retry_after_s(error: WorkerError) -> int | None:
    """Whole seconds to wait before a retry; None if a retry does not help."""
    cause = cause_of(error)
    status = wire_error(cause).status
    if status in RETRY_AFTER_S and isinstance(cause, StoreUnavailable) and cause.retry_after_s is not None:
        return max(1, round(cause.retry_after_s))
    return RETRY_AFTER_S.get(status)


def disagreement_details(disagreement: Disagreement) -> dict[str, Any]:
    """The JSON of a kind of vector that has vectors of another model."""
    return {"kind": disagreement.kind, "cosine": round(disagreement.cosine, 4), "texts": disagreement.texts}


def _wire_error_for(kind: type[WorkerError]) -> WireError:
    return next(ERRORS[base] for base in kind.__mro__ if base in ERRORS)


def _details(error: WorkerError) -> dict[str, Any]:
    match error:
        case InvalidRequest(fields=fields) | NotFound(fields=fields) if fields:
            return {"errors": [{"field": field.field, "message": field.message} for field in fields]}
        case NotFound(collection=str(collection), ids=ids):
            return {"collection": collection, "ids": _short(ids)}
        case ResponseTooLarge(size=size, limit=limit):
            return {"bytes": size, "limit": limit}
        case StoreUnavailable(retry_after_s=seconds) if seconds is not None:
            return {"retry_after_s": seconds}
        case SchemaMismatch():
            return _mismatch_details(error)
    return {}


def _short(ids: Sequence[int | str]) -> list[int | str]:
    """The first ids, of which none is long."""
    short = [identity for identity in ids if len(str(identity)) <= ID_MAX_CHARACTERS]
    return short[:IDS_MAX]


def _mismatch_details(error: SchemaMismatch) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if error.choices:
        details["choices"] = {setting: list(names) for setting, names in error.choices.items()}
    if error.differences:
        details["differences"] = [
            {"field": difference.field, "found": difference.found, "wanted": difference.wanted}
            for difference in error.differences
        ]
    if isinstance(error, ModelMismatch) and error.disagreements:
        details["vectors"] = [disagreement_details(part) for part in error.disagreements]
    return {"collection": error.collection, **details} if details else {}
