"""Steps of a call: what a call asks its client to do, without knowing whether that blocks or awaits.

A call is a generator that yields steps, is sent the result of each, and returns its own result. An error of a step is
thrown into it, and so is an interrupt, at which a call may yield a last step to tidy up.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Send:
    """Send a request and wait for the `Reply`.

    Attributes:
        method: the HTTP method.
        url: the whole URL.
        timeout_s: maximum seconds to wait for the answer.
        limit_s: the timeout of the whole call, of which `timeout_s` is left; for messages.
        content: the body.
        headers: the headers, with the key, which a representation of the step leaves out.
    """

    method: str
    url: str
    timeout_s: float
    limit_s: float
    content: bytes | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Wait:
    """Wait for this many seconds."""

    seconds: float


@dataclass(frozen=True)
class Reply:
    """The answer to a `Send`.

    Attributes:
        status: the HTTP status.
        headers: the headers, with names in lower case.
        content: the body, decompressed.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)


Step = Send | Wait
Steps = Generator[Step, Any, T]
