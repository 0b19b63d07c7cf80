"""The interface of a contender, and its configuration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Phase = Callable[[str], None]
"""Called once with the name of each phase of the start, when it ends."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The checkpoint to load, and how.

    Attributes:
        checkpoint: a directory in the published layout.
        device: `cpu` or `cuda:N`.
        dtype: of the packed engine; the others have their own.
        lanes: of the packed engine.
    """

    checkpoint: Path
    device: str
    dtype: str
    lanes: int


class Contender(Protocol):
    """A loaded model that answers requests from one event loop."""

    @property
    def dtype(self) -> str:
        """The type of its matrix products."""
        ...

    @property
    def detail(self) -> str:
        """The contender's own report of its start; may be empty."""
        ...

    @property
    def cancels(self) -> bool:
        """Whether cancelling a request stops its work."""
        ...

    @property
    def attention_copies(self) -> int:
        """Number of [heads, tokens, tokens] float32 tensors held at the same time; 0 without such tensors."""
        ...

    async def embed(self, texts: Sequence[str], *, query: bool, max_length: int, dense_only: bool = False) -> None:
        """One request: all three kinds of vectors of the texts, or dense ones alone."""
        ...

    async def close(self) -> None:
        """Stop."""
        ...


Load = Callable[[Setup, Phase], Awaitable[Contender]]


class NotInstalledError(Exception):
    """The library of a contender is not there."""
