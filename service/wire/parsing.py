"""Parsing of JSON values into requests, with an error that names the invalid fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from embedder import InvalidRequest
from qdrant_sink import kind_of
from service.validation import field_error, invalid_field, is_unicode, shown
from service.wire.fields import Limits
from service.wire.requests import CountRequest, DeleteRequest, EmbedRequest, ScoreRequest, SearchRequest

Valid = TypeVar("Valid", bound=BaseModel)

_MESSAGE_ERRORS_MAX = 3
"""Maximum field errors in the message of an error."""

_DETAILS_ERRORS_MAX = 20
"""Maximum field errors in the details of an error."""

Request = EmbedRequest | SearchRequest | CountRequest | DeleteRequest | ScoreRequest

_OPERATIONS: Mapping[str, type[Request]] = {
    "embed": EmbedRequest,
    "search": SearchRequest,
    "count": CountRequest,
    "delete": DeleteRequest,
    "score": ScoreRequest,
}


def parse(raw: object, limits: Limits) -> Request:
    """Parse the request in a job's input.

    Raises:
        InvalidRequest: the input is invalid. The message names up to three fields, `fields` up to twenty.
    """
    if not isinstance(raw, dict):
        raise InvalidRequest(f"input must be an object, got {kind_of(raw)}")
    operation = raw.get("operation", "embed")
    if not isinstance(operation, str) or operation not in _OPERATIONS:
        got = f"'{operation[:32]}'" if isinstance(operation, str) and is_unicode(operation) else kind_of(operation)
        raise invalid_field("operation", f"must be one of {', '.join(_OPERATIONS)}, got {got}")
    return validated(_OPERATIONS[operation], raw, limits)


def request_type(operation: str) -> type[Request]:
    """The request type of an operation.

    Raises:
        KeyError: the operation is unknown.
    """
    return _OPERATIONS[operation]


def validated(kind: type[Valid], raw: object, limits: Limits | None = None) -> Valid:
    """Validate a value as a request type.

    Raises:
        InvalidRequest: the value is invalid. The message names up to three fields, `fields` up to twenty.
    """
    if not isinstance(raw, dict):
        raise InvalidRequest(f"input must be an object, got {kind_of(raw)}")
    try:
        return kind.model_validate(raw, context=limits)
    except ValidationError as error:
        # Unknown fields come first: a misspelt name is usually why the right field is missing.
        errors = sorted(error.errors(include_url=False), key=lambda details: details["type"] != "extra_forbidden")
        fields = [field_error(details) for details in errors[:_DETAILS_ERRORS_MAX]]
        message = "; ".join(field.message for field in fields[:_MESSAGE_ERRORS_MAX])
        if len(errors) > _MESSAGE_ERRORS_MAX:
            message += f" (and {len(errors) - _MESSAGE_ERRORS_MAX} more)"
        raise InvalidRequest(message, fields=fields) from None


def completed(raw: object, operation: str, *, passages: bool, path: str) -> object:
    """Complete an HTTP body to the input of a job, with the operation of its path.

    Args:
        raw: the body.
        operation: the operation of the path.
        passages: whether texts are passages by default and a `qdrant` block is required.
        path: the path, for the message of an error.

    Raises:
        InvalidRequest: the body names another operation, or lacks a required `qdrant` block.
    """
    if not isinstance(raw, dict):
        return raw
    if raw.get("operation", operation) != operation:
        raise invalid_field("operation", f"must be '{operation}' or left out on {path}, got {shown(raw['operation'])}")
    if passages and raw.get("qdrant") is None:
        raise invalid_field("qdrant", f"is required on {path}")
    defaults = {"isPassage": True} if passages else {}
    return {**defaults, **raw, "operation": operation}


def operation_name(raw: object) -> str:
    """The operation of a job's input, or `unknown`; the result is from a fixed set."""
    if not isinstance(raw, dict):
        return "unknown"
    operation = raw.get("operation", "embed")
    return operation if isinstance(operation, str) and operation in _OPERATIONS else "unknown"


class _Timings(BaseModel):
    model_config = ConfigDict(strict=True)

    timings: bool


def without_timings(raw: object) -> object:
    """A job's input without `timings`, a field of every operation.

    Raises:
        InvalidRequest: `timings` is not a boolean.
    """
    if not isinstance(raw, dict) or "timings" not in raw:
        return raw
    validated(_Timings, {"timings": raw["timings"]})
    return {key: value for key, value in raw.items() if key != "timings"}
