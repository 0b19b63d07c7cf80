"""Parsing of JSON values into requests, with an error that names the invalid fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from embedder import FieldError, InvalidRequest
from qdrant_sink import kind_of
from service.validation import NEEDED, field_error, invalid_field, is_unicode, shown
from service.wire.field_names import unknown_field, unknown_names
from service.wire.fields import FIELDS_MAX, Limits
from service.wire.load_requests import LoadRequest
from service.wire.read_requests import CollectionsRequest, ReadPointsRequest
from service.wire.requests import CountRequest, DeleteRequest, EmbedRequest, ScoreRequest, SearchRequest

Valid = TypeVar("Valid", bound=BaseModel)

_MESSAGE_ERRORS_MAX = 3
"""Maximum field errors in the message of an error."""

_DETAILS_ERRORS_MAX = 20
"""Maximum field errors in the details of an error."""

_UNKNOWN: Final = "extra_forbidden"
"""Pydantic's error type of an unknown field."""

_DEFAULT_OPERATION: Final = "embed"

Request = (
    EmbedRequest
    | SearchRequest
    | CountRequest
    | DeleteRequest
    | ScoreRequest
    | ReadPointsRequest
    | CollectionsRequest
    | LoadRequest
)

_OPERATIONS: Mapping[str, type[Request]] = {
    "embed": EmbedRequest,
    "search": SearchRequest,
    "count": CountRequest,
    "delete": DeleteRequest,
    "score": ScoreRequest,
    "points": ReadPointsRequest,
    "collections": CollectionsRequest,
    "load": LoadRequest,
}


def parse(raw: object, limits: Limits) -> Request:
    """Parse the request in a job's input.

    Raises:
        InvalidRequest: the input is invalid. The message names up to three fields, `fields` up to twenty.
    """
    if not isinstance(raw, dict):
        raise InvalidRequest(f"input must be an object, got {kind_of(raw)}")
    operation = _operation(raw)
    if not isinstance(operation, str) or operation not in _OPERATIONS:
        got = f"'{operation[:32]}'" if isinstance(operation, str) and is_unicode(operation) else kind_of(operation)
        raise invalid_field("operation", f"must be one of {', '.join(_OPERATIONS)}, got {got}")
    return validated(_OPERATIONS[operation], raw, limits)


def _operation(raw: Mapping[str, Any]) -> object:
    given = raw.get("operation")
    return _DEFAULT_OPERATION if given is None else given


def request_type(operation: str) -> type[Request]:
    """The request type of an operation.

    Raises:
        KeyError: the operation is unknown.
    """
    return _OPERATIONS[operation]


def validated(kind: type[Valid], raw: object, limits: Limits | None = None, *, root: str = "input") -> Valid:
    """Validate a value as a request type.

    Args:
        kind: the type.
        raw: the value.
        limits: the limits of the worker, which some types need.
        root: name of the whole value in errors.

    Raises:
        InvalidRequest: the value is invalid. The message names up to three fields, `fields` up to twenty.
    """
    if not isinstance(raw, dict):
        raise InvalidRequest(f"{root} must be an object, got {kind_of(raw)}")
    try:
        return kind.model_validate(raw, context=limits)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    unknown = [details["loc"] for details in errors if details["type"] == _UNKNOWN]
    known = _without(raw, unknown)
    if unknown:  # rules between fields are only checked without unknown fields
        errors = _errors(kind, known, limits)
    errors += _unchecked_needs(kind, known, errors, limits)
    needed = [field_error(details) for details in errors if details["type"] in NEEDED]
    invalid = [details for details in errors if details["type"] not in NEEDED]
    # Required fields come first, then unknown ones: a misspelt name is usually why the required one is missing.
    fields = needed + [unknown_field(location, kind, raw) for location in unknown[:_DETAILS_ERRORS_MAX]]
    count = len(needed) + len(unknown) + len(invalid)
    fields += [field_error(details) for details in invalid[:_DETAILS_ERRORS_MAX]]
    raise _invalid(fields[:_DETAILS_ERRORS_MAX], count)


