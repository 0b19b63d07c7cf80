"""Errors: those that the worker answers, by `error_code`, and those of the way to it.

No message contains a key, an address or a text of a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from bge_m3_qdrant_client.report import IngestReport


class ClientError(Exception):
    """Base of all errors of this package.

    Attributes:
        message: what is wrong.
        code: the stable name that programs branch on.
        retryable: whether the same request may succeed later.
        retry_after_s: seconds to wait before, where the answer says so.
        report: the points of an ingest that failed, those of its earlier requests included; None for other calls.
    """

    code: str = "client_error"
    retryable: bool = False

    def __init__(self, message: str, *, retryable: bool | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retryable = type(self).retryable if retryable is None else retryable
        self.retry_after_s = retry_after_s
        self.report: IngestReport | None = None


class InvalidOption(ClientError, ValueError):
    """A parameter of the call is invalid; nothing was sent for it."""

    code = "invalid_option"


class WorkerError(ClientError):
    """An error that the worker answered.

    Attributes:
        details: what programs need to know, such as `errors` with fields, or `upsert` with stored points.
        status: the HTTP status; None on RunPod.
        request_id: the id under which the worker's log has the request: `X-Request-ID`, or the id of the job on RunPod.
    """

    code = "internal"
    codes: ClassVar[dict[str, type[WorkerError]]] = {}

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
        details: Mapping[str, Any] | None = None,
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable, retry_after_s=retry_after_s)
        self.request_id = request_id
        self.code = code or type(self).code
        self.details = dict(details or {})
        self.status = status

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        WorkerError.codes.setdefault(cls.code, cls)


class InvalidRequest(WorkerError):
    """The request cannot be served as written. `details` has the fields."""

    code = "invalid_request"


class Unauthorized(InvalidRequest):
    """The key is missing or wrong."""


class NotFound(WorkerError):
    """The collection, a point of `like`, the model or the path does not exist."""

    code = "not_found"


class Overloaded(WorkerError):
    """The queue of the worker is full, or its model still loads."""

    code = "overloaded"
    retryable = True


class ResponseTooLarge(WorkerError):
    """The answer would exceed the limit. `details` has its `bytes` and the `limit`."""

    code = "response_too_large"


class ModelFailure(WorkerError):
    """The model failed."""

    code = "model_failure"


class StoreUnavailable(WorkerError):
    """Qdrant does not answer. `details["upsert"]` of an ingest says what is stored already."""

    code = "store_unavailable"
    retryable = True


class StoreRejected(WorkerError):
    """Qdrant refused the request."""

    code = "store_rejected"


class SchemaMismatch(WorkerError):
    """The collection has another schema, or the vectors of another model."""

    code = "schema_mismatch"


class DuplicateId(WorkerError):
    """Two points of one request have the same id."""

    code = "duplicate_id"


class Superseded(WorkerError):
    """Another job stored a later version of the document."""

    code = "superseded"


class Cancelled(WorkerError):
    """The worker is shutting down, or the job was cancelled."""

    code = "cancelled"


class Internal(WorkerError):
    """The worker has a defect."""

    code = "internal"


class TransportError(ClientError):
    """Base of the errors of the way to the worker and back.

    Attributes:
        sent: whether the worker may have received the request.
    """

    def __init__(
        self,
        message: str,
        *,
        sent: bool = True,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable, retry_after_s=retry_after_s)
        self.sent = sent


class ConnectionFailed(TransportError):
    """No connection came about, or it ended before the answer."""

    code = "connection_failed"
    retryable = True


class TimedOut(TransportError):
    """The answer did not arrive within the timeout of the call. A job on RunPod is cancelled."""

    code = "timed_out"


class UnexpectedAnswer(TransportError):
    """The answer is not one of the worker's: a proxy or the platform answered, or another service.

    Attributes:
        status: the HTTP status; None where it says nothing about the answer.
    """

    code = "unexpected_answer"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        sent: bool = True,
        retryable: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, sent=sent, retryable=retryable, retry_after_s=retry_after_s)
        self.status = status


class JobFailed(TransportError):
    """A job ended on RunPod without an answer of the worker.

    Attributes:
        status: the platform's word: `FAILED`, `CANCELLED` or `TIMED_OUT`; `EXPIRED` if it has forgotten the job.
    """

    code = "job_failed"

    def __init__(self, message: str, *, status: str) -> None:
        super().__init__(message)
        self.status = status


def worker_error(
    answer: Mapping[str, Any],
    *,
    status: int | None = None,
    retry_after_s: float | None = None,
    request_id: str | None = None,
) -> WorkerError:
    """The error of an answer with an `error_code`, in the worker's own form or in that of a rerank.

    A code that this release does not know is a `WorkerError` with that code.

    Args:
        answer: the JSON object.
        status: the HTTP status; None on RunPod.
        retry_after_s: the header `Retry-After` in seconds.
        request_id: the id of the request.
    """
    code = str(answer["error_code"])
    kind = Unauthorized if status == 401 else WorkerError.codes.get(code, WorkerError)
    given = answer.get("details")
    details = given if isinstance(given, dict) else {}
    retryable = answer.get("retryable")
    if not isinstance(retryable, bool):
        retryable = None if status is None else status in {408, 429, 503}
    seconds = details.get("retry_after_s")
    if retry_after_s is None and isinstance(seconds, (int, float)):
        retry_after_s = seconds
    return kind(
        str(answer.get("error") or answer.get("message") or code),
        code=code,
        retryable=retryable,
        retry_after_s=retry_after_s,
        details=details,
        status=status,
        request_id=request_id,
    )
