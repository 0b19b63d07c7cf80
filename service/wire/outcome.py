"""What the wire makes of a request: the JSON of its answer, and what is counted of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """A result as JSON.

    Attributes:
        body: a compact JSON object.
        tokens: tokens that were embedded.
        rejected: per point that was not stored, the code of the reason.
    """

    body: bytes
    tokens: int = 0
    rejected: Sequence[str] = ()

    def with_member(self, name: str, value: bytes) -> bytes:
        """The body with one more member, given as JSON."""
        separator = b"," if len(self.body) > len(b"{}") else b""
        return b'%b%b"%b":%b}' % (self.body[:-1], separator, name.encode(), value)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a transport sends.

    Attributes:
        body: compact JSON.
        status: of HTTP.
        code: the error's code; None where the request succeeded.
        retry_after_s: whole seconds after which a retry can help; None where none can.
    """

    body: bytes
    status: int = 200
    code: str | None = None
    retry_after_s: int | None = None
