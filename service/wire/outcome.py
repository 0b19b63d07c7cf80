"""The outcome of a request: the JSON of its answer, and the numbers to count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from service.wire.body import Body
from service.wire.streamed import Streamed
from service.wire.values import Values

Content = Body | Values
"""The JSON of an answer, as bytes or as values."""

Sent = Body | Streamed
"""The JSON of an answer as bytes, with or without a size that is known before."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a successful request.

    Attributes:
        content: the JSON of the result.
        tokens: number of embedded tokens.
        rejected: the error code of each rejected point.
        warnings: warnings in printable ASCII, for which the JSON of the result has no field.
    """

    content: Content | Streamed
    tokens: int = 0
    rejected: Sequence[str] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer that a transport sends.

    Attributes:
        content: the JSON of a result or of an error.
        status: the HTTP status.
        code: the error code; None for a success.
        retry_after_s: whole seconds to wait before a retry; None if a retry does not help.
        warnings: warnings in printable ASCII, which HTTP sends in a header.
    """

    content: Content | Streamed
    status: int = 200
    code: str | None = None
    retry_after_s: int | None = None
    warnings: Sequence[str] = ()

    @property
    def written(self) -> Sent:
        """The JSON as bytes, in parts."""
        return Body.of(self.content.json) if isinstance(self.content, Values) else self.content

    @property
    def body(self) -> bytes:
        """The JSON as bytes, in one piece."""
        return bytes(self.written)

    @property
    def json(self) -> dict[str, Any]:
        """The JSON as values."""
        return self.content.json if isinstance(self.content, Values) else orjson.loads(self.body)
