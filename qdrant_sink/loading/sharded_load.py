"""A load that is divided into shards: what its records have counted together, and what is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qdrant_sink.loading.content import LoadContent
from qdrant_sink.loading.record import LoadRecord
from qdrant_sink.loading.shard import Shard


@dataclass(frozen=True, slots=True)
class ShardedLoad:
    """The shards of one load, by their records that are in force.

    Attributes:
        name: name that all shards share.
        count: number of the shards.
        records: their records, in the order of the shards; those that were never begun have none.
    """

    name: str
    count: int
    records: Sequence[LoadRecord]

    @property
    def not_begun(self) -> tuple[Shard, ...]:
        """The shards that were never begun."""
        begun = {record.shard for record in self.records}
        shards = (Shard(index, self.count) for index in range(1, self.count + 1))
        return tuple(shard for shard in shards if shard not in begun)

    @property
    def not_ended(self) -> tuple[LoadRecord, ...]:
        """The shards that were begun, and have not stored or rejected all their lines."""
        return tuple(record for record in self.records if not record.has_ended)

    @property
    def not_complete(self) -> tuple[LoadRecord, ...]:
        """The shards that have ended without storing all their lines as they were given."""
        return tuple(record for record in self.records if record.has_ended and not record.complete)

    @property
    def inputs(self) -> dict[int, tuple[Shard, ...]]:
        """The shards that have ended, by the number of lines that each read of the whole input."""
        inputs: dict[int, list[Shard]] = defaultdict(list)
        for record in self.records:
            if record.has_ended and record.shard is not None:
                inputs[record.read].append(record.shard)
        return {read: tuple(shards) for read, shards in sorted(inputs.items())}

    @property
    def contents(self) -> dict[LoadContent, tuple[Shard, ...]]:
        """The shards by what decides the content of their points, without those of which it is unknown."""
        contents: dict[LoadContent, list[Shard]] = defaultdict(list)
        for record in self.records:
            if record.content is not None and record.shard is not None:
                contents[record.content].append(record.shard)
        return {content: tuple(shards) for content, shards in contents.items()}

    @property
    def of_unknown_content(self) -> tuple[Shard, ...]:
        """The shards that do not say what decides the content of their points."""
        return tuple(record.shard for record in self.records if record.content is None and record.shard is not None)

    @property
    def has_same_content(self) -> bool:
        """Whether no two shards say that the content of their points is decided differently."""
        return len(self.contents) <= 1

    @property
    def lines(self) -> int:
        """Number of lines of the shards that have ended."""
        return sum(record.lines for record in self.records if record.has_ended)

    @property
    def points(self) -> int:
        """Number of points that the shards which have ended keep in the collection. No two shards have the same."""
        return sum(record.points for record in self.records if record.has_ended)

    @property
    def has_same_input(self) -> bool:
        """Whether all shards read the same number of lines, each of which belongs to one of them."""
        return len(self.inputs) == 1 and self.lines == next(iter(self.inputs))

    @property
    def is_complete(self) -> bool:
        """Whether every line of the input is stored, as far as the records say."""
        is_whole = not (self.not_begun or self.not_ended or self.not_complete)
        return is_whole and self.has_same_input and self.has_same_content

    def is_unfinished(self, points: int) -> bool:
        """Whether lines or points are missing. Rejected lines of a load that is not divided are no reason to wait.

        Args:
            points: number of points in the collection.
        """
        if self.count == 1 and not self.not_ended:
            return self.points > points
        return not self.is_complete or self.points > points


def sharded_loads(records: Iterable[LoadRecord]) -> tuple[ShardedLoad, ...]:
    """The loads that are divided into shards.

    Args:
        records: records in force. Those of other loads are ignored.
    """
    shards: dict[tuple[str, int], list[tuple[int, LoadRecord]]] = defaultdict(list)
    for record in records:
        if record.shard is not None:
            shards[record.shard.name_of(record.load), record.shard.count].append((record.shard.index, record))
    return tuple(
        ShardedLoad(name, count, tuple(record for _, record in sorted(numbered, key=lambda shard: shard[0])))
        for (name, count), numbered in sorted(shards.items())
    )


def lacking_lines(records: Sequence[LoadRecord], *, finishing: bool) -> tuple[LoadRecord, ...]:
    """The records of loads whose lines are missing in the collection.

    Args:
        records: records in force.
        finishing: whether this is the end of all shards. At the end of another load every sharded one counts as
            unfinished, because only its end compares the counts of its shards.
    """
    unfinished = [load for load in sharded_loads(records) if not (finishing and load.is_complete)]
    holders = {record.holder for load in unfinished for record in load.records}
    return tuple(record for record in records if record.lacks_lines or record.holder in holders)
