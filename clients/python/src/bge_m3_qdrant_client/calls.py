"""A call of an operation as a value, its JSON, and the time that it has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import PydanticSerializationError, to_json

from bge_m3_qdrant_client.errors import InvalidOption, TimedOut

Operation = Literal["embed", "ingest", "search", "score", "rerank", "count", "delete", "points", "collections", "load"]

Notify = Callable[[int], None]
"""Called with the number of points that are stored, skipped or rejected so far, while a job runs."""


@dataclass(frozen=True)
class Call:
    """A call of an operation.

    Attributes:
        operation: the operation.
        body: the request as JSON values.
        repeatable: whether a second request after a lost answer does no harm.
        job: whether the call may take longer than an answer is waited for, and therefore becomes a job.
        notify: callback for the progress of a job.
    """

    operation: Operation
    body: Mapping[str, Any]
    repeatable: bool = True
    job: bool = False
    notify: Notify | None = None


class Deadline:
    """The time by which a call must be answered.

    Args:
        timeout_s: seconds from now.

    Attributes:
        limit_s: the same.
    """

    def __init__(self, timeout_s: float) -> None:
        self.limit_s = timeout_s
        self._at = time.monotonic() + timeout_s

    @property
    def remaining_s(self) -> float:
        """Seconds that are left; at most 0 after the deadline."""
        return self._at - time.monotonic()

    def timeout_s(self) -> float:
        """Seconds that are left.

        Raises:
            TimedOut: none are left.
        """
        if (seconds := self.remaining_s) > 0:
            return seconds
        raise TimedOut(f"no answer within {self.limit_s:g} s (timeout)")


def encoded(value: object) -> bytes:
    """The compact JSON of a value, which may hold numbers of numpy, dates, UUIDs, dataclasses and pydantic models.

    Raises:
        InvalidOption: JSON cannot represent it.
    """
    try:
        return to_json(value, fallback=_plain)
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        # The message of the cause may quote a text.
        raise InvalidOption(f"the request has a value that JSON cannot represent ({type(error).__name__})") from None


def _plain(value: Any) -> Any:
    """The Python value of a number or an array of numpy."""
    return value.tolist()  # AttributeError of other values becomes a PydanticSerializationError
