"""Map the exceptions of qdrant-client to the errors of the `Store` protocol.

    gRPC                                    REST            error               retried
    UNAVAILABLE, DEADLINE_EXCEEDED,         5xx, 408,       StoreUnavailable    yes
      ABORTED, INTERNAL, UNKNOWN,             transport
      CANCELLED
      (name too long for the disk)                          InvalidRequest      no
    RESOURCE_EXHAUSTED                      429             StoreUnavailable    yes, after Retry-After
      (request too large)                   413, 400        StoreRejected       no; a smaller batch may pass
      (answer too large)                    (body)          AnswerTooLarge      no; fewer points may pass
    NOT_FOUND                               404 of Qdrant   NotFound            no
      (of a point)                                          PointMissing        no
    UNAUTHENTICATED, PERMISSION_DENIED      401, 403        AccessDenied        no
    FAILED_PRECONDITION                     403 if locked   StoreUnavailable    yes
    INVALID_ARGUMENT, OUT_OF_RANGE          400, 422        StoreRejected       no
    UNIMPLEMENTED                                           FeatureMissing      no; a smaller batch fails too
    all others                              all others      NothingTaken        no; a smaller batch fails too

A server that is locked for writing, or that moves a shard, answers FAILED_PRECONDITION. Over REST, the former is a 403
with a specific message and the latter a 500. Only faults of the content are StoreRejected itself, because the writer
splits such batches. Messages of the server are not shown; `reasons.reason` extracts their harmless phrases.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from embedder.errors import InvalidRequest, NotFound, WorkerError
from qdrant_sink.errors import (
    AccessDenied,
    FeatureMissing,
    IndexRequired,
    LimitExceeded,
    NothingTaken,
    PointMissing,
    StoreRejected,
    StoreUnavailable,
)
from qdrant_sink.payload_path import canonical_path
from qdrant_sink.reasons import missing_index, reason
from qdrant_sink.server.answer_limit import answer_too_large, is_too_large

CLIENT_EXCEPTIONS = (
    grpc.RpcError,
    ApiException,
    QdrantException,
    ValueError,
    TypeError,
    RuntimeError,
    AssertionError,
    OSError,
)
"""Exceptions that qdrant-client raises: its own, those of its transports and those of its conversions."""

_TRANSIENT_CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
)
_DENIED_CODES = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_CONTENT_CODES = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
_CONTENT_STATUSES = (400, 413, 422)
_OTHER_API = "the answer does not match the API of Qdrant; check QDRANT_URL, the server's version and any proxy"

_LIMITS_EXCEEDED = (
    re.compile(r'limit exceeded [\d.]+ > (?P<maximum>\d+(?:\.\d+)?) for "(?P<field>[a-z_ ]+)"', re.IGNORECASE),
    re.compile(r"(?P<field>condition size) limit reached \(\d+ > (?P<maximum>\d+)\)", re.IGNORECASE),
)

_NO_POINT = "No point with id"
"""The server was asked to set vectors of a point that does not exist."""

_NAME_TOO_LONG = "File name too long"
"""The server's disk refuses the directory of a collection. The server counts characters, and the disk counts bytes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An error, and whether and when to retry.

    Attributes:
        error: error of the `Store` protocol.
        retry: whether the same call may succeed later.
        retry_after_s: seconds that the server asks the client to wait, or None.
    """

    error: WorkerError
    retry: bool = False
    retry_after_s: float | None = None


def fault_of(exc: Exception, collection: str) -> Fault:  # noqa: PLR0911 - one return per vendor exception
    """Map an exception of `CLIENT_EXCEPTIONS` that was raised by a call for `collection`."""
    if isinstance(exc, ResourceExhaustedResponse):
        return _rate_limited(exc.message, float(exc.retry_after_s))
    if isinstance(exc, grpc.RpcError):
        return _of_grpc(exc, collection)
    if isinstance(exc, UnexpectedResponse):
        return _of_status(exc, collection)
    if isinstance(exc, ResponseHandlingException) and isinstance(exc.source, WorkerError):
        return Fault(exc.source)
    if _is_unreadable_answer(exc):
        return Fault(NothingTaken(_OTHER_API))
    if isinstance(exc, ResponseHandlingException):
        return Fault(_unavailable(f"no answer ({type(exc.source).__name__})", ""), retry=True)
    if isinstance(exc, QdrantException):
        return _rate_limited("", None)
    if isinstance(exc, OSError):
        return Fault(_unavailable("no connection", ""), retry=True)
    return Fault(StoreRejected("the request or the answer does not match the API of Qdrant"))


def _is_unreadable_answer(exc: Exception) -> bool:
    """Whether a successful REST answer could not be parsed, for example because a proxy sent it."""
    if isinstance(exc, ResponseHandlingException):
        return isinstance(exc.source, ValueError)
    return isinstance(exc, json.JSONDecodeError)


def _of_grpc(exc: Any, collection: str) -> Fault:  # noqa: PLR0911 - one return per group of codes
    code: grpc.StatusCode = exc.code()
    details: str = exc.details() or ""
    if is_too_large(details):
        return Fault(answer_too_large())
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        retry_after = dict(exc.trailing_metadata() or ()).get("retry-after")
        return _rate_limited(details, _seconds(retry_after))
    if code in _TRANSIENT_CODES:
        return _failed(code.name, details, collection)
    if code is grpc.StatusCode.NOT_FOUND:
        return Fault(_not_found(collection, details))
    if code in _DENIED_CODES:
        return Fault(_denied(code.name, details))
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return Fault(_not_ready(code.name, details), retry=True)
    if code in _CONTENT_CODES:
        return Fault(_rejected(code.name, details))
    refused = FeatureMissing if code is grpc.StatusCode.UNIMPLEMENTED else NothingTaken
    return Fault(refused(_refusal(code.name, details)))


def _of_status(exc: UnexpectedResponse, collection: str) -> Fault:
    status = exc.status_code or 0
    details = _error_of(exc.content)
    if status == 429:
        return _rate_limited(details, _seconds(exc.headers.get("Retry-After")))
    if status == 408 or (status >= 500 and status != 501):
        return _failed(f"HTTP {status}", details, collection)
    if status == 404:
        return Fault(_not_found(collection, details) if _is_of_qdrant(exc.content) else NothingTaken(_OTHER_API))
    if status == 403 and "storage locked" in reason(details).lower():
        return Fault(_not_ready(f"HTTP {status}", details), retry=True)
    if status in (401, 403):
        return Fault(_denied(f"HTTP {status}", details))
    is_content_fault = status in _CONTENT_STATUSES
    return Fault(
        _rejected(f"HTTP {status}", details) if is_content_fault else _nothing_taken(f"HTTP {status}", details)
    )


def _rate_limited(details: str, retry_after_s: float | None) -> Fault:
    phrases = reason(details)
    if "larger" in phrases or "too large" in phrases:
        return Fault(_rejected("RESOURCE_EXHAUSTED", details))
    error = StoreUnavailable(
        "Qdrant limits the request rate" + (f": {phrases}" if phrases else ""), retry_after_s=retry_after_s
    )
    return Fault(error, retry=True, retry_after_s=retry_after_s)


def _failed(status: str, details: str, collection: str) -> Fault:
    """A failure of the server itself. It may pass, unless the disk does not take the name of a collection."""
    if _NAME_TOO_LONG not in details:
        return Fault(_unavailable(status, details), retry=True)
    return Fault(
        InvalidRequest(
            "collection: a name must take at most as many bytes as the disk of the Qdrant server allows (255 on most), "
            f"got {len(collection.encode())} bytes for {len(collection)} characters; choose a shorter name"
        )
    )


def _unavailable(status: str, details: str) -> StoreUnavailable:
    phrases = reason(details)
    return StoreUnavailable(f"Qdrant does not answer: {status}" + (f", {phrases}" if phrases else ""))


def _not_ready(status: str, details: str) -> StoreUnavailable:
    phrases = reason(details)
    return StoreUnavailable(f"Qdrant cannot process the request now: {status}" + (f", {phrases}" if phrases else ""))


def _rejected(status: str, details: str) -> StoreRejected:
    missing = missing_index(details)
    if missing is not None:
        key, types = missing
        with suppress(ValueError):
            key = canonical_path(key)
        return IndexRequired(
            f"Qdrant filters only by indexed keys (strict mode), and {key!r} has no index of a type that suits this "
            f"condition ({types}); add the key to payloadIndexes in QDRANT_COLLECTION_CONFIG, or filter by another key",
            key=key,
            types=types,
        )
    for pattern in _LIMITS_EXCEEDED:
        limit = pattern.search(details)
        if limit is not None:
            message = f"Qdrant refused the request: {status}, {limit.group()}"
            return LimitExceeded(message, field=limit["field"].lower(), maximum=float(limit["maximum"]))
    return StoreRejected(_refusal(status, details))


def _nothing_taken(status: str, details: str) -> NothingTaken:
    return NothingTaken(_refusal(status, details))


def _refusal(status: str, details: str) -> str:
    phrases = reason(details)
    return f"Qdrant refused the request: {status}" + (f", {phrases}" if phrases else "")


def _denied(status: str, details: str) -> AccessDenied:
    phrases = reason(details)
    required = f", {phrases}" if phrases else ""
    return AccessDenied(f"Qdrant denied access: {status}{required}; check QDRANT_API_KEY and its permissions")


def _not_found(collection: str, details: str) -> NotFound:
    if _NO_POINT in details:
        return PointMissing(f"a point of collection {collection!r} does not exist")
    return NotFound(f"collection {collection!r} does not exist")


def _seconds(value: Any) -> float | None:
    try:
        return max(0.0, float(value))
    except (TypeError, ValueError):
        return None


def _is_of_qdrant(content: bytes) -> bool:
    """Whether an error is Qdrant's own: a server without this path, or a proxy, answers 404 in another form."""
    try:
        return "status" in json.loads(content)
    except (ValueError, TypeError):
        return False


def _error_of(content: bytes) -> str:
    """Return the error message of Qdrant's JSON answer, or the raw body if a proxy sent it."""
    try:
        return str(json.loads(content)["status"]["error"])
    except (ValueError, TypeError, KeyError):
        return content[:2000].decode("utf-8", "replace")
