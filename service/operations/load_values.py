"""What a load into a collection asks for, and how it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from qdrant_sink.loading import LoadContent, LoadRecord, Shard, ShardedLoad

INTERRUPTED: Final = "interrupted; run the same command again to continue"
"""What a load, a copy or a completion says that was ended before its end."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """A load into a collection.

    Attributes:
        collection: name of the collection itself.
        load_id: id of the load. The next run of the same load has the same id, and goes on where this one ended.
        alias: alias that is to lead to the collection when all loads are complete; None for none.
        defer_index: defer the graph even if the collection has points.
        has_lines: whether lines are loaded. Otherwise the collection is only finished, if no load is under way.
        shard: part of an input that is loaded; None for the whole. Shards are finished together by a load without
            lines.
        allow_empty: whether aliases move although the collection has no points and the one to which they lead has some.
        content: what decides the content of its points; None if it is unknown, or that of an earlier run of the load.
        keeps: whether points that exist are left unchanged.
    """

    collection: str
    load_id: str
    alias: str | None = None
    defer_index: bool = False
    has_lines: bool = True
    shard: Shard | None = None
    allow_empty: bool = False
    content: LoadContent | None = None
    keeps: bool = False


@dataclass(frozen=True, slots=True)
class LoadCounts:
    """What a load has counted.

    Attributes:
        read: lines of the whole input.
        lines: lines of this load.
        points: points of its lines in the collection.
    """

    read: int = 0
    lines: int = 0
    points: int = 0


LoadOutcome = Literal["finished", "left", "blocked", "stopped", "unfinished"]
"""How a load has ended; see `LoadEnd`."""


@dataclass(frozen=True, slots=True)
class LoadEnd:
    """How a load has ended.

    Attributes:
        outcome: `finished`: the graph is built and the aliases have moved. `left`: another load is under way, and
            finishes. `blocked`: the graph is built, and lines of some loads are missing, so no alias has moved.
            `stopped`: it was interrupted. `unfinished`: of a load without lines, shards are missing or another load is
            under way, and nothing was done.
        aliases: aliases that were moved.
        others: loads that are under way, or whose lines are missing, this one included.
        sharded: the loads that are divided into shards, of a load without lines.
        points: number of points in the collection, if there are such loads.
        kept: aliases that stay, because the collection has no points and the one to which they lead has some.
    """

    outcome: LoadOutcome
    aliases: Sequence[str] = ()
    others: Sequence[LoadRecord] = ()
    sharded: Sequence[ShardedLoad] = ()
    points: int = 0
    kept: Sequence[str] = ()


def described(record: LoadRecord) -> str:
    """A load for a person."""
    return f"load {record.load!r} (begun {record.began}, last sign of life {record.seen})"
