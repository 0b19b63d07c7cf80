"""The record of a bulk load in the metadata of its collection.

Every run of a load has a record of its own, under a key that only this run writes, so that no two writers overwrite
each other: a server merges the metadata of an update key by key.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from qdrant_sink.loading.content import LoadContent
from qdrant_sink.loading.shard import Shard

log = logging.getLogger(__name__)

KEY_PREFIX: Final = "bge_m3_qdrant_load_"
"""What the key of a record begins with; the holder follows."""

LOAD_ID: Final = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$"
"""Pattern of the id of a load."""

LOAD_ID_RULE: Final = "have 1 to 64 letters, digits and . _ : -, and begin with a letter or a digit"
"""The rule of `LOAD_ID` in words, after "must"."""

LoadState = Literal["running", "interrupted", "ending", "closing", "building", "ended"]
"""State of a load.

`running`: it stores lines. `interrupted`: its process ended before all lines were stored. All others: every line is
stored or rejected. `ending`: its process looks whether it is the last. `closing`: it restores the graph or moves the
alias, and no other load begins meanwhile. `building`: it waits for the graph. `ended`: its process has ended.
"""


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """What is stored of one run of a load.

    Attributes:
        load: id of the load. A further run of the same load has the same id.
        holder: random id of this run.
        state: its state.
        began: time of its begin, ISO 8601 by the clock of its machine; for people only.
        seen: time of its last sign of life, likewise.
        beat: number of its signs of life.
        alias: alias that it wants to lead to the collection; None for none.
        alias_from: collection that the alias led to when this run began; None if it led nowhere.
        complete: whether all lines are stored, or rejections are allowed. It holds for all states but `running` and
            `interrupted`.
        rejected: number of points and lines that were rejected or replaced by others.
        replaces: holders of earlier runs of the same load, whose records are no longer in force.
        content: what decides the content of its points; None if it is unknown, as of an earlier release.
    """

    load: str
    holder: str
    state: LoadState
    began: str
    seen: str
    beat: int = 0
    alias: str | None = None
    alias_from: str | None = None
    complete: bool = False
    rejected: int = 0
    shard: Shard | None = None
    read: int = 0
    lines: int = 0
    points: int = 0
    replaces: tuple[str, ...] = ()
    content: LoadContent | None = None

    @property
    def has_ended(self) -> bool:
        """Whether all its lines were stored or rejected."""
        return self.state not in ("running", "interrupted")

    @property
    def is_active(self) -> bool:
        """Whether the state is one that only a running process leaves."""
        return self.state in ("running", "ending", "closing", "building")

    @property
    def lacks_lines(self) -> bool:
        """Whether lines of the load are missing in the collection, as far as this record says."""
        return not self.has_ended or not self.complete

    @classmethod
    def parse(cls, holder: str, value: object) -> LoadRecord | None:
        """Read a record; None if the value is none, because any program can write metadata."""
        if not isinstance(value, Mapping):
            return None
        fields = {name: value.get(name) for name in ("load", "state", "began", "seen")}
        alias, alias_from = map(value.get, ("alias", "alias_from"))
        counts = {name: value.get(name, 0) for name in ("beat", "rejected", "read", "lines", "points")}
        replaces = value.get("replaces") or ()
        is_record = (
            all(isinstance(text, str) for text in fields.values())
            and is_load_id(str(fields["load"]))
            and fields["state"] in get_args(LoadState)
            and all(isinstance(count, int) for count in counts.values())
            and isinstance(alias, str | None)
            and isinstance(alias_from, str | None)
            and isinstance(replaces, list | tuple)
        )
        if not is_record:
            return None
        try:
            shard = _shard(value.get("shard"))
        except (TypeError, ValueError):
            return None
        values: dict[str, Any] = {**fields, **counts}
        return cls(
            **values,
            holder=holder,
            alias=alias,
            alias_from=alias_from,
            complete=value.get("complete") is True,
            shard=shard,
            replaces=tuple(str(other) for other in replaces),
            content=LoadContent.parse(value.get("content")),
        )

    @property
    def value(self) -> dict[str, Any]:
        """The record as JSON values."""
        fields = asdict(self)
        del fields["holder"]
        shard = None if self.shard is None else str(self.shard)
        content = None if self.content is None else self.content.value
        return {**fields, "shard": shard, "replaces": list(self.replaces), "content": content}


Records = Mapping[str, LoadRecord]
"""The records of a collection by holder."""


def _shard(value: object) -> Shard | None:
    """Read the shard of a record.

    Raises:
        TypeError, ValueError: the value is not a shard.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError("the shard of a record must be a string")
    return Shard.parse(value)


def is_load_id(text: str) -> bool:
    """Whether a text can be the id of a load."""
    return re.fullmatch(LOAD_ID, text) is not None


def records_of(metadata: Mapping[str, Any]) -> dict[str, LoadRecord]:
    """The records in the metadata of a collection. What is not a record is ignored, with a line in the log."""
    records: dict[str, LoadRecord] = {}
    for key, value in metadata.items():
        if not key.startswith(KEY_PREFIX) or value is None:
            continue
        holder = key.removeprefix(KEY_PREFIX)
        record = LoadRecord.parse(holder, value)
        if record is None:
            log.warning("the metadata of the collection has a record of a bulk load in an unknown form; it is ignored")
        else:
            records[holder] = record
    return records


def changes_of(records: Mapping[str, LoadRecord | None]) -> dict[str, dict[str, Any] | None]:
    """The change of the metadata that writes records, by holder; None removes one."""
    return {KEY_PREFIX + holder: None if record is None else record.value for holder, record in records.items()}
