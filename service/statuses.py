"""Errors to HTTP: the one table of status codes, and the errors that only HTTP knows.

They have the codes of the contract, since a caller branches on these; the status says the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from embedder.errors import Cancelled, InvalidRequest, NotFound, Overloaded
from service.responses import Json

STATUS: Final[Mapping[str, int]] = {
    "invalid_request": 400,
    "not_found": 404,
    "overloaded": 429,
    "response_too_large": 413,
    "model_failure": 500,
    "store_unavailable": 503,
    "store_rejected": 502,
    "schema_mismatch": 409,
    "duplicate_id": 409,
    "cancelled": 503,
    "internal": 500,
}
"""By `error_code`."""

LOST: Final = 503
"""Of a `model_failure` that may be retried: no device is left here, another worker has one."""

RETRY_AFTER_S: Final[Mapping[int, int]] = {429: 1, 503: 5}
"""Seconds of the header, by status, unless the error itself knows better."""


class Unauthorized(InvalidRequest):
    """The bearer token is missing or wrong."""

    status: ClassVar[int] = 401


class NoSuchPath(NotFound):
    """The path is none of this service."""

    status: ClassVar[int] = 404


class WrongMethod(InvalidRequest):
    """The path is there, with another method."""

    status: ClassVar[int] = 405


class BodyStalled(InvalidRequest):
    """The client has stopped sending in the middle of its body."""

    status: ClassVar[int] = 408
    retryable = True


class BodyTooLarge(InvalidRequest):
    """The body is over the limit of the door."""

    status: ClassVar[int] = 413


class NotJson(InvalidRequest):
    """The content type is another."""

    status: ClassVar[int] = 415


class Loading(Overloaded):
    """The model is not there yet."""

    status: ClassVar[int] = 503


class ShuttingDown(Cancelled):
    """The worker takes nothing new; another may."""

    status: ClassVar[int] = 503
    retryable = True


HttpError = Unauthorized | NoSuchPath | WrongMethod | BodyStalled | BodyTooLarge | NotJson | Loading | ShuttingDown


def status_of(answer: Json) -> int:
    """The status of an operation's answer: 200, or that of its error."""
    code = answer.get("error_code")
    if code is None:
        return 200
    if code == "model_failure" and answer["retryable"]:
        return LOST
    return STATUS[code]


def retry_after(status: int, answer: Json) -> int | None:
    """Whole seconds after which to try again; None where that does not help."""
    seconds = answer.get("details", {}).get("retry_after_s")
    if status in RETRY_AFTER_S and isinstance(seconds, int | float):
        return max(1, round(seconds))
    return RETRY_AFTER_S.get(status)
