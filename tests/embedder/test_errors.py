"""The codes of the wire are a promise, and no message of a stranger reaches a log."""

from __future__ import annotations

import re

import pytest

from embedder import errors
from embedder.errors import ConfigurationError, Internal, InvalidRequest, StoreError, WorkerError, whereabouts

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


def family(base: type[WorkerError]) -> set[type[WorkerError]]:
    """All classes below a class that are declared beside it."""
    below = {one for one in base.__subclasses__() if one.__module__ == errors.__name__}
    return below.union(*(family(one) for one in below))


def test_the_codes_are_those_of_the_contract() -> None:
    """A caller may rely on these codes: no class has another."""
    assert {one.__name__: one.code for one in family(WorkerError) - {StoreError}} == CODES


def test_only_a_wait_can_help_where_it_says_so() -> None:
    """A retry can succeed for a full queue, an absent store and, on another worker, a lost device; for nothing else."""
    assert {one.__name__ for one in family(WorkerError) if one.retryable} == {
        "Overloaded",
        "StoreUnavailable",
        "DeviceLost",
    }


def test_the_docstring_draws_every_class() -> None:
    """The tree in the module's documentation is the tree."""
    for one in family(WorkerError):
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
