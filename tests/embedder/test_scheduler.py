"""The scheduler plans every text once, within the budget and fairly; tested without threads or a clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from embedder.errors import Cancelled, DeviceLost, InvalidRequest, Overloaded
from embedder.scheduling.scheduler import Batch, Flights, Pass, Pick, Priority, Scheduler

lengths = st.lists(st.integers(2, 40), min_size=1, max_size=12)
priorities = st.sampled_from(Priority)
caps = st.integers(0, 4)
budgets = st.integers(2, 60)


@dataclass
class Expected:
    """A job in the reference model of the scheduler."""

    lengths: list[int]
    priority: Priority
    cap: int
    streams: bool
    next: int = 0
    consumed: bool = False
    portions: list[tuple[int, set[int]]] = field(default_factory=list)
    computing: int = 0
    grows: bool = False

    @property
    def tokens(self) -> int:
        """Return the tokens that still wait."""
        return sum(self.lengths[self.next :])

    @property
    def held(self) -> set[int]:
        """Return the texts of a stream that were taken and not released."""
        return set().union(*(held for _, held in self.portions))

    @property
    def held_tokens(self) -> int:
        """Return the tokens that the job holds of the window: those of each batch until all of it is released."""
        return sum(tokens for tokens, held in self.portions if held)


class Planning(RuleBasedStateMachine):
    """Jobs arrive, are batched, computed, released and dropped in any order, beside a plain reference model."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: Scheduler[int] = Scheduler(budget=60, window=60)
        self.jobs: dict[int, Expected] = {}
        self.running: list[Batch[int]] = []
        self.serial = 0
        self.passed_over = False

    def ready(self, priority: Priority) -> bool:
        """Return whether a text of this priority may be batched."""
        free = 60 - sum(job.held_tokens for job in self.jobs.values())
        return any(
            job.tokens and (not job.streams or (job.consumed and free > 0))
            for job in self.jobs.values()
            if job.priority is priority
        )

    @rule(lengths=lengths, priority=priorities, cap=caps, streams=st.booleans(), grows=st.booleans())
    def add(self, lengths: list[int], priority: Priority, cap: int, streams: bool, grows: bool) -> None:
        """Add a job, whole or with its first texts."""
        self.serial += 1
        planned = priority if sum(lengths) <= self.scheduler.budget else Priority.PASSAGE
        self.jobs[self.serial] = Expected(list(lengths), planned, cap, streams, grows=grows)
        self.scheduler.add(self.serial, lengths, priority, cap=cap, streams=streams, grows=grows)

    @precondition(lambda self: any(job.grows for job in self.jobs.values()))
    @rule(data=st.data(), lengths=st.one_of(st.just([]), lengths), last=st.booleans())
    def extend(self, data: st.DataObject, lengths: list[int], last: bool) -> None:
        """Add texts to a job whose first texts wait, run or are done."""
        key = data.draw(st.sampled_from(sorted(key for key, job in self.jobs.items() if job.grows)))
        self.jobs[key].lengths += lengths
        self.jobs[key].grows = not last
        self.scheduler.extend(key, lengths, last=last)

    @rule()
    def extend_a_stranger(self) -> None:
        """Adding texts to a dropped job is refused."""
        with pytest.raises(Cancelled):
            self.scheduler.extend(-1, [3], last=True)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def consume(self, data: st.DataObject) -> None:
        """Start to consume the results of a stream."""
        key = data.draw(st.sampled_from(sorted(self.jobs)))
        self.jobs[key].consumed = True
        self.scheduler.consume(key)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """Cancel a job."""
        key = data.draw(st.sampled_from(sorted(self.jobs)))
        self.scheduler.drop(key)
        del self.jobs[key]

    @rule()
    def drop_a_stranger(self) -> None:
        """Cancel a job that is done or unknown."""
        self.scheduler.drop(-1)

    @precondition(lambda self: any(job.held for job in self.jobs.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Release some results of a stream, twice."""
        key = data.draw(st.sampled_from(sorted(key for key, job in self.jobs.items() if job.held)))
        indices = data.draw(st.sets(st.sampled_from(sorted(self.jobs[key].held)), min_size=1))
        for _, held in self.jobs[key].portions:
            held.difference_update(indices)
        for _ in range(2):
            self.scheduler.release(key, sorted(indices))

    @rule(budget=budgets)
    def take(self, budget: int) -> None:
        """Form a batch and check all rules."""
        ready = [priority for priority in Priority if self.ready(priority)]
        self.scheduler.budget = budget
        batch = self.scheduler.next_batch(Flights(2))
        assert (batch is not None) == bool(ready)
        if batch is not None:
            both = len(ready) == 2
            assert batch.priority == (Priority.PASSAGE if both and self.passed_over else ready[0])
            self.passed_over = both and batch.priority is Priority.QUERY
        else:
            self.passed_over = False
        self._check(batch, budget)

    @rule(budget=budgets)
    def take_queries(self, budget: int) -> None:
        """A device that is full of passages gets queries only."""
        ready = self.ready(Priority.QUERY)
        self.scheduler.budget = budget
        batch = self.scheduler.next_batch(full_of_passages())
        assert (batch is not None) == ready
        assert batch is None or batch.priority is Priority.QUERY
        self._check(batch, budget)

    @precondition(lambda self: self.running)
    @rule()
    def finish(self) -> None:
        """Complete a batch."""
        batch = self.running.pop(0)
        self.scheduler.finish(batch, Flights(2))
        for pick in batch.picks:
            if pick.key in self.jobs:
                self.jobs[pick.key].computing -= 1

    @precondition(lambda self: self.running)
    @rule()
    def yield_point(self) -> None:
        """A pass continues as long as one of its jobs exists."""
        batch = self.running[0]
        running = Pass(batch, Flights(2), started_s=0.0, yielded_s=1.0)
        if any(pick.key in self.jobs for pick in batch.picks):
            assert self.scheduler.queries_first(running, now_s=1.0) is None
        else:
            with pytest.raises(Cancelled):
                self.scheduler.queries_first(running, now_s=1.0)

    def _check(self, batch: Batch[int] | None, budget: int) -> None:
        """Assert that texts leave in order, each once, within the job's cap and the budget."""
        if batch is None:
            return
        self.running.append(batch)
        tokens = 0
        for key, positions in batch.by_job().items():
            job = self.jobs[key]
            indices = [batch.picks[position].index for position in positions]
            assert job.priority is batch.priority
            assert indices == list(range(job.next, job.next + len(indices)))
            assert not job.cap or len(indices) <= job.cap
            job.next += len(indices)
            job.computing += len(indices)
            own = sum(job.lengths[index] for index in indices)
            if job.streams:
                job.portions.append((own, set(indices)))
            tokens += own
        assert batch.tokens == tokens
        assert tokens <= budget or len(batch.picks) == 1

    @invariant()
    def tokens_are_those_that_wait(self) -> None:
        """`tokens` counts exactly the waiting texts, and threads stay while a text waits or is expected."""
        assert self.scheduler.tokens == sum(job.tokens for job in self.jobs.values())
        coming = any(job.grows for job in self.jobs.values())
        assert self.scheduler.waiting == (self.scheduler.tokens > 0 or coming)


Planning.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)
TestPlanning = Planning.TestCase


def scheduler_of(budget: int, *, window: float = float("inf")) -> Scheduler[str]:
    """Return a scheduler with an unlimited queue."""
    return Scheduler(budget=budget, window=window)


def taken(scheduler: Scheduler[str], flights: Flights | None = None) -> list[Pick[str]]:
    """Return the next batch as a list and complete it immediately."""
    flights = flights or Flights(4)
    batch = scheduler.next_batch(flights)
    if batch is None:
        return []
    scheduler.finish(batch, flights)
    return list(batch.picks)


def full_of_passages() -> Flights:
    """Return a device with the maximum number of passage batches in flight."""
    return Flights(2, under_way=Counter({Priority.PASSAGE: 1}))


def drained(scheduler: Scheduler[str]) -> list[list[Pick[str]]]:
    """Return all batches until the queue is empty."""
    batches = []
    while scheduler.waiting:
        batches.append(taken(scheduler))
    return batches


@settings(max_examples=60, deadline=None, derandomize=True)
@given(jobs=st.lists(st.tuples(lengths, priorities, caps), max_size=8), budget=budgets)
def test_every_text_leaves_exactly_once(jobs: list[tuple[list[int], Priority, int]], budget: int) -> None:
    """The plan yields each text of each queued job exactly once and then ends."""
    scheduler = scheduler_of(budget)
    for number, (job, priority, cap) in enumerate(jobs):
        scheduler.add(str(number), job, priority, cap=cap)
    planned = [(pick.key, pick.index) for batch in drained(scheduler) for pick in batch]
    assert sorted(planned) == sorted(
        (str(number), n) for number, (job, _, _) in enumerate(jobs) for n in range(len(job))
    )
    assert scheduler.tokens == 0
    assert scheduler.next_batch(Flights(4)) is None


def test_a_query_does_not_wait_for_passages() -> None:
    """A query that arrives behind a thousand passages is in the next batch, without passages."""
    scheduler = scheduler_of(4096)
    scheduler.add("passages", [100] * 1000, Priority.PASSAGE)
    scheduler.add("query", [8], Priority.QUERY)
    assert taken(scheduler) == [Pick("query", 0)]


@pytest.mark.parametrize("expected", [0, 5000], ids=["whole", "grows"])
def test_a_query_does_not_wait_for_a_request_of_many(expected: int) -> None:
    """A query that arrives behind queries of more than a batch is in the next batch, without them."""
    scheduler = scheduler_of(4096)
    scheduler.add("many", [8] if expected else [8] * 600, Priority.QUERY, grows=bool(expected), expected=expected)
    scheduler.add("query", [8], Priority.QUERY)
    assert taken(scheduler) == [Pick("query", 0)]


@given(length=st.integers(2, 512))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_small_job_is_not_stuck_behind_a_large_one(length: int) -> None:
    """A single text behind a thousand of the same priority is in one of the next two batches."""
    scheduler = scheduler_of(512)
    scheduler.add("large", [100] * 1000, Priority.PASSAGE)
    scheduler.add("small", [length], Priority.PASSAGE)
    batches = [taken(scheduler), taken(scheduler)]
    assert any(pick.key == "small" for batch in batches for pick in batch)


@given(lengths=st.lists(st.integers(2, 100), min_size=2, max_size=6))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_no_job_starves(lengths: list[int]) -> None:
    """With n endless jobs of one priority, each is served within n batches, whatever its lengths are."""
    scheduler = scheduler_of(100)
    for number, length in enumerate(lengths):
        scheduler.add(str(number), [length] * 1000, Priority.PASSAGE)
    served = {pick.key for _ in lengths for pick in taken(scheduler)}
    assert served == {str(number) for number in range(len(lengths))}


def test_queries_without_end_starve_no_passages() -> None:
    """Under an endless flow of queries, every second batch holds passages."""
    scheduler = scheduler_of(10)
    scheduler.add("passages", [10] * 4, Priority.PASSAGE)
    served = []
    for number in range(6):
        scheduler.add(f"query {number}", [8], Priority.QUERY)
        served.append(taken(scheduler)[0].key)
    assert [key == "passages" for key in served] == [False, True] * 3


def test_jobs_take_turns_within_a_batch() -> None:
    """Two jobs of one priority share a batch text by text."""
    scheduler = scheduler_of(60)
    scheduler.add("a", [10] * 4, Priority.QUERY)
    scheduler.add("b", [10] * 4, Priority.QUERY)
    assert [pick.key for pick in taken(scheduler)] == ["a", "b", "a", "b", "a", "b"]


def test_a_text_over_the_budget_goes_alone() -> None:
    """A text over the budget has a batch of its own."""
    scheduler = scheduler_of(10)
    scheduler.add("a", [100, 2], Priority.PASSAGE)
    scheduler.add("b", [2], Priority.PASSAGE)
    assert taken(scheduler) == [Pick("a", 0)]
    assert taken(scheduler) == [Pick("b", 0), Pick("a", 1)]


def test_a_cap_leaves_room_for_others() -> None:
    """`batchSize` 2 puts two texts of its job in a batch, and other jobs get the rest."""
    scheduler = scheduler_of(100)
    scheduler.add("capped", [2] * 5, Priority.QUERY, cap=2)
    scheduler.add("free", [2] * 5, Priority.QUERY)
    batch = taken(scheduler)
    assert [pick.index for pick in batch if pick.key == "capped"] == [0, 1]
    assert [pick.index for pick in batch if pick.key == "free"] == [0, 1, 2, 3, 4]


def test_jobs_that_a_batch_did_not_reach_keep_their_order() -> None:
    """The job that opens a batch moves to the back; jobs that were skipped or not reached keep their order."""
    scheduler = scheduler_of(10)
    for key, job in {"opener": [8, 3], "too long": [5], "fits": [2, 4], "behind": [3], "last": [2]}.items():
        scheduler.add(key, job, Priority.PASSAGE)
    assert [pick.key for pick in taken(scheduler)] == ["opener", "fits"]
    assert [pick.key for pick in taken(scheduler)] == ["too long", "fits"]
    assert [pick.key for pick in taken(scheduler)] == ["behind", "last", "opener"]


def test_a_batch_looks_at_no_more_jobs_than_it_needs() -> None:
    """The cost of forming a batch does not grow with the length of the queue."""

    class Counting(Scheduler[str]):
        looked = 0

        def _ready(self, job: Any) -> bool:
            self.looked += 1
            return super()._ready(job)

    scheduler = Counting(budget=100)
    for number in range(5000):
        scheduler.add(str(number), [10], Priority.QUERY)
    assert len(taken(scheduler)) == 10
    assert scheduler.looked < 20


def test_a_dropped_job_leaves_and_frees_its_room() -> None:
    """After a drop no text of the job is planned, and its tokens are not counted."""
    scheduler = scheduler_of(20)
    scheduler.add("dropped", [10] * 3, Priority.QUERY)
    scheduler.add("kept", [10] * 3, Priority.QUERY)
    taken(scheduler)
    scheduler.drop("dropped")
    assert scheduler.tokens == 20
    assert {pick.key for batch in drained(scheduler) for pick in batch} == {"kept"}


def test_a_job_without_texts_waits_for_nothing() -> None:
    """Adding a job without texts does not change the scheduler."""
    scheduler = scheduler_of(10)
    scheduler.add("empty", [], Priority.QUERY)
    assert not scheduler.waiting
    assert scheduler.next_batch(Flights(4)) is None


# --- jobs that grow -------------------------------------------------------------------------------------------------


def test_a_job_that_grows_is_one_job() -> None:
    """Texts that are added later share the job's cap and its turn."""
    scheduler = scheduler_of(100)
    scheduler.add("growing", [10] * 3, Priority.PASSAGE, cap=2, grows=True)
    scheduler.add("other", [10] * 3, Priority.PASSAGE)
    scheduler.extend("growing", [10] * 2, last=True)
    batch = taken(scheduler)
    assert [pick.key for pick in batch] == ["growing", "other", "growing", "other", "other"]
    assert taken(scheduler) == [Pick("growing", 2), Pick("growing", 3)]
    assert taken(scheduler) == [Pick("growing", 4)]
    assert not scheduler.waiting


def test_a_job_may_grow_after_all_that_was_there_is_computed() -> None:
    """A growing job whose texts are all computed waits for the tokenizer and then continues."""
    scheduler = scheduler_of(100)
    scheduler.add("growing", [10], Priority.PASSAGE, grows=True)
    assert taken(scheduler) == [Pick("growing", 0)]
    assert scheduler.next_batch(Flights(4)) is None
    scheduler.extend("growing", [20, 30], last=False)
    assert taken(scheduler) == [Pick("growing", 1), Pick("growing", 2)]
    scheduler.extend("growing", [], last=True)
    assert not scheduler.waiting
    with pytest.raises(Cancelled):
        scheduler.extend("growing", [10], last=True)


def test_a_closed_scheduler_waits_for_the_rest_of_a_job_that_it_accepted() -> None:
    """A worker that shuts down completes a request whose texts are still arriving."""
    scheduler = scheduler_of(100)
    scheduler.add("growing", [10], Priority.PASSAGE, grows=True)
    scheduler.close()
    assert taken(scheduler) == [Pick("growing", 0)]
    assert not scheduler.over
    scheduler.extend("growing", [10], last=True)
    assert taken(scheduler) == [Pick("growing", 1)]
    assert scheduler.over


def test_the_queue_keeps_room_for_what_a_job_may_still_bring() -> None:
    """An accepted request keeps room in the queue for its later texts."""
    scheduler: Scheduler[str] = Scheduler(budget=100, queue_tokens=100)
    scheduler.add("growing", [10], Priority.PASSAGE, grows=True, expected=80)
    assert scheduler.free_tokens == 20
    with pytest.raises(Overloaded, match="80 of 100 tokens and this request has 30"):
        scheduler.add("too large now", [30], Priority.PASSAGE)
    with pytest.raises(Overloaded, match="this request has 21"):
        scheduler.add("growing, too", [5], Priority.PASSAGE, grows=True, expected=21)
    scheduler.add("small", [20], Priority.PASSAGE)
    scheduler.extend("growing", [40], last=False)
    assert scheduler.free_tokens == 0
    scheduler.extend("growing", [10], last=True)
    assert scheduler.free_tokens == 20, "fewer came than there might have been"


@pytest.mark.parametrize("leave", ["drop", "abandon", "lose_all"])
def test_a_job_that_leaves_gives_back_the_room_that_was_kept_for_it(leave: str) -> None:
    """A cancelled request releases its reserved room in the queue."""
    scheduler: Scheduler[str] = Scheduler(budget=100, queue_tokens=100)
    scheduler.add("growing", [10], Priority.PASSAGE, grows=True, expected=80)
    getattr(scheduler, leave)(*([] if leave == "lose_all" else ["growing"]))
    assert scheduler.free_tokens == 100


@pytest.mark.parametrize("leave", ["drop", "abandon", "lose_all"])
def test_a_job_that_nobody_wants_any_more_does_not_grow(leave: str) -> None:
    """After a cancellation or without devices, further texts are refused."""
    scheduler = scheduler_of(100)
    scheduler.add("growing", [10], Priority.PASSAGE, grows=True)
    taken(scheduler)
    if leave == "lose_all":
        assert scheduler.lose_all() == {}
    else:
        getattr(scheduler, leave)("growing")
    assert not scheduler.waiting
    with pytest.raises(DeviceLost if leave == "lose_all" else Cancelled):
        scheduler.extend("growing", [10], last=True)


def test_a_job_outgrows_the_queue() -> None:
    """A growing job has the size limit of a whole one; room that others use is retryable."""
    scheduler: Scheduler[str] = Scheduler(budget=10, queue_tokens=20)
    scheduler.add("growing", [10], Priority.PASSAGE, grows=True)
    scheduler.add("other", [8], Priority.PASSAGE)
    with pytest.raises(Overloaded, match="18 of 20 tokens and this request has 6 more; retry later"):
        scheduler.extend("growing", [6], last=True)
    taken(scheduler)
    scheduler.extend("growing", [6], last=False)
    with pytest.raises(InvalidRequest, match=r"21 tokens .*QUEUE_TOKENS=20.*; split the job"):
        scheduler.extend("growing", [5], last=True)


# --- the window of streams ------------------------------------------------------------------------------------------


def test_a_window_holds_streams_back_until_results_are_released() -> None:
    """Streams share a window and continue as results are released; other jobs are not held back."""
    scheduler = scheduler_of(100, window=25)
    scheduler.add("slow", [10] * 10, Priority.PASSAGE, streams=True)
    scheduler.consume("slow")
    scheduler.add("free", [10] * 2, Priority.PASSAGE)
    assert [pick.key for pick in taken(scheduler)] == ["slow", "free", "slow", "free", "slow"]
    assert taken(scheduler) == []
    assert scheduler.waiting
    assert scheduler.tokens == 70
    scheduler.release("slow", [0, 1, 2])
    assert taken(scheduler) == [Pick("slow", 3), Pick("slow", 4), Pick("slow", 5)]
    scheduler.release("slow", [0, 1, 2])  # releasing a text twice counts once
    assert taken(scheduler) == []


def test_a_result_counts_as_long_as_one_of_its_batch_is_held() -> None:
    """A consumer that keeps one result of each batch never holds more batches than the window does."""
    scheduler = scheduler_of(30, window=60)
    scheduler.add("slow", [10] * 30, Priority.PASSAGE, streams=True)
    scheduler.consume("slow")
    first, second = taken(scheduler), taken(scheduler)
    assert taken(scheduler) == []
    scheduler.release("slow", [pick.index for pick in [*first[1:], *second[1:]]])
    assert taken(scheduler) == [], "either batch has a result that is held"
    scheduler.release("slow", [first[0].index])
    assert [pick.index for pick in taken(scheduler)] == [6, 7, 8]
    assert taken(scheduler) == []


def test_a_stream_takes_nothing_of_the_window_before_it_is_consumed() -> None:
    """A hundred unconsumed streams do not block a consumed one."""
    scheduler = scheduler_of(100, window=25)
    for number in range(100):
        scheduler.add(f"idle {number}", [10] * 10, Priority.PASSAGE, streams=True)
    assert scheduler.next_batch(Flights(4)) is None
    assert scheduler.tokens == 10_000
    scheduler.consume("idle 57")
    assert [pick.key for pick in taken(scheduler)] == ["idle 57"] * 3


def test_many_streams_have_one_window() -> None:
    """Ten slow consumers hold no more results than one does."""
    scheduler = scheduler_of(1000, window=25)
    for number in range(10):
        scheduler.add(str(number), [10] * 10, Priority.PASSAGE, streams=True)
        scheduler.consume(str(number))
    assert [pick.key for pick in taken(scheduler)] == ["0", "1", "2"]
    assert taken(scheduler) == []


def test_a_dropped_stream_returns_what_it_held() -> None:
    """A dropped stream with computed and running results returns its whole share of the window."""
    scheduler = scheduler_of(10, window=20)
    scheduler.add("gone", [10] * 5, Priority.PASSAGE, streams=True)
    scheduler.consume("gone")
    taken(scheduler)
    running = scheduler.next_batch(Flights(4))
    scheduler.drop("gone")
    assert running is not None
    scheduler.finish(running, Flights(4))
    scheduler.add("next", [10] * 5, Priority.PASSAGE, streams=True)
    scheduler.consume("next")
    assert [taken(scheduler), taken(scheduler), taken(scheduler)] == [[Pick("next", 0)], [Pick("next", 1)], []]


def test_a_text_longer_than_the_window_goes_alone() -> None:
    """A text over the window waits only until everything else is released."""
    scheduler = scheduler_of(100, window=20)
    scheduler.add("job", [10, 50, 10], Priority.PASSAGE, streams=True)
    scheduler.consume("job")
    assert taken(scheduler) == [Pick("job", 0), Pick("job", 1)]
    assert taken(scheduler) == []
    scheduler.release("job", [0, 1])
    assert taken(scheduler) == [Pick("job", 2)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    jobs=st.lists(st.tuples(lengths, priorities, caps, st.booleans()), max_size=6),
    budget=budgets,
    window=st.integers(1, 300),
)
def test_windows_lose_no_text(jobs: list[tuple[list[int], Priority, int, bool]], budget: int, window: int) -> None:
    """With any window, each text is planned once if results are released."""
    scheduler = scheduler_of(budget, window=window)
    for number, (job, priority, cap, streams) in enumerate(jobs):
        scheduler.add(str(number), job, priority, cap=cap, streams=streams)
        scheduler.consume(str(number))
    planned = []
    while scheduler.waiting:
        batch = taken(scheduler)
        assert batch
        planned += [(int(pick.key), pick.index) for pick in batch]
        for pick in batch:
            scheduler.release(pick.key, [pick.index])
    assert sorted(planned) == [(number, n) for number, (job, *_) in enumerate(jobs) for n in range(len(job))]


# --- yield points ---------------------------------------------------------------------------------------------------


def pass_over_passages(scheduler: Scheduler[str]) -> Pass[str]:
    """Return a pass over a passage that started at 100 s."""
    scheduler.add("passage", [10], Priority.PASSAGE)
    batch = scheduler.next_batch(Flights(4))
    assert batch is not None
    return Pass(batch, Flights(1000), started_s=100.0)


def test_queries_go_first_at_a_yield_point() -> None:
    """Queries that arrive while passages are computed come next, one batch at a time."""
    scheduler = scheduler_of(10)
    running = pass_over_passages(scheduler)
    assert scheduler.queries_first(running, 100.0) is None
    for name in ("a query", "another"):
        scheduler.add(name, [8], Priority.QUERY)
    scheduler.add("more passages", [8], Priority.PASSAGE)
    first = scheduler.queries_first(running, 100.0)
    assert first is not None
    assert first.picks == (Pick("a query", 0),)
    assert first.priority is Priority.QUERY


def test_queries_without_end_take_half_the_time_of_a_pass() -> None:
    """A pass gets as much time as the queries that precede it, but for one batch of queries."""
    scheduler = scheduler_of(10)
    running = pass_over_passages(scheduler)
    now, served = 100.0, 0
    for number in range(100):
        scheduler.add(f"query {number}", [8], Priority.QUERY)
        now += 1.0  # the pass itself computes
        if scheduler.queries_first(running, now) is not None:
            served += 1
            running.yielded_s += 4.0
            now += 4.0
    assert served == 26  # 4 s each, of 100 s of its own, and one more


def test_an_abandoned_stream_leaves_the_queue_and_keeps_what_it_holds() -> None:
    """An abandoned stream frees its window share as each vector is released, even from a running pass."""
    scheduler = scheduler_of(10, window=20)
    scheduler.add("gone", [10] * 5, Priority.PASSAGE, streams=True)
    scheduler.consume("gone")
    taken(scheduler)
    running = scheduler.next_batch(Flights(4))
    assert running is not None
    scheduler.abandon("gone")
    assert scheduler.tokens == 0
    with pytest.raises(Cancelled):
        scheduler.queries_first(Pass(running, Flights(4), started_s=0.0), 1.0)
    scheduler.finish(running, Flights(4))
    scheduler.add("next", [10] * 5, Priority.PASSAGE, streams=True)
    scheduler.consume("next")
    assert taken(scheduler) == []
    scheduler.release("gone", [0])
    assert taken(scheduler) == [Pick("next", 0)]
    assert taken(scheduler) == []
    scheduler.drop("gone")
    assert taken(scheduler) == [Pick("next", 1)]
    scheduler.abandon("unknown")


def test_a_pass_that_nobody_waits_for_stops_at_a_yield_point() -> None:
    """A pass stops at a yield point after its last job was dropped."""
    scheduler = scheduler_of(20)
    scheduler.add("one", [10], Priority.PASSAGE)
    scheduler.add("other", [10, 10], Priority.PASSAGE)
    batch = scheduler.next_batch(Flights(4))
    assert batch is not None
    running = Pass(batch, Flights(2), started_s=0.0)
    scheduler.drop("one")
    assert scheduler.queries_first(running, 1.0) is None
    scheduler.drop("other")
    with pytest.raises(Cancelled):
        scheduler.queries_first(running, 1.0)


# --- worker threads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "passages"), [(1, 1), (2, 1), (3, 1), (4, 2), (64, 32)])
def test_passages_leave_room_for_queries(limit: int, passages: int) -> None:
    """Passages use at most half of the batches that a device may have in flight, and at least one."""
    scheduler, flights = scheduler_of(8), Flights(limit)
    scheduler.add("passages", [8] * 100, Priority.PASSAGE)
    while scheduler.next_batch(flights) is not None:
        pass
    assert flights.under_way == {Priority.PASSAGE: passages}
    for number in range(100):
        scheduler.add(f"query {number}", [8], Priority.QUERY)
    while scheduler.next_batch(flights) is not None:
        pass
    assert flights.under_way == Counter({Priority.PASSAGE: passages, Priority.QUERY: limit - passages})


def test_queries_that_come_while_a_few_are_computed_share_the_next_batch() -> None:
    """Queries wait for a small query batch to finish, but start immediately beside a large one."""
    scheduler, flights = scheduler_of(16), Flights(4, lone_tokens=16)
    scheduler.add("first", [8], Priority.QUERY)
    first = scheduler.next_batch(flights)
    assert first is not None
    for number in range(3):
        scheduler.add(f"query {number}", [8], Priority.QUERY)
        assert scheduler.next_batch(flights) is None
    scheduler.finish(first, flights)
    full = scheduler.next_batch(flights)
    assert full is not None
    assert [pick.key for pick in full.picks] == ["query 0", "query 1"]
    assert scheduler.next_batch(flights) is not None, "16 tokens under way are no few"


def test_a_finished_batch_makes_room_for_another() -> None:
    """A device takes its next batch when its only one is done."""
    scheduler, flights = scheduler_of(8), Flights(1)
    scheduler.add("passages", [8] * 2, Priority.PASSAGE)
    batch = scheduler.next_batch(flights)
    assert batch is not None
    assert scheduler.next_batch(flights) is None
    scheduler.finish(batch, flights)
    assert scheduler.next_batch(flights) is not None


def test_a_device_full_of_passages_still_takes_queries() -> None:
    """A device that is full of passages gets a batch of queries out of turn, or none."""
    scheduler = scheduler_of(10)
    scheduler.add("passages", [8, 8], Priority.PASSAGE)
    assert taken(scheduler, full_of_passages()) == []
    scheduler.add("query", [8], Priority.QUERY)
    assert taken(scheduler, full_of_passages()) == [Pick("query", 0)]


def test_queries_wait_where_nothing_more_may_be_under_way() -> None:
    """A device that allows one batch launches no queries at that batch's yield point."""
    scheduler, flights = scheduler_of(10), Flights(1)
    scheduler.add("passages", [8], Priority.PASSAGE)
    batch = scheduler.next_batch(flights)
    assert batch is not None
    scheduler.add("query", [8], Priority.QUERY)
    assert scheduler.queries_first(Pass(batch, flights, started_s=0.0), now_s=1.0) is None
    flights.limit = 2
    assert scheduler.queries_first(Pass(batch, flights, started_s=0.0), now_s=1.0) is not None


def test_work_ends_when_what_was_accepted_is_taken() -> None:
    """After closing, the plan ends when the queue is empty, streams included."""
    scheduler = scheduler_of(10)
    scheduler.add("stream", [8], Priority.PASSAGE, streams=True)
    assert not scheduler.over
    scheduler.close()
    assert not scheduler.over
    scheduler.consume("stream")
    assert taken(scheduler) == [Pick("stream", 0)]
    assert scheduler.over


# --- admission ------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_names_the_numbers() -> None:
    """A job over the limit is invalid; one that does not fit now is retryable, and fits later."""
    scheduler: Scheduler[str] = Scheduler(budget=10, queue_tokens=20)
    with pytest.raises(InvalidRequest, match=r"21 tokens .*QUEUE_TOKENS=20"):
        scheduler.add("too large", [21], Priority.PASSAGE)
    scheduler.add("first", [10, 5], Priority.PASSAGE)
    with pytest.raises(Overloaded, match="15 of 20 tokens and this request has 6"):
        scheduler.add("second", [6], Priority.PASSAGE)
    scheduler.add("fits", [5], Priority.PASSAGE)
    taken(scheduler)
    scheduler.add("second", [6], Priority.PASSAGE)


def test_a_closed_scheduler_accepts_nothing() -> None:
    """A closed scheduler still plans accepted jobs and refuses new ones, as the worker is shutting down."""
    scheduler = scheduler_of(10)
    scheduler.add("job", [8], Priority.QUERY)
    scheduler.close()
    with pytest.raises(Cancelled):
        scheduler.add("late", [8], Priority.QUERY)
    assert taken(scheduler) == [Pick("job", 0)]


def test_without_a_device_every_waiting_text_is_named() -> None:
    """Losing the last device returns each waiting text once and makes new jobs retryable errors."""
    scheduler = scheduler_of(10)
    scheduler.add("query", [8], Priority.QUERY)
    scheduler.add("passages", [10] * 3, Priority.PASSAGE)
    scheduler.add("stream", [10] * 2, Priority.PASSAGE, streams=True)
    taken(scheduler, full_of_passages())
    taken(scheduler)
    assert scheduler.lose_all() == {"passages": [1, 2], "stream": [0, 1]}
    assert scheduler.lose_all() == {}
    assert not scheduler.waiting
    assert scheduler.tokens == 0
    with pytest.raises(DeviceLost, match="must be restarted"):
        scheduler.add("late", [8], Priority.QUERY)
