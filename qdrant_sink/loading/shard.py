"""A shard: one of the equal parts of an input, which any number of machines load."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

SHARDS_MAX: Final = 1000
"""Maximum number of shards of a load: each has a record in the metadata of the collection."""

SHARD_RULE: Final = f"be I/N with 1 <= I <= N <= {SHARDS_MAX}, such as 3/8"
"""The rule of a shard in words, after "must"."""


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """One of the equal parts of an input.

    Attributes:
        index: number of the part, from 1.
        count: number of all parts.

    Raises:
        ValueError: the numbers are out of their limits.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count <= SHARDS_MAX:
            raise ValueError(f"a shard must {SHARD_RULE}, got {self}")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `3/8`.

        Raises:
            ValueError: the text is not a shard.
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None:
            raise ValueError(f"a shard must {SHARD_RULE}, got {text[:20]!r}")
        return cls(int(match[1]), int(match[2]))

    def load_of(self, name: str) -> str:
        """The id of the load of this shard.

        Args:
            name: name that all shards share.
        """
        return f"{name}{self._suffix}"

    def name_of(self, load: str) -> str:
        """The name that all shards share, from the id of the load of this shard."""
        return load.removesuffix(self._suffix)

    @property
    def _suffix(self) -> str:
        return f":{self.index}-of-{self.count}"
