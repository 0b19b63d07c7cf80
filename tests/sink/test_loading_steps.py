"""Every order in which the steps of two or three loads into one collection can come, with kills at every step.

The model has the metadata of a collection, its graph and its alias. All reachable states are visited.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from qdrant_sink.loading import Life, LoadContent, LoadRecord, Shard, Step, Steps, in_force, sharded_loads

WALKS = 300
"""Random orders of the steps of all processes."""

STEPS_MAX = 2000
"""Steps in which all processes end in any order."""

ENDS = frozenset({Step.REFUSED, Step.STOPPED, Step.LEFT, Step.BLOCKED, Step.FINISHED})


@dataclass(frozen=True)
class Plan:
    """What a process is going to load.

    Attributes:
        load: id of the load.
        alias: alias to move; None for none.
        complete: whether all its lines can be stored.
        has_lines: whether it loads lines, or only finishes.
        may_die: whether it may be killed at any step.
        may_stop: whether it may be interrupted.
        doubts: whether it may read at a time when it does not know yet which loads are alive.
        after: index of the process that must have ended before this one starts; None if it may start at any time.
        after_all: whether all processes before it must have ended.
        shard: the part of the input that it loads; None for the whole.
        content: what decides the content of its points.
        keeps: whether it leaves points that exist unchanged.
    """

    load: str
    alias: str | None = "live"
    complete: bool = True
    has_lines: bool = True
    may_die: bool = False
    may_stop: bool = False
    after: int | None = None
    doubts: bool = True
    after_all: bool = False
    shard: Shard | None = None
    content: LoadContent | None = None
    keeps: bool = False


@dataclass(frozen=True)
class Process:
    """A process: where it is, and whether it still runs and has stored all its lines."""

    steps: Steps
    is_alive: bool = True
    has_stored: bool = False

    @property
    def is_loading(self) -> bool:
        """Whether it may store lines now."""
        return self.is_alive and not self.has_stored and self.steps.step in (Step.LOADING, Step.STOP)


@dataclass(frozen=True)
class World:
    """The metadata, the graph and the alias of a collection, and the processes."""

    processes: tuple[Process, ...]
    records: frozenset[LoadRecord] = frozenset()
    is_deferred: bool = False
    is_moved: bool = False


def first(number: int, plan: Plan) -> Process:
    """The process before its first step."""
    record = LoadRecord(
        plan.load, f"{number}", "running", "", "", alias=plan.alias, shard=plan.shard, content=plan.content
    )
    steps = Steps(record, has_lines=plan.has_lines, keeps=plan.keeps)
    return Process(steps if plan.has_lines else steps.ending(complete=True, rejected=0, alias=plan.alias))


def following(world: World, plans: tuple[Plan, ...]) -> Iterator[World]:
    """All states that one step of one process leads to."""
    for number, (process, plan) in enumerate(zip(world.processes, plans, strict=True)):
        if not process.is_alive or process.steps.step in ENDS:
            continue
        if plan.after is not None and not _has_ended(world.processes[plan.after]):
            continue
        if plan.after_all and not all(map(_has_ended, world.processes[:number])):
            continue
        for other in moves(world, process, plan):
            yield replace(
                other, processes=(*other.processes[:number], _next(other, number), *other.processes[number + 1 :])
            )


def _next(world: World, number: int) -> Process:
    return world.processes[number]


def _has_ended(process: Process) -> bool:
    return not process.is_alive or process.steps.step in ENDS


def moves(world: World, process: Process, plan: Plan) -> Iterator[World]:  # noqa: C901 - one case per action
    """The states after a step of one process."""

    def after(changed: Process, **parts: object) -> World:
        processes = tuple(changed if other is process else other for other in world.processes)
        return replace(world, processes=processes, **parts)  # type: ignore[arg-type]

    steps = process.steps
    if plan.may_die:
        yield after(replace(process, is_alive=False))
    if steps.step is Step.LOADING:
        read = 1 if plan.shard is None else plan.shard.count
        ended = steps.ending(complete=plan.complete, rejected=0, alias=plan.alias, read=read, lines=1, points=1)
        yield after(replace(process, steps=ended, has_stored=plan.complete))
        if plan.may_stop:
            yield after(replace(process, steps=steps.stopping()))
        return
    match steps.action:
        case "read":
            for known in (True, False) if plan.doubts else (True,):
                yield after(replace(process, steps=seen(world, steps, known=known)))
        case "write":
            written = steps.signed("")
            written = replace(written, record=replace(written.record, beat=0))
            records = {record.holder: record for record in world.records} | written.changes
            kept = frozenset(record for record in records.values() if record is not None)
            yield after(replace(process, steps=written.done()), records=kept)
        case "defer":
            yield after(replace(process, steps=steps.done()), is_deferred=True)
        case "restore":
            assert not any(other.is_loading for other in world.processes), "the graph is restored under a load"
            yield after(replace(process, steps=steps.done()), is_deferred=False)
        case "build":
            yield after(replace(process, steps=steps.done()))
            yield after(replace(process, steps=seen(world, steps, known=True)))
            if plan.may_stop:
                yield after(replace(process, steps=steps.stopping()))
        case "move":
            assert steps.aliases == ("live",)
            yield after(replace(process, steps=steps.done()), is_moved=True)


def seen(world: World, steps: Steps, *, known: bool) -> Steps:
    """The step after the records were read, where it is known, or not yet, which processes are alive."""
    alive = {process.steps.record.holder for process in world.processes if not _has_ended(process)}

    def life_of(record: LoadRecord) -> Life:
        if not record.is_active:
            return "dead"
        if not known:
            return "unknown"
        return "alive" if record.holder in alive else "dead"

    return steps.seen({record.holder: record for record in world.records}, life_of)


def missing(world: World, plans: tuple[Plan, ...]) -> list[str]:
    """The loads that have begun to store lines, and of which no run has stored all."""
    begun = {
        plan.load
        for process, plan in zip(world.processes, plans, strict=True)
        if process.steps.record.state != "running" or process.steps.step in (Step.LOADING, Step.STOP)
        if plan.has_lines
    }
    whole = {
        plan.load
        for process, plan in zip(world.processes, plans, strict=True)
        if process.has_stored or process.is_loading
    }
    shards = {plan.load for plan in plans if plan.shard is not None}
    needed = begun | shards if begun & shards else begun
    return sorted(needed - whole)


def explore(plans: tuple[Plan, ...]) -> tuple[int, list[World]]:
    """Visit all states; returns their number, and those in which nothing can happen any more."""
    start = World(tuple(first(number, plan) for number, plan in enumerate(plans)))
    reached, waiting, last = {start}, [start], []
    while waiting:
        world = waiting.pop()
        states = [state for state in following(world, plans) if state != world]
        if not states:
            last.append(world)
        for state in states:
            check(world, state, plans)
            if state not in reached:
                reached.add(state)
                waiting.append(state)
    return len(reached), last


def check(before: World, after: World, plans: tuple[Plan, ...]) -> None:
    """What holds after every step."""
    if after.is_moved and not before.is_moved:
        assert not any(process.is_loading for process in before.processes), "the alias is moved under a load"
        assert not missing(before, plans), "the alias is moved, and lines are missing"
        moved = next(new for old, new in zip(before.processes, after.processes, strict=True) if old != new)
        has_shards = any(record.shard is not None and record.has_ended for record in before.records)
        assert not (has_shards and moved.steps.has_lines), "the alias is moved, and nobody has compared the shards"
        contents = {record.content for record in in_force(before.records) if record.shard is not None}
        assert len(contents) <= 1, "the alias is moved, and shards have other content"
    loading = [plan.load for process, plan in zip(after.processes, plans, strict=True) if process.is_loading]
    assert len(set(loading)) == len(loading), "two runs of one load store lines"
    assert not after.is_deferred or after.records, "the graph is deferred, and nothing says by whom"


A, B, C = Plan("a"), Plan("b"), Plan("c")
DIES, DIES_TOO = replace(A, may_die=True), replace(B, may_die=True)
AGAIN = replace(A, after=0)
FINISH = Plan("finish", has_lines=False)


FIRST, SECOND = Shard(1, 2), Shard(2, 2)
S1, S2 = Plan(FIRST.load_of("s"), shard=FIRST), Plan(SECOND.load_of("s"), shard=SECOND)
LATE_FINISH = replace(FINISH, after_all=True)
OF_512, OF_256 = LoadContent(chunk_tokens=512), LoadContent(chunk_tokens=256)
S2_OF_512, S2_OF_256 = replace(S2, content=OF_512), replace(S2, content=OF_256)
S1_OF_512, S1_OF_256 = replace(S1, content=OF_512), replace(S1, content=OF_256)


@pytest.mark.parametrize(
    "plans",
    [
        (A,),
        (A, B),
        (A, replace(B, alias=None)),
        (A, replace(B, complete=False)),
        pytest.param((replace(A, complete=False), AGAIN, B), marks=pytest.mark.slow),
        (DIES, B),
        (DIES, AGAIN),
        (replace(A, may_stop=True), AGAIN),
        (A, A),
        pytest.param((DIES, AGAIN, AGAIN), marks=pytest.mark.slow),
        (DIES, DIES_TOO),
        (DIES, FINISH),
        (S1, FINISH),
        (S1, S2),
        (S1, replace(A, doubts=False)),
        (S1, S2, replace(LATE_FINISH, doubts=False)),
        (S1, S1),
        (S1_OF_512, S2_OF_256),
        (S1_OF_512, replace(S1_OF_256, after=0, keeps=True)),
    ],
)
def test_no_order_of_steps_moves_the_alias_early(plans: tuple[Plan, ...]) -> None:
    """Nor restores the graph under a load. If all lines are stored and no process was killed, the last finishes."""
    _, last = explore(plans)
    assert last
    for world in last:
        check_end(world, plans)


@pytest.mark.slow
@pytest.mark.parametrize(
    "plans",
    [
        (A, B, C),
        (A, B, replace(C, complete=False)),
        (DIES, B, FINISH),
        (DIES, DIES_TOO, AGAIN),
        (DIES, AGAIN, B),
        (replace(A, may_stop=True), AGAIN, B),
        (S1, S2, FINISH),
        (S1, S2, A),
        (S1, S2, LATE_FINISH),
        (S1, S2, A, LATE_FINISH),
        (S1, S2, LATE_FINISH, LATE_FINISH),
        (S1, S1, S2, LATE_FINISH),
        (replace(S1, may_die=True), S2, replace(S1, after=0), LATE_FINISH),
        (S1, replace(S2, complete=False), LATE_FINISH),
        (S1, replace(S2, may_stop=True), LATE_FINISH),
        (S1_OF_512, S2_OF_256, LATE_FINISH),
        (S1_OF_512, S2_OF_512, replace(S1_OF_256, after=0), LATE_FINISH),
    ],
)
def test_more_loads_in_random_orders(plans: tuple[Plan, ...]) -> None:
    """The same of three and four processes, of which there are too many orders to try all."""
    draw = random.Random(3)
    for _ in range(WALKS):
        world = World(tuple(first(number, plan) for number, plan in enumerate(plans)))
        for _ in range(STEPS_MAX):
            states = [state for state in following(world, plans) if state != world]
            if not states:
                check_end(world, plans)
                break
            state = draw.choice(states)
            check(world, state, plans)
            world = state
        else:
            pytest.fail("the loads do not end")


def check_end(world: World, plans: tuple[Plan, ...]) -> None:
    """What holds when nothing can happen any more."""
    steps = [process.steps.step for process in world.processes if process.is_alive]
    assert all(step in ENDS for step in steps), "a load waits for ever"
    is_calm = all(process.is_alive and process.steps.step is not Step.REFUSED for process in world.processes)
    are_finished = plans[-1].after_all or all(plan.shard is None for plan in plans)
    if is_calm and are_finished and not missing(world, plans):
        assert world.is_moved
        assert not world.is_deferred
        assert not world.records


def test_shards_are_complete_together() -> None:
    """Every shard has stored all its lines, all have read the same input, and each of its lines belongs to one."""
    records = [
        LoadRecord(shard.load_of("s"), str(shard), "ended", "", "", complete=True, shard=shard, read=7, lines=lines)
        for shard, lines in ((FIRST, 3), (SECOND, 4))
    ]
    assert sharded_loads(records)[0].is_complete
    for changed in (
        records[:1],
        [records[0], replace(records[1], state="interrupted")],
        [records[0], replace(records[1], complete=False)],
        [records[0], replace(records[1], read=8)],
        [records[0], replace(records[1], lines=3)],
    ):
        assert not sharded_loads(changed)[0].is_complete
    assert sharded_loads(records[:1])[0].not_begun == (SECOND,)


def test_a_record_keeps_its_shard() -> None:
    """What is written of a shard is read again, and what is no shard is no record of this program."""
    record = LoadRecord("s:1-of-2", "x", "ended", "", "", shard=FIRST, read=7, lines=3, points=2)
    assert LoadRecord.parse("x", record.value) == record
    for shard in ("0/2", "3/2", "1/1001", "1", 1, [1, 2], "²/3"):
        assert LoadRecord.parse("x", {**record.value, "shard": shard}) is None


def test_a_run_begins_only_with_the_content_of_the_other_shards() -> None:
    """Whatever is recorded of a shard, an agreeing shard may begin, a differing one not, and one may be put right."""
    ended = [
        LoadRecord(shard.load_of("s"), str(shard), "ended", "", "", shard=shard, content=content)
        for shard, content in ((FIRST, OF_512), (SECOND, OF_256))
    ]

    def looked(*records: LoadRecord, content: LoadContent | None = OF_256, keeps: bool = False) -> Steps:
        steps = Steps(LoadRecord(S2.load, "x", "running", "", "", shard=SECOND, content=content), keeps=keeps)
        return steps.seen({record.holder: record for record in records}, lambda _record: "dead")

    assert looked(ended[0]).unlike == (ended[0],)
    assert looked(ended[0], content=OF_512).step is Step.CLAIM
    assert looked(*ended, content=OF_512).step is Step.CLAIM
    assert looked(*ended, content=OF_512, keeps=True).unlike == (ended[1],)
    assert looked(replace(ended[0], content=None)).step is Step.CLAIM
    assert looked(ended[1], content=None).record.content == OF_256


def test_a_record_keeps_what_decides_the_content_of_points() -> None:
    """It is read as it was written, and what another program or a later release writes there is unknown."""
    content = LoadContent(("dense", "sparse"), 512, 64, None, "mean", "body", "live", (("columns", "a, b"),))
    record = LoadRecord("s:1-of-2", "x", "ended", "", "", shard=FIRST, content=content)
    assert LoadRecord.parse("x", record.value) == record
    for field, value in {
        "vectors": "dense",
        "chunk_tokens": "512",
        "text_key": 1,
        "colbert_pooling": None,
        "input": ["a"],
        "instruction": "query: ",
    }.items():
        changed = {**record.value, "content": {**content.value, field: value}}
        assert LoadRecord.parse("x", changed) == replace(record, content=None)


def test_a_finish_does_not_wait_for_a_run_that_was_killed_and_has_run_again() -> None:
    """The run that replaced it knew that it was dead, so the finish needs no minute to learn it, and removes both."""
    killed = LoadRecord(S1.load, "killed", "running", "", "", shard=FIRST)
    again = replace(killed, holder="again", state="ended", complete=True, read=7, lines=7, replaces=("killed",))
    second = replace(again, load=S2.load, holder="second", shard=SECOND, lines=0, replaces=())
    records = {record.holder: record for record in (killed, again, second)}

    def life_of(record: LoadRecord) -> Life:
        return "unknown" if record.is_active else "dead"

    steps = first(0, FINISH).steps.seen(records, life_of)
    assert steps.step is Step.CLOSE
    steps = replace(steps, step=Step.RECLOSE, settled=frozenset(records)).signed("").done()
    after = steps.seen({**records, steps.record.holder: steps.record}, life_of)
    assert (after.step, after.cleared) == (Step.MOVE, ("again", "killed", "second"))
    alive = replace(second, holder="alive", load="other", state="running", shard=None)
    assert first(0, FINISH).steps.seen({**records, "alive": alive}, life_of).step is Step.JUDGE
