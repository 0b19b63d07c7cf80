"""Every text gets its turn: exactly once, within the budget, queries first, nobody stuck."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from embedder.batching import BatchQueue, Pick, Priority

lengths = st.lists(st.integers(2, 40), min_size=1, max_size=12)
priorities = st.sampled_from(Priority)
caps = st.integers(0, 4)
budgets = st.integers(2, 60)


@dataclass
class Waiting:
    """A job as the model of the queue knows it."""

    lengths: list[int]
    priority: Priority
    cap: int
    next: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that still wait."""
        return sum(self.lengths[self.next :])


class Queueing(RuleBasedStateMachine):
    """Jobs come, are taken and are dropped, in any order, beside a plain model of what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: BatchQueue[int] = BatchQueue()
        self.jobs: dict[int, Waiting] = {}
        self.serial = 0
        self.passed_over = False

    @rule(lengths=lengths, priority=priorities, cap=caps)
    def add(self, lengths: list[int], priority: Priority, cap: int) -> None:
        """A job arrives."""
        self.serial += 1
        self.jobs[self.serial] = Waiting(lengths, priority, cap)
        self.queue.add(self.serial, lengths, priority, cap=cap)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """A job is cancelled."""
        key = data.draw(st.sampled_from(sorted(self.jobs)))
        self.queue.drop(key)
        del self.jobs[key]

    @rule()
    def drop_a_stranger(self) -> None:
        """A job that is done, or never was, is cancelled."""
        self.queue.drop(-1)

    @rule(budget=budgets)
    def take(self, budget: int) -> None:
        """A batch is formed, and keeps all the rules."""
        waiting = {job.priority for job in self.jobs.values() if job.tokens}
        picks = self.queue.take(budget)
        assert bool(picks) == bool(waiting)
        taken = [self.jobs[pick.key] for pick in picks]
        self._check_budget(picks, budget)
        assert len({job.priority for job in taken}) <= 1
        if taken:
            both = len(waiting) == 2
            assert taken[0].priority == (Priority.PASSAGE if both and self.passed_over else min(waiting))
            self.passed_over = both and taken[0].priority is Priority.QUERY
        for key in {pick.key for pick in picks}:
            self._advance(key, [pick.index for pick in picks if pick.key == key])

    @rule(budget=budgets)
    def take_queries(self, budget: int) -> None:
        """Queries pass out of turn, beside a batch of passages that runs."""
        waited = self.queue.waits(Priority.QUERY)
        assert waited == any(job.tokens for job in self.jobs.values() if job.priority is Priority.QUERY)
        picks = self.queue.take_queries(budget)
        assert bool(picks) == waited
        assert all(self.jobs[pick.key].priority is Priority.QUERY for pick in picks)
        self._check_budget(picks, budget)
        for key in {pick.key for pick in picks}:
            self._advance(key, [pick.index for pick in picks if pick.key == key])

    def _check_budget(self, picks: list[Pick[int]], budget: int) -> None:
        tokens = sum(self.jobs[pick.key].lengths[pick.index] for pick in picks)
        assert tokens <= budget or len(picks) == 1

    def _advance(self, key: int, indices: list[int]) -> None:
        """The texts of a job leave in their order, each once, no more than its cap at a time."""
        job = self.jobs[key]
        assert indices == list(range(job.next, job.next + len(indices)))
        assert not job.cap or len(indices) <= job.cap
        job.next += len(indices)

    @invariant()
    def tokens_are_those_that_wait(self) -> None:
        """`tokens` counts exactly what waits, and the queue is true while something does."""
        assert self.queue.tokens == sum(job.tokens for job in self.jobs.values())
        assert bool(self.queue) == (self.queue.tokens > 0)


Queueing.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)
TestQueueing = Queueing.TestCase


def drained(queue: BatchQueue[str], budget: int) -> list[list[Pick[str]]]:
    """All batches until nothing waits."""
    batches = []
    while queue:
        batches.append(queue.take(budget))
    return batches


@settings(max_examples=60, deadline=None, derandomize=True)
@given(jobs=st.lists(st.tuples(lengths, priorities, caps), max_size=8), budget=budgets)
def test_every_text_leaves_exactly_once(jobs: list[tuple[list[int], Priority, int]], budget: int) -> None:
    """Whatever is queued, draining the queue gives each text of each job once, and then nothing."""
    queue: BatchQueue[str] = BatchQueue()
    for number, (job, priority, cap) in enumerate(jobs):
        queue.add(str(number), job, priority, cap=cap)
    left = [(pick.key, pick.index) for batch in drained(queue, budget) for pick in batch]
    assert sorted(left) == sorted((str(number), n) for number, (job, _, _) in enumerate(jobs) for n in range(len(job)))
    assert queue.tokens == 0
    assert queue.take(budget) == []


def test_a_query_does_not_wait_for_passages() -> None:
    """A query that arrives behind a thousand passages is in the next batch, and rides without them."""
    queue: BatchQueue[str] = BatchQueue()
    queue.add("passages", [100] * 1000, Priority.PASSAGE)
    queue.add("query", [8], Priority.QUERY)
    assert queue.take(4096) == [Pick("query", 0)]


@given(length=st.integers(2, 512))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_small_job_is_not_stuck_behind_a_large_one(length: int) -> None:
    """One text behind a thousand of the same priority is in one of the next two batches, however long it is."""
    queue: BatchQueue[str] = BatchQueue()
    queue.add("large", [100] * 1000, Priority.PASSAGE)
    queue.add("small", [length], Priority.PASSAGE)
    batches = [queue.take(512), queue.take(512)]
    assert any(pick.key == "small" for batch in batches for pick in batch)


@given(lengths=st.lists(st.integers(2, 100), min_size=2, max_size=6))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_no_job_starves(lengths: list[int]) -> None:
    """With n jobs of one priority that never end, each is served within n batches, whatever its lengths."""
    queue: BatchQueue[str] = BatchQueue()
    for number, length in enumerate(lengths):
        queue.add(str(number), [length] * 1000, Priority.PASSAGE)
    served = {pick.key for _ in lengths for pick in queue.take(100)}
    assert served == {str(number) for number in range(len(lengths))}


def test_queries_without_end_starve_no_passages() -> None:
    """Where queries never stop coming, every second batch is of passages."""
    queue: BatchQueue[str] = BatchQueue()
    queue.add("passages", [10] * 4, Priority.PASSAGE)
    served = []
    for number in range(6):
        queue.add(f"query {number}", [8], Priority.QUERY)
        served.append(queue.take(10)[0].key)
    assert [key == "passages" for key in served] == [False, True] * 3


def test_a_drained_queue_is_empty() -> None:
    """Draining names every text that waited and leaves nothing."""
    queue: BatchQueue[str] = BatchQueue()
    queue.add("query", [8], Priority.QUERY)
    queue.add("passages", [10] * 3, Priority.PASSAGE)
    queue.take_queries(8)
    queue.take(10)
    assert queue.drain() == [Pick("passages", 1), Pick("passages", 2)]
    assert not queue
    assert queue.tokens == 0


def test_jobs_take_turns_within_a_batch() -> None:
    """Two jobs of one priority share a batch text by text."""
    queue: BatchQueue[str] = BatchQueue()
    queue.add("a", [10] * 4, Priority.QUERY)
    queue.add("b", [10] * 4, Priority.QUERY)
    assert [pick.key for pick in queue.take(60)] == ["a", "b", "a", "b", "a", "b"]


def test_a_text_over_the_budget_goes_alone() -> None:
    """A text longer than any batch is not refused: it has a batch of its own."""
    queue: BatchQueue[str] = BatchQueue()
    queue.add("a", [100, 2], Priority.QUERY)
    queue.add("b", [2], Priority.QUERY)
    assert queue.take(10) == [Pick("a", 0)]
    assert queue.take(10) == [Pick("b", 0), Pick("a", 1)]


def test_a_cap_leaves_room_for_others() -> None:
    """`batchSize` 2 puts two texts of its job in a batch, and the rest of the batch goes to others."""
    queue: BatchQueue[str] = BatchQueue()
    queue.add("capped", [2] * 5, Priority.QUERY, cap=2)
    queue.add("free", [2] * 5, Priority.QUERY)
    batch = queue.take(100)
    assert [pick.index for pick in batch if pick.key == "capped"] == [0, 1]
    assert [pick.index for pick in batch if pick.key == "free"] == [0, 1, 2, 3, 4]


def test_a_dropped_job_leaves_and_frees_its_room() -> None:
    """After a drop no text of the job leaves any more, and its tokens are no longer counted."""
    queue: BatchQueue[str] = BatchQueue()
    queue.add("dropped", [10] * 3, Priority.QUERY)
    queue.add("kept", [10] * 3, Priority.QUERY)
    queue.take(20)
    queue.drop("dropped")
    assert queue.tokens == 20
    assert {pick.key for batch in drained(queue, 20) for pick in batch} == {"kept"}


def test_a_job_without_texts_is_nothing() -> None:
    """Adding no texts leaves the queue empty."""
    queue: BatchQueue[str] = BatchQueue()
    queue.add("empty", [], Priority.QUERY)
    assert not queue
    assert queue.take(10) == []


def test_a_window_holds_streams_back_until_others_are_done_with() -> None:
    """Streams share a window; others are served meanwhile, and what is released lets streams go on."""
    queue: BatchQueue[str] = BatchQueue(25)
    queue.add("slow", [10] * 10, Priority.PASSAGE, streams=True)
    queue.add("free", [10] * 2, Priority.PASSAGE)
    assert [pick.key for pick in queue.take(100)] == ["slow", "free", "slow", "free", "slow"]
    assert queue.take(100) == []
    assert not queue.waits(Priority.PASSAGE)
    assert queue
    assert queue.tokens == 70
    queue.release(5)
    assert queue.take(100) == []
    queue.release(10)
    assert queue.take(100) == [Pick("slow", 3)]


def test_many_streams_have_one_window() -> None:
    """Ten slow consumers hold no more than one does."""
    queue: BatchQueue[int] = BatchQueue(25)
    for number in range(10):
        queue.add(number, [10] * 10, Priority.PASSAGE, streams=True)
    assert [pick.key for pick in queue.take(1000)] == [0, 1, 2]
    assert queue.take(1000) == []


def test_a_text_longer_than_the_window_goes_alone() -> None:
    """A window smaller than one text delays it until everything else is done with, and no longer."""
    queue: BatchQueue[str] = BatchQueue(20)
    queue.add("job", [10, 50, 10], Priority.PASSAGE, streams=True)
    assert queue.take(100) == [Pick("job", 0), Pick("job", 1)]
    queue.release(10)
    assert queue.take(100) == []
    queue.release(50)
    assert queue.take(100) == [Pick("job", 2)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    jobs=st.lists(st.tuples(lengths, priorities, caps, st.booleans()), max_size=6),
    budget=budgets,
    window=st.integers(1, 300),
)
def test_windows_lose_no_text(jobs: list[tuple[list[int], Priority, int, bool]], budget: int, window: int) -> None:
    """Whatever the window, all texts leave, once each, if what left is released again."""
    queue: BatchQueue[int] = BatchQueue(window)
    for number, (job, priority, cap, streams) in enumerate(jobs):
        queue.add(number, job, priority, cap=cap, streams=streams)
    left = []
    while queue:
        batch = queue.take(budget)
        assert batch
        left += [(pick.key, pick.index) for pick in batch]
        queue.release(sum(jobs[pick.key][0][pick.index] for pick in batch if jobs[pick.key][3]))
        assert queue.window == window
    assert sorted(left) == [(number, n) for number, (job, *_) in enumerate(jobs) for n in range(len(job))]