def _errors(kind: type[BaseModel], raw: object, limits: Limits | None) -> list[ErrorDetails]:
    try:
        kind.model_validate(raw, context=limits)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _unchecked_needs(
    kind: type[BaseModel], raw: Mapping[str, Any], errors: Sequence[ErrorDetails], limits: Limits | None
) -> list[ErrorDetails]:
    """The errors of needed fields that validation has not looked for, because other fields are invalid."""
    invalid = [details["loc"][:1] for details in errors if details["loc"]]
    if not invalid or any(details["type"] == "needed" for details in errors):
        return []
    return [
        details
        for details in _errors(kind, _without(raw, invalid), limits)
        if details["type"] == "needed" and all(raw.get(field) is None for field in details["ctx"]["fields"])
    ]


def _without(raw: Mapping[str, Any], locations: Iterable[Sequence[int | str]]) -> Mapping[str, Any]:
    """A copy of a request without the fields at these locations."""
    copies: dict[Sequence[int | str], dict[str, Any]] = {(): dict(raw)}
    for location in locations:
        for depth in range(1, len(location)):
            path, block = location[:depth], copies[location[: depth - 1]]
            if path not in copies:  # a block is copied once, however many of its fields go
                block[str(path[-1])] = copies[path] = dict(block[str(path[-1])])
        copies[location[:-1]].pop(str(location[-1]), None)
    return copies[()]


def _invalid(fields: Sequence[FieldError], count: int) -> InvalidRequest:
    message = "; ".join(field.message for field in fields[:_MESSAGE_ERRORS_MAX])
    if count > _MESSAGE_ERRORS_MAX:
        message += f" (and {count - _MESSAGE_ERRORS_MAX} more)"
    return InvalidRequest(message, fields=fields)


def completed(raw: object, operation: str, *, passages: bool, path: str) -> dict[str, Any]:
    """Complete an HTTP body to the input of a job, with the operation of its path.

    Args:
        raw: the body.
        operation: the operation of the path.
        passages: whether texts are passages by default and a `qdrant` block is required.
        path: the path, for the message of an error.

    Raises:
        InvalidRequest: the body is no object, names another operation, has the queue's `input` around its fields, or
            lacks a required `qdrant` block.
    """
    if not isinstance(raw, dict):
        raise InvalidRequest(f"the body must be an object, got {kind_of(raw)}")
    if len(raw) > FIELDS_MAX:  # before any is copied, or named in an error
        raise InvalidRequest(f"the body must have at most {FIELDS_MAX} fields, got {len(raw)}")
    raw = {name: value for name, value in raw.items() if value is not None}
    if isinstance(raw.get("input"), dict):
        message = "unknown field 'input': over HTTP the fields of a request stand at the top of the body, without it"
        raise _invalid([FieldError("input", message)], 1)
    if raw.get("operation", operation) != operation:
        raise invalid_field("operation", f"must be '{operation}' or left out on {path}, got {shown(raw['operation'])}")
    if passages and "qdrant" not in raw:
        kind = request_type(operation)
        unknown = unknown_names(kind, raw)
        fields = [FieldError("qdrant", f"qdrant is required on {path}")]
        fields += [unknown_field((name,), kind, raw) for name in unknown[: _DETAILS_ERRORS_MAX - 1]]
        raise _invalid(fields, 1 + len(unknown))
    defaults = {"isPassage": True} if passages else {}
    return {**defaults, **raw, "operation": operation}


def operation_name(raw: object) -> str:
    """The operation of a job's input, or `unknown`; the result is from a fixed set."""
    if not isinstance(raw, dict):
        return "unknown"
    operation = _operation(raw)
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
    if raw["timings"] is not None:
        validated(_Timings, {"timings": raw["timings"]})
    return {key: value for key, value in raw.items() if key != "timings"}
