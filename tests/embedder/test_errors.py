"""Errors carry their details as values, and no message of a foreign exception reaches a log."""

from __future__ import annotations

import re

import pytest

from embedder import (
    ConfigurationError,
    FieldError,
    Internal,
    InvalidRequest,
    NotFound,
    Overloaded,
    WorkerError,
    errors,
    whereabouts,
)


def family(base: type[WorkerError]) -> set[type[WorkerError]]:
    """Return all subclasses that the module declares."""
    below = {error for error in base.__subclasses__() if error.__module__ == errors.__name__}
    return below.union(*(family(error) for error in below))


def test_only_a_wait_can_help_where_it_says_so() -> None:
    """Only a full queue and a lost device are retryable."""
    assert {error.__name__ for error in family(WorkerError) if error.retryable} == {"Overloaded", "DeviceLost"}


def test_the_docstring_draws_every_class() -> None:
    """The tree in the module's documentation lists every class."""
    drawn = set(re.findall(r"── (\w+) ", errors.__doc__ or ""))
    assert drawn == {error.__name__ for error in family(WorkerError)}


def test_a_refusal_to_start_is_no_answer() -> None:
    """A configuration error is never the answer to a job."""
    assert not issubclass(ConfigurationError, WorkerError)


def test_an_error_can_be_reworded() -> None:
    """A copy with another message keeps the type and details, and the original is unchanged."""
    missing = NotFound("point 3 is missing", collection="docs", ids=[3])
    reworded = missing.saying("1 of 4 points is missing")
    assert (type(reworded), reworded.message, str(reworded)) == (
        NotFound,
        "1 of 4 points is missing",
        "1 of 4 points is missing",
    )
    assert (reworded.collection, reworded.ids) == ("docs", (3,))
    assert missing.message == "point 3 is missing"


def test_an_error_can_name_its_field() -> None:
    """The field path precedes the message, and an invalid request also has it as a value."""
    assert Overloaded("retry later").at("texts[3]").message == "texts[3]: retry later"
    error = InvalidRequest("must not be empty").at("texts[3]")
    assert error.message == "texts[3]: must not be empty"
    assert error.fields == (FieldError("texts[3]", "texts[3]: must not be empty"),)


def _raise(message: str) -> None:
    raise ValueError(message)


def test_whereabouts_never_holds_the_message() -> None:
    """The log gets the type and line of a foreign exception, never its message, which may quote a text."""
    with pytest.raises(ValueError, match="secret") as caught:
        _raise("the secret words of a user")
    assert "secret" not in whereabouts(caught.value)
    assert re.fullmatch(r"ValueError in _raise \(embedder/test_errors\.py:\d+\)", whereabouts(caught.value))


def test_whereabouts_of_an_error_that_was_never_raised() -> None:
    """An exception without a traceback is identified by its type."""
    assert whereabouts(Internal("secret")) == "Internal"
