"""The division of the memory of `MEMORY_BUDGET_MB`: parts of a fixed size, and the account of requests, with the rest.

The ceiling holds for all that clients can make the worker hold, beside the model. What a part takes is there whether
or not it is used, so that the sum never exceeds the ceiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from embedder import ConfigurationError

ACCOUNT_MIN_BYTES: Final = 32_000_000
"""Minimum memory of the account of requests in bytes: about one body of `BODY_MAX_BYTES`."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the memory with a fixed size.

    Attributes:
        name: what takes it.
        count: maximum number of those.
        unit_bytes: maximum memory of each in bytes.
        remedy: the setting that makes the part smaller; empty if there is none.
    """

    name: str
    count: int
    unit_bytes: int
    remedy: str = ""

    @property
    def size_bytes(self) -> int:
        """Maximum memory of all of them in bytes."""
        return self.count * self.unit_bytes


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The division of the memory.

    Attributes:
        ceiling_bytes: maximum of all parts and the account together (`MEMORY_BUDGET_MB`).
        parts: the parts with a fixed size.
    """

    ceiling_bytes: int
    parts: Sequence[Part]

    @property
    def account_bytes(self) -> int:
        """Memory that requests may reserve together in bytes."""
        return self.ceiling_bytes - sum(part.size_bytes for part in self.parts)

    def extended(self, parts: Sequence[Part]) -> MemoryPlan:
        """The plan with further parts, which the account gives up."""
        return replace(self, parts=(*self.parts, *parts))

    def check(self) -> None:
        """Check that the account has room for requests.

        Raises:
            ConfigurationError: it has not.
        """
        if self.account_bytes < ACCOUNT_MIN_BYTES:
            remedies = " or ".join(dict.fromkeys(part.remedy for part in self.parts if part.remedy))
            raise ConfigurationError(
                f"MEMORY_BUDGET_MB must leave at least {_mb(ACCOUNT_MIN_BYTES)} for requests, got {self}; raise it"
                + (f", or lower {remedies}" if remedies else "")
            )

    def __str__(self) -> str:
        """The plan in one line."""
        parts = "".join(f" - {_mb(part.size_bytes)} ({part.name})" for part in self.parts)
        return f"{_mb(self.account_bytes)} = {_mb(self.ceiling_bytes)}{parts}"


def _mb(size_bytes: int) -> str:
    return f"{round(size_bytes / 1e6)} MB"
