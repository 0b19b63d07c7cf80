"""What is missing of a load that is divided into shards, in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from qdrant_sink.loading import LoadRecord, Shard, ShardedLoad
from service.operations.load_content import differences
from service.operations.load_values import LoadEnd, described

SHARDS_NAMED_MAX: Final = 20
"""Maximum shards that one message names."""


def shard_messages(end: LoadEnd) -> Iterator[str]:
    """What the loads that are divided into shards have counted, or lack, at the end of a load."""
    counts: dict[str, list[int]] = defaultdict(list)
    for load in end.sharded:
        counts[load.name].append(load.count)
        if end.outcome == "unfinished" or not load.is_complete:
            yield from gaps(load, end.points)
        else:
            yield stored(load, end.points)
        if end.outcome == "finished" and load.count > 1 and load.of_unknown_content:
            yield (
                f"load {load.name!r}: {_named(load.of_unknown_content)} did not record the options that decide what "
                "points contain, so these were not compared; make sure that all shards had the same"
            )
    if end.outcome == "unfinished":
        for other in end.others[:SHARDS_NAMED_MAX]:
            yield f"{described(other)} is under way: finish again when it has ended"
    for name, of_name in counts.items():
        if len(of_name) > 1:
            parts = " and in ".join(map(str, of_name))
            yield (
                f"load {name!r} was begun in {parts} shards, which is the same input twice; give up one of them with "
                f"--finish --drop-load {name}/{of_name[0]} or {name}/{of_name[-1]}"
            )


def gaps(load: ShardedLoad, points: int) -> Iterator[str]:
    """Why the shards of a load cannot be finished, with the way out. Empty if they can.

    Args:
        load: the load.
        points: number of points in the collection.
    """
    shards = "it" if load.count == 1 else "the shards"
    name = f"load {load.name!r} in {_shards(load)}"
    if load.not_begun:
        them = "it" if len(load.not_begun) == 1 else "them"
        yield (
            f"{name}: {_named(load.not_begun)} never began; run {them}, or give the missing lines up, so that the "
            f"alias moves without them, with --finish --drop-load {load.name}/{load.count}"
        )
    for record in load.not_ended[:SHARDS_NAMED_MAX]:
        what = "was interrupted" if record.state == "interrupted" else "has not ended"
        yield f"{name}: shard {record.shard} {what} (last sign of life {record.seen}); run it again if it has died"
    if load.not_complete:
        yield (
            f"{name}: {_counted(load.not_complete)}; correct the input and run {shards} again, or with the "
            "options that allow them"
        )
    if not load.has_same_content:
        yield (
            f"{name}: the shards were not loaded with the same options ({_options(load)}); run those of the wrong "
            "options again, with the same and without --insert-only"
        )
    if load.not_begun or load.not_ended:
        return
    if not load.has_same_input:
        if len(load.inputs) > 1:
            inputs = "; ".join(f"{read} lines by {_named(shards)}" for read, shards in load.inputs.items())
            yield f"{name}: the shards did not read the same input ({inputs}); run those of the wrong input again"
        else:
            yield (
                f"{name}: the shards have {load.lines} lines together, and the input has {next(iter(load.inputs))}; "
                "run all of them with the same --collection, --alias and input"
            )
    elif load.points > points:
        yield (
            f"{name}: the collection has {points} points, and the load has stored {load.points}; points were deleted "
            f"meanwhile, or the server has lost some: run {shards} again with --insert-only"
        )


def stored(load: ShardedLoad, points: int) -> str:
    """The counts of a load whose shards are complete.

    Args:
        load: the load.
        points: number of points in the collection.
    """
    text = f"load {load.name!r}: {_shards(load)}, {load.lines} lines, {load.points} points"
    others = points - load.points
    return f"{text}; the collection has {others} further points" if others else text


def _shards(load: ShardedLoad) -> str:
    return f"{load.count} shard{'s' if load.count > 1 else ''}"


def _named(shards: Sequence[Shard]) -> str:
    names = ", ".join(map(str, shards[:SHARDS_NAMED_MAX]))
    more = len(shards) - SHARDS_NAMED_MAX
    return f"shard{'s' if len(shards) > 1 else ''} {names}{f' and {more} more' if more > 0 else ''}"


def _options(load: ShardedLoad) -> str:
    """The options in which the shards of a load differ, and which of them had which."""
    told = differences(list(load.contents))
    fields = (
        f"{field} " + ", ".join(f"{value} by {_named(shards)}" for value, shards in _grouped(values, load))
        for field, values in told.items()
    )
    return "; ".join(fields)


def _grouped(values: Sequence[str], load: ShardedLoad) -> Iterator[tuple[str, Sequence[Shard]]]:
    shards: dict[str, list[Shard]] = defaultdict(list)
    for value, of_value in zip(values, load.contents.values(), strict=True):
        shards[value] += of_value
    yield from ((value, sorted(of_value)) for value, of_value in shards.items())


def _counted(records: Sequence[LoadRecord]) -> str:
    counts = ", ".join(f"{record.rejected} of shard {record.shard}" for record in records[:SHARDS_NAMED_MAX])
    more = len(records) - SHARDS_NAMED_MAX
    return f"rejected or replaced lines: {counts}{f' and of {more} more shards' if more > 0 else ''}"
