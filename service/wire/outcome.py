"""What the wire makes of a request: the JSON of its answer, and what is counted of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from service.wire.body import Body
from service.wire.values import Values

Content = Body | Values
"""A result as a transport takes it: bytes, or JSON values."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A result as JSON.

    Attributes:
        content: the result.
        tokens: tokens that were embedded.
        rejected: per point that was not stored, the code of the reason.
    """

    content: Content
    tokens: int = 0
    rejected: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a transport sends.

    Attributes:
        content: a result or an error.
        status: of HTTP.
        code: the error's code; None where the request succeeded.
        retry_after_s: whole seconds after which a retry can help; None where none can.
    """

    content: Content
    status: int = 200
    code: str | None = None
    retry_after_s: int | None = None

    @property
    def written(self) -> Body:
        """The JSON as bytes, in parts."""
        return self.content if isinstance(self.content, Body) else Body.of(self.content.json)

    @property
    def body(self) -> bytes:
        """The JSON as bytes, in one piece."""
        return bytes(self.written)

    @property
    def json(self) -> dict[str, Any]:
        """The JSON as values."""
        return self.content.json if isinstance(self.content, Values) else orjson.loads(self.body)
