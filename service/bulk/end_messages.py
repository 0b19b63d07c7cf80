"""What is said of the end of a load beside others."""

from __future__ import annotations

from collections.abc import Iterator

from qdrant_sink.loading import LoadRecord
from service.operations import LoadEnd
from service.operations.load_values import described
from service.operations.shard_report import shard_messages


def end_messages(end: LoadEnd, load_id: str, alias: str | None) -> Iterator[str]:
    """Say what the shards have counted, and which loads are under way or lack lines.

    Args:
        end: the end.
        load_id: the load that has ended.
        alias: its alias; None for none.
    """
    yield from shard_messages(end)
    if end.outcome == "left":
        others = ", ".join(map(described, end.others)) or "another run of this load"
        moved = "the alias" if alias is None else f"the alias {alias!r}"
        yield f"{others} is under way: the last to end builds the index and moves {moved}"
    elif end.outcome in ("blocked", "finished"):
        lacking = [record for record in end.others if record.load != load_id]
        yield from (_missing(record) for record in lacking if record.shard is None)
        shards = {record.shard.name_of(record.load): record.shard for record in lacking if record.shard is not None}
        for name in shards.keys() - {load.name for load in end.sharded}:  # of those is said what they lack
            what, them, their = ("over an endpoint", "it", "its")
            if shards[name].count > 1:
                what, them, their = ("in shards", "them", "their")
            yield (
                f"load {name!r} is {what}, so no alias is set until --finish has compared {them}; "
                f"--finish --drop-load {name} gives {their} lines up"
            )


def _missing(record: LoadRecord) -> str:
    """Why the alias waits for another load, and the way out."""
    load = record.load
    if record.has_ended and record.rejected:
        why, way = f"rejected or replaced {record.rejected} lines", f"load them, corrected, with --load-id {load}"
    else:
        why, way = "did not end", "run it again"
    way = f"{way}, or give its lines up with --finish --drop-load {load}"
    return f"{described(record)} {why}, so no alias is set; {way}"
