"""Reading of HTTP answers: JSON, or the error that it stands for."""

from __future__ import annotations

from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from bge_m3_qdrant_client.answers import Answer
from bge_m3_qdrant_client.errors import Unauthorized, UnexpectedAnswer, worker_error
from bge_m3_qdrant_client.steps import Reply

A = TypeVar("A", bound=Answer)

_TRANSIENT: Final = frozenset({408, 425, 429, 502, 503, 504, *range(520, 525)})
"""Statuses with which proxies and platforms say that the same request may succeed later."""

_UNSENT: Final = frozenset({425, 429, 503})
"""Those of them with which they say that no worker has the request."""


def parsed(reply: Reply) -> Any:
    """The JSON object or list of a successful answer.

    Raises:
        WorkerError: the worker answered an error.
        UnexpectedAnswer: the answer is not one of the worker's.
    """
    try:
        value = from_json(reply.content)
    except ValueError:
        value = None
    if reply.status < 300 and isinstance(value, (dict, list)):
        return value
    seconds = retry_after_s(reply)
    if isinstance(value, dict) and isinstance(value.get("error_code"), str):
        identity = reply.headers.get("x-request-id")
        raise worker_error(value, status=reply.status, retry_after_s=seconds, request_id=identity)
    if reply.status in {401, 403}:
        raise Unauthorized(f"the key is missing or wrong (status {reply.status})", status=reply.status)
    raise UnexpectedAnswer(
        f"the answer, status {reply.status} with {len(reply.content)} bytes, is not one of the worker's",
        status=reply.status,
        sent=reply.status not in _UNSENT,
        retryable=reply.status in _TRANSIENT,
        retry_after_s=seconds,
    )


def validated(kind: type[A], value: Any) -> A:
    """The answer as a model.

    Raises:
        UnexpectedAnswer: a field is missing or has another type.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        fields = [".".join(map(str, part["loc"])) for part in error.errors(include_input=False, include_context=False)]
    raise UnexpectedAnswer(
        "the answer is not one of the worker's; perhaps the address is that of another service. "
        f"Missing or invalid in {kind.__name__}: {', '.join(filter(None, fields[:3])) or 'everything'}"
    )


def retry_after_s(reply: Reply) -> float | None:
    """Seconds of the header `Retry-After`, which is a number or a date; None without one."""
    header = reply.headers.get("retry-after", "").strip()
    if header.isdecimal():
        return float(header)
    try:
        at = parsedate_to_datetime(header)
    except (TypeError, ValueError):
        return None
    now = datetime.now(timezone.utc) if at.tzinfo else datetime.now(timezone.utc).replace(tzinfo=None)
    return max(0.0, (at - now).total_seconds())
