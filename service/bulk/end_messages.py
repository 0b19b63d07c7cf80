"""What is said of the end of a load beside others."""

from __future__ import annotations

from collections.abc import Iterator

from qdrant_sink.loading import LoadRecord
from service.operations import LoadEnd
from service.operations.load_values import described


def end_messages(end: LoadEnd, load_id: str, alias: str | None) -> Iterator[str]:
    """Say which loads are under way or lack lines.

    Args:
        end: the end.
        load_id: the load that has ended.
        alias: its alias; None for none.
    """
    if end.outcome == "left":
        others = ", ".join(map(described, end.others)) or "another run of this load"
        moved = "the alias" if alias is None else f"the alias {alias!r}"
        yield f"{others} is under way: the last to end builds the index and moves {moved}"
    elif end.outcome in ("blocked", "finished"):
        yield from (_missing(other) for other in end.others if other.load != load_id)


def _missing(record: LoadRecord) -> str:
    """Why the alias waits for another load, and the way out."""
    load = record.load
    if record.has_ended and record.rejected:
        why, way = f"rejected or replaced {record.rejected} lines", f"load them, corrected, with --load-id {load}"
    else:
        why, way = "did not end", "run it again"
    way = f"{way}, or give its lines up with --finish --drop-load {load}"
    return f"{described(record)} {why}, so no alias is set; {way}"
