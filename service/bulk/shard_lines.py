"""The lines of one shard of an input, which any number of machines divide among them without speaking to each other."""

from __future__ import annotations

import zlib
from collections.abc import Hashable
from uuid import UUID

from qdrant_sink.loading import Shard
from service.bulk.line import BadLine, Line


class ShardLines:
    """Chooses the lines of a shard, and counts those of the whole input.

    A line belongs to the shard that a hash of its point gives, so that all lines of one point meet in one shard.

    Args:
        shard: the shard; None for the whole input.
        scope: name from which ids are derived.

    Attributes:
        read: number of lines of the whole input up to now.
    """

    def __init__(self, shard: Shard | None, scope: str) -> None:
        self._shard = shard
        self._scope = scope
        self.read = 0

    def has(self, line: Line | BadLine) -> bool:
        """Whether a line belongs to the shard. Each line of the input must be asked for once."""
        self.read += not (isinstance(line, BadLine) and line.is_part)
        if self._shard is None:
            return True
        key = line.number if isinstance(line, BadLine) else line.key(self._scope)
        return index_of(key, self._shard.count) == self._shard.index


def index_of(key: Hashable, count: int) -> int:
    """The number of the shard of a point, from 1.

    Args:
        key: `Line.key`. A line whose id is invalid belongs to the shard of its number, on all machines alike, where its
            file may have different names.
        count: number of shards.

    Raises:
        TypeError: the key is that of no line.
    """
    match key:
        case UUID():
            content = key.bytes
        case int():
            content = key.to_bytes(8)
        case (_, int(number)):
            content = number.to_bytes(8)
        case _:
            raise TypeError("the key of a line is an id, or its file and its number")
    return zlib.crc32(content) % count + 1
