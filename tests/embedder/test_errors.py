"""The codes of the wire are a promise, and no message of a stranger reaches a log."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from embedder import errors
from embedder.errors import ConfigurationError, Internal, InvalidRequest, StoreError, WorkerError, whereabouts
from service import statuses

ROOT = Path(__file__).parents[2]

CODES = {
    "InvalidRequest": "invalid_request",
    "NotFound": "not_found",
    "Overloaded": "overloaded",
    "ResponseTooLarge": "response_too_large",
    "ModelFailure": "model_failure",
    "DeviceLost": "model_failure",
    "StoreUnavailable": "store_unavailable",
    "StoreRejected": "store_rejected",
    "NothingTaken": "store_rejected",
    "AccessDenied": "store_rejected",
    "SchemaMismatch": "schema_mismatch",
    "DuplicateId": "duplicate_id",
    "Cancelled": "cancelled",
    "Internal": "internal",
}
"""As the job contract lists them."""

OVER_HTTP = {
    "Unauthorized": "invalid_request",
    "NoSuchPath": "not_found",
    "WrongMethod": "invalid_request",
    "BodyStalled": "invalid_request",
    "BodyTooLarge": "invalid_request",
    "NotJson": "invalid_request",
    "Loading": "overloaded",
    "ShuttingDown": "cancelled",
}
"""Of the errors that only the HTTP door knows: no code is its own."""


def family(base: type[WorkerError], *modules: str) -> set[type[WorkerError]]:
    """All classes below a class that these modules declare."""
    below = {one for one in base.__subclasses__() if one.__module__ in modules}
    return below.union(*(family(one, *modules) for one in base.__subclasses__()))


EVERYWHERE = family(WorkerError, errors.__name__)
ALL = family(WorkerError, errors.__name__, statuses.__name__)


def test_the_codes_are_those_of_the_contract() -> None:
    """A caller may rely on these codes: no class has another, over HTTP neither."""
    assert {one.__name__: one.code for one in ALL - {StoreError}} == CODES | OVER_HTTP


def test_only_a_wait_can_help_where_it_says_so() -> None:
    """The same request can succeed later, or on another worker, for these errors and for nothing else.

    A full queue, an absent store, a lost device; over HTTP a model that loads, a worker that ends, a stalled body.
    """
    assert {one.__name__ for one in ALL if one.retryable} == {
        "Overloaded",
        "StoreUnavailable",
        "DeviceLost",
        "Loading",
        "ShuttingDown",
        "BodyStalled",
    }


def test_the_readme_says_of_every_code_whether_a_retry_helps() -> None:
    """Its table has every code, and calls retryable what is: always, never, or in the case it names."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Errors\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table.partition("|---|")[2], re.MULTILINE))
    assert set(rows) == {one.code for one in ALL}
    for code, said in rows.items():
        retryable = {one.retryable for one in ALL - {StoreError} if one.code == code}
        assert {"yes": {True}, "no": {False}}.get(said, {True, False}) == retryable, code


def test_the_docstring_draws_every_class() -> None:
    """The tree in the module's documentation is the tree; what only HTTP knows is drawn nowhere."""
    for one in EVERYWHERE:
        assert re.search(rf"── {one.__name__}\b", errors.__doc__ or "")
        if one is not StoreError:
            assert re.search(rf"── {one.__name__} +{one.code} ", errors.__doc__ or "")


def test_a_refusal_to_start_is_no_answer() -> None:
    """A configuration error cannot be mistaken for the answer to a job."""
    assert not issubclass(ConfigurationError, WorkerError)


def test_details_cannot_be_changed_afterwards() -> None:
    """The details of an error are a copy of their own, and read only."""
    given = {"field": "texts"}
    error = InvalidRequest("texts: too many", details=given)
    given["field"] = "other"
    assert dict(error.details) == {"field": "texts"}
    assert (error.message, str(error)) == ("texts: too many", "texts: too many")
    with pytest.raises(TypeError):
        error.details["field"] = "other"  # type: ignore[index]


def _raise(message: str) -> None:
    raise ValueError(message)


def test_whereabouts_never_holds_the_message() -> None:
    """The log learns the type and the line of a stranger's exception, never its message, which may quote a text."""
    with pytest.raises(ValueError, match="secret") as caught:
        _raise("the secret words of a user")
    assert "secret" not in whereabouts(caught.value)
    assert re.fullmatch(r"ValueError in _raise \(embedder/test_errors\.py:\d+\)", whereabouts(caught.value))


def test_whereabouts_of_an_error_that_was_never_raised() -> None:
    """An exception without a traceback is named by its type."""
    assert whereabouts(Internal("secret")) == "Internal"
