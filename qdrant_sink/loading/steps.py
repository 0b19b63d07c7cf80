"""The steps of a bulk load among others into the same collection, as values without any input or output.

    look -> claim -> confirm -> defer -> (lines are stored) -> end -> judge
    judge -> close -> check -> restore -> open -> build -> reclose -> recheck -> move -> clear      the last to end
    judge -> leave -> rejudge -> left                                                               all others
    leave -> rejudge -> left                                                        shards, which are finished together

A load writes its record before it reads those of others. So of two loads at least one sees the other: a load that
begins waits while another is `closing`, and one that is closing gives way to a load that has begun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, Literal

from qdrant_sink.loading.record import LoadRecord, LoadState, Records
from qdrant_sink.loading.sharded_load import lacking_lines
from qdrant_sink.loading.signs import Life

LifeOf = Callable[[LoadRecord], Life]
"""Function that tells whether the process of a record is alive."""

Action = Literal["read", "write", "defer", "restore", "build", "move", "none"]
"""What a step does to the collection. After `read` comes `Steps.seen`, after everything else `Steps.done`."""


class Step(Enum):
    """A step of a load."""

    LOOK = "look for an earlier run of the same load"
    CLAIM = "write the record of this run"
    CONFIRM = "look for another run of the same load, and for loads that are closing"
    WITHDRAW = "remove the record of this run"
    DEFER = "defer the graph"
    LOADING = "store lines"
    STOP = "write that not all lines were stored"
    END = "write that all lines were stored or rejected"
    JUDGE = "look whether this load is the last"
    CLOSE = "write that no load may begin now"
    CHECK = "look whether this load is still the last"
    RESTORE = "restore the graph"
    OPEN = "write that loads may begin"
    BUILD = "wait for the graph"
    RECLOSE = "write that no load may begin now, before the alias is moved"
    RECHECK = "look whether this load is still the last, and whether all lines are stored"
    MOVE = "move the aliases"
    CLEAR = "remove the records of loads that have ended"
    RETURN = "write that others may begin, and end"
    LEAVE = "write that this process ends, because another load is under way"
    REJUDGE = "look whether the other load is still under way"
    KEEP = "write that this process ends, because lines are missing"
    REKEEP = "look whether the lines are still missing"
    QUIT = "write that this process ends, because it was interrupted"
    REFUSED = "another run of the same load is under way, or points of the load have other content"
    STOPPED = "interrupted"
    LEFT = "another load finishes"
    BLOCKED = "lines are missing, so that the alias stays"
    FINISHED = "the collection is finished"


_READS: Final = frozenset({Step.LOOK, Step.CONFIRM, Step.JUDGE, Step.REJUDGE, Step.CHECK, Step.RECHECK, Step.REKEEP})
_OTHERS: Final[Mapping[Step, Action]] = {
    Step.DEFER: "defer",
    Step.RESTORE: "restore",
    Step.BUILD: "build",
    Step.MOVE: "move",
}
_AFTER: Final[Mapping[Step, Step]] = {
    Step.CLAIM: Step.CONFIRM,
    Step.WITHDRAW: Step.REFUSED,
    Step.DEFER: Step.LOADING,
    Step.STOP: Step.STOPPED,
    Step.END: Step.JUDGE,
    Step.CLOSE: Step.CHECK,
    Step.RESTORE: Step.OPEN,
    Step.OPEN: Step.BUILD,
    Step.BUILD: Step.RECLOSE,
    Step.RECLOSE: Step.RECHECK,
    Step.MOVE: Step.CLEAR,
    Step.CLEAR: Step.FINISHED,
    Step.RETURN: Step.JUDGE,
    Step.LEAVE: Step.REJUDGE,
    Step.KEEP: Step.REKEEP,
    Step.QUIT: Step.STOPPED,
}
_BEFORE: Final[Mapping[Step, Step]] = {
    Step.CONFIRM: Step.CLAIM,
    Step.JUDGE: Step.END,
    Step.CHECK: Step.CLOSE,
    Step.RECHECK: Step.RECLOSE,
}
"""The steps that write the record again which a step should have read."""

_STATES: Final[Mapping[Step, LoadState]] = {
    Step.CLAIM: "running",
    Step.STOP: "interrupted",
    Step.END: "ending",
    Step.CLOSE: "closing",
    Step.OPEN: "building",
    Step.RECLOSE: "closing",
    Step.RETURN: "ending",
    Step.LEAVE: "ended",
    Step.KEEP: "ended",
    Step.QUIT: "ended",
}
_LAST: Final = frozenset({Step.LOADING, Step.REFUSED, Step.STOPPED, Step.LEFT, Step.BLOCKED, Step.FINISHED})


@dataclass(frozen=True, slots=True)
class Steps:
    """Where a load is.

    Attributes:
        record: the record as this load writes it next or has written it last.
        step: the step to do next.
        keeps: whether the load leaves points that exist unchanged.
        has_lines: whether the load has stored lines; False if it only finishes what others have stored, so that nothing
            of it needs to be kept.
        unlike: records of the same load, or of other shards of it, whose points have other content, so that this run
            was refused.
        others: records of other loads that decided the last step: those under way, or those whose lines are missing.
        aliases: aliases to move.
        cleared: holders whose records are removed at the end.
        settled: holders of the loads that had ended when the graph was restored. Later ones may have deferred it again.
    """

    record: LoadRecord
    step: Step = Step.LOOK
    has_lines: bool = True
    keeps: bool = False
    unlike: tuple[LoadRecord, ...] = ()
    others: tuple[LoadRecord, ...] = ()
    aliases: tuple[str, ...] = ()
    cleared: tuple[str, ...] = ()
    settled: frozenset[str] = frozenset()

    @property
    def action(self) -> Action:
        """What the step does to the collection; `none` if this part of the load is over."""
        if self.step in _READS:
            return "read"
        if self.step in _LAST:
            return "none"
        return _OTHERS.get(self.step, "write")

    @property
    def changes(self) -> dict[str, LoadRecord | None]:
        """The records that a step with the action `write` writes or, if None, removes."""
        mine = self.record.holder
        match self.step:
            case Step.WITHDRAW:
                return {mine: None}
            case Step.CLEAR:
                return dict.fromkeys((mine, *self.cleared))
            case Step.RETURN | Step.LEAVE | Step.KEEP | Step.QUIT if not self.has_lines:
                return {mine: None}
            case _:
                return {mine: self.record}

    def signed(self, seen: str) -> Steps:
        """The same step with a further sign of life, and the state that the step writes, at this time."""
        state = _STATES.get(self.step, self.record.state)
        return replace(self, record=replace(self.record, state=state, beat=self.record.beat + 1, seen=seen))

    def done(self) -> Steps:
        """The next step after an action other than `read`."""
        return replace(self, step=_AFTER[self.step])

    def ending(
        self, *, complete: bool, rejected: int, alias: str | None, read: int = 0, lines: int = 0, points: int = 0
    ) -> Steps:
        """The first step of the end of a load that has stored or rejected all its lines; see `LoadRecord`."""
        record = replace(
            self.record, complete=complete, rejected=rejected, alias=alias, read=read, lines=lines, points=points
        )
        if not self.has_lines:
            return replace(self, step=Step.JUDGE, record=record)
        return replace(self, step=Step.END if record.shard is None else Step.LEAVE, record=record)

    def stopping(self) -> Steps:
        """The step that ends a load before all its lines were stored, or before the collection was finished."""
        if self.record.state == "running":
            return replace(self, step=Step.STOP)
        return replace(self, step=Step.QUIT)

    def seen(self, records: Records, life_of: LifeOf) -> Steps:
        """The next step after the records of the collection were read, which may be the same step again."""
        mine = self.record
        others = tuple(in_force(record for holder, record in records.items() if holder != mine.holder))
        others = tuple(record for record in others if record.holder not in mine.replaces)
        if self.record.has_ended:
            # Another run of this load that has just written its record is going to find this one, and ends.
            others = tuple(record for record in others if record.load != mine.load or record.state != "running")
        is_written = records.get(mine.holder) == mine or (self.step is Step.JUDGE and not self.has_lines)
        if self.step is not Step.LOOK and self.is_replaced_in(records):
            return replace(self, step=Step.WITHDRAW, others=tuple(in_force(records.values())))
        if self.step in _BEFORE and not is_written:  # this node of a cluster does not know the record yet
            return replace(self, step=_BEFORE[self.step])
        return self._decided(others, records, life_of)

    def _decided(self, others: Sequence[LoadRecord], records: Records, life_of: LifeOf) -> Steps:
        running = under_way(others, life_of)
        match self.step:
            case Step.LOOK:
                after = self._looked(others, records, life_of)
            case Step.CONFIRM:
                after = self._confirmed(others, records, life_of)
            case Step.JUDGE if doubted := _doubted(running, life_of):
                after = replace(self, others=doubted)
            case Step.JUDGE:
                after = replace(self, step=Step.LEAVE if running else Step.CLOSE, others=running)
            case Step.CHECK:
                settled = frozenset(record.holder for record in others)
                after = replace(self, step=Step.RETURN if running else Step.RESTORE, settled=settled)
            case Step.BUILD:
                after = replace(self, step=Step.RETURN) if running else self
            case Step.RECHECK:
                after = self._rechecked(others, records, life_of)
            case _:
                after = self._looked_back(others, records, life_of)
        return after

    def is_replaced_in(self, records: Records) -> bool:
        """Whether a later run of the same load has begun, because this one gave no sign of life for too long."""
        return any(self.record.holder in record.replaces for record in records.values())

    def _unlike(self, others: Sequence[LoadRecord], records: Records) -> tuple[LoadRecord, ...]:
        """The records that this run must not be completed with: other shards, and runs whose points it would keep.

        A run that agrees with one shard may begin, so that shards which differ can be loaded again one by one.
        """
        mine, content = self.record, self.record.content
        if content is None:
            return ()
        earlier = (record for record in records.values() if record.load == mine.load and record.holder != mine.holder)
        kept = [record for record in earlier if self.keeps and not _is_stored_anew(record, records)]
        unlike = [record for record in kept if record.content and not content.keeps_points_of(record.content)]
        if unlike or mine.shard is None:
            return tuple(unlike)
        name = mine.shard.name_of(mine.load)
        shards = tuple(
            record
            for record in others
            if record.shard is not None and record.load != mine.load and record.shard.name_of(record.load) == name
            if record.content is not None
        )
        return () if any(record.content == content for record in shards) else shards

    def _looked(self, others: Sequence[LoadRecord], records: Records, life_of: LifeOf) -> Steps:
        if unlike := self._unlike(others, records):
            return replace(self, step=Step.REFUSED, unlike=unlike)
        earlier = tuple(record for record in others if record.load == self.record.load)
        lives = {life_of(record) for record in earlier if record.is_active}
        if "alive" in lives:
            return replace(self, step=Step.REFUSED, others=earlier)
        if "unknown" in lives:
            return replace(self, others=earlier)
        replaced = {holder for record in earlier for holder in (record.holder, *record.replaces) if holder in records}
        content = self.record.content or next((record.content for record in earlier if record.content), None)
        record = replace(self.record, replaces=tuple(sorted(replaced)), content=content)
        return replace(self, step=Step.CLAIM, record=record, others=earlier)

    def _confirmed(self, others: Sequence[LoadRecord], records: Records, life_of: LifeOf) -> Steps:
        rivals = tuple(record for record in others if record.load == self.record.load)
        if rivals:
            return replace(self, step=Step.WITHDRAW, others=rivals)
        if unlike := self._unlike(others, records):
            return replace(self, step=Step.WITHDRAW, unlike=unlike)
        # An earlier run that had ended, and is replaced, may be closing too.
        closing = tuple(one for one in records.values() if one.state == "closing" and life_of(one) != "dead")
        return replace(self, others=closing) if closing else replace(self, step=Step.DEFER, others=())

    def _looked_back(self, others: Sequence[LoadRecord], records: Records, life_of: LifeOf) -> Steps:
        """Look whether another load finishes what this one leaves to it: its record says by now that it has ended."""
        written = records.get(self.record.holder)
        if self.has_lines and written is None:
            return replace(self, step=Step.LEFT)  # another load has finished, and has removed the record
        if self.has_lines and written != self.record:
            return self
        if self.record.shard is not None:
            return replace(self, step=Step.LEFT)
        running = under_way(others, life_of)
        if running:
            return replace(self, step=Step.LEFT, others=running)
        lacking = lacking_lines((*others, self.record), finishing=not self.has_lines)
        if self.step is Step.REKEEP and lacking:
            return replace(self, step=Step.BLOCKED, others=lacking)
        # Another load may be about to remove the record. Therefore this one goes on under a new holder.
        mine = replace(
            self.record, holder=f"{self.record.holder}+", replaces=(*self.record.replaces, self.record.holder)
        )
        return replace(self, step=Step.CLOSE, record=mine)

    def _rechecked(self, others: Sequence[LoadRecord], records: Records, life_of: LifeOf) -> Steps:
        has_deferred = any(record.holder not in self.settled for record in others)
        if has_deferred or under_way(others, life_of):
            return replace(self, step=Step.RETURN)
        everyone = (*others, self.record)
        lacking = lacking_lines(everyone, finishing=not self.has_lines)
        aliases = tuple(sorted({record.alias for record in everyone if record.alias is not None}))
        if aliases and lacking:
            return replace(self, step=Step.KEEP, others=lacking)
        kept = {record.holder for record in lacking if not record.has_ended or record.shard is not None}
        # A run replaces an earlier one only when it is known to be dead, which need not be found out again.
        closers = {one.holder for one in in_force(records.values()) if one.is_active and life_of(one) != "dead"}
        cleared = tuple(sorted(records.keys() - kept - closers - {self.record.holder}))
        step = Step.MOVE if aliases else Step.CLEAR
        return replace(self, step=step, others=lacking, aliases=aliases, cleared=cleared)


def in_force(records: Iterable[LoadRecord]) -> list[LoadRecord]:
    """The records that no later run of the same load replaces, in the order of their holders."""
    records = list(records)
    replaced = {holder for record in records for holder in record.replaces}
    return sorted((record for record in records if record.holder not in replaced), key=lambda record: record.holder)


def _is_stored_anew(earlier: LoadRecord, records: Records) -> bool:
    """Whether a later run of the same load, which has ended, has overwritten the points of an earlier one.

    A run of other content has: it is refused if it would keep them.
    """
    content = earlier.content
    return content is not None and any(
        run.has_ended
        and run.content is not None
        and earlier.holder in run.replaces
        and not run.content.keeps_points_of(content)
        for run in records.values()
    )


def _doubted(records: Iterable[LoadRecord], life_of: LifeOf) -> tuple[LoadRecord, ...]:
    return tuple(record for record in records if life_of(record) == "unknown")


def under_way(others: Iterable[LoadRecord], life_of: LifeOf) -> tuple[LoadRecord, ...]:
    """The loads that are storing lines, those included of which it is not known yet."""
    return tuple(record for record in others if record.state == "running" and life_of(record) != "dead")
