"""The plan of the pool. Pure: lengths, a budget and the time in, batches out; no threads, no torch, no clock.

Rules, in the order in which they apply:

1. Queries go before passages, and a batch never mixes the two: a query that rides with passages
   waits for all of them. But passages that one batch of queries has passed over come next, so that an
   endless stream of queries does not starve them; they yield to queries while they run. A job of queries that do not
   fit into one batch counts as passages: a single query would wait for batch after batch of it.
2. Jobs of one priority take turns text by text, and the job that opened a batch goes to the back of
   the queue, so a small job is not stuck behind a large one and no job starves.
3. A batch holds at most `budget` tokens, except that a longer text goes alone.
4. A job's `cap` bounds how many of its texts share a batch.
5. Jobs that stream share a `window`: while it is used up, by tokens that were taken and not released again,
   their texts wait. So results never pile up in front of slow consumers, however many there are. What a stream took for
   one batch counts until the last of it is released: a single result can hold the vectors of all. The last text
   taken may exceed the window. A stream without a consumer takes nothing of it, so that many streams can be queued
   while few threads consume them.
6. At a yield point of a batch of passages one batch of queries goes first, unless queries have taken more time of
   this pass than the pass itself: it might never end. A batch of which no job wants a result any more stops there.
7. A device has a few batches under way at once (`Flights`), of which some are always left for queries: a GPU computes
   one batch while the next is launched, and the results of another are unpacked.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Generic, TypeVar

from embedder.errors import Cancelled, DeviceLost, InvalidRequest, Overloaded

JobKey = TypeVar("JobKey", bound=Hashable)

TEXT_MIN_TOKENS: Final = 2
"""No text has fewer tokens: `<s> </s>`."""

NO_DEVICE = "no device of this worker computes any more; it must be restarted"
UNWANTED = "nobody waits for this text any more"


class Priority(IntEnum):
    """Lower goes first."""

    QUERY = 0
    PASSAGE = 1


@dataclass(frozen=True, slots=True)
class Pick(Generic[JobKey]):
    """Text number `index` of the job `key`."""

    key: JobKey
    index: int


@dataclass(frozen=True, slots=True)
class Batch(Generic[JobKey]):
    """The texts of one pass.

    Attributes:
        picks: at least one.
        priority: of all of them.
        tokens: of all of them together.
    """

    picks: tuple[Pick[JobKey], ...]
    priority: Priority
    tokens: int

    def by_job(self) -> dict[JobKey, list[int]]:
        """Positions in `picks` by job."""
        positions: dict[JobKey, list[int]] = {}
        for position, pick in enumerate(self.picks):
            positions.setdefault(pick.key, []).append(position)
        return positions


@dataclass(slots=True)
class Flights:
    """The batches of one device that are under way: launched, and their results not yet handed over.

    Attributes:
        limit: most batches under way; at most half of them are passages, but always one may be.
        lone_tokens: tokens of queries below which no further queries are launched until they are done: where a batch
            takes as long as one query, those that come meanwhile had better share the next one.
        under_way: their number by priority.
        query_tokens: tokens of the queries under way.
    """

    limit: int
    lone_tokens: int = 0
    under_way: Counter[Priority] = field(default_factory=Counter)
    query_tokens: int = 0

    def has_room(self, priority: Priority) -> bool:
        """Whether a batch of this priority may be launched."""
        if self.under_way.total() >= self.limit:
            return False
        if priority is Priority.QUERY:
            return not self.under_way[Priority.QUERY] or self.query_tokens >= self.lone_tokens
        return self.under_way[Priority.PASSAGE] < max(1, self.limit // 2)

    def launched(self, priority: Priority, tokens: int) -> None:
        """A batch is under way."""
        self.under_way[priority] += 1
        self.query_tokens += tokens if priority is Priority.QUERY else 0

    def finished(self, priority: Priority, tokens: int) -> None:
        """A batch is done."""
        self.under_way[priority] -= 1
        self.query_tokens -= tokens if priority is Priority.QUERY else 0


@dataclass(slots=True)
class Pass(Generic[JobKey]):
    """A batch that is being computed.

    Attributes:
        batch: what is computed.
        flights: of the device that computes it.
        started_s: when the pass started.
        yielded_s: seconds that queries took at its yield points.
    """

    batch: Batch[JobKey]
    flights: Flights
    started_s: float
    yielded_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Portion:
    """The texts of a stream in one batch.

    Attributes:
        tokens: of all of them, which the window gets back together.
        held: how many of them are not released.
    """

    tokens: int = 0
    held: int = 0


@dataclass(slots=True, eq=False)
class _Job(Generic[JobKey]):
    """The state of one job until its last result is computed and released.

    Attributes:
        next: number of the first text that waits.
        computing: texts that are in a pass.
        held: of a stream, the portion of each text that was taken and not released.
        consumed: whether its texts may be taken: of a stream, once somebody consumes it.
        wanted: whether somebody wants its results; if not, nothing of it waits.
        grows: whether further texts may come.
        expected: most tokens that may still come, for which the queue keeps room.
    """

    key: JobKey
    lengths: list[int]
    priority: Priority
    cap: float
    streams: bool
    grows: bool
    next: int = 0
    computing: int = 0
    held: dict[int, _Portion] = field(default_factory=dict)
    consumed: bool = True
    wanted: bool = True
    expected: int = 0

    @property
    def waiting(self) -> range:
        return range(self.next, len(self.lengths))

    @property
    def over(self) -> bool:
        return not (self.grows or self.computing or self.held or self.waiting)


class Scheduler(Generic[JobKey]):
    """The jobs of a pool and the plan for them. Not thread-safe.

    Args:
        budget: most tokens of one batch; a longer text goes alone.
        queue_tokens: most tokens that may wait.
        window: most tokens of streams that are being computed, or were computed and are not released.

    Attributes:
        budget: as given.
        queue_tokens: as given.
        window: as given.
        tokens: tokens of all texts that wait.
    """

    def __init__(self, *, budget: int, queue_tokens: float = math.inf, window: float = math.inf) -> None:
        self.budget = budget
        self.queue_tokens = queue_tokens
        self.window = window
        self.tokens = 0
        self._free = window
        self._expected = 0
        self._closed = False
        self._lost = False
        self._passed_over = False
        self._jobs: dict[JobKey, _Job[JobKey]] = {}
        self._queues: dict[Priority, deque[_Job[JobKey]]] = {priority: deque() for priority in Priority}

    # --- jobs -------------------------------------------------------------------------------------------------------

    def add(
        self,
        key: JobKey,
        lengths: Sequence[int],
        priority: Priority,
        *,
        cap: int = 0,
        streams: bool = False,
        grows: bool = False,
        expected: int = 0,
    ) -> None:
        """Queue a job.

        Args:
            key: names it.
            lengths: tokens of each of its texts.
            priority: of all its texts; that of passages if they are queries of more tokens than a batch.
            cap: most of its texts in one batch; 0 leaves it to the budget.
            streams: whether it shares the window; it then waits for `consume`.
            grows: whether `extend` brings further texts; until its last ones are there the job is not over.
            expected: most tokens of the whole job, where it grows; the queue keeps room for those that still come.

        Raises:
            InvalidRequest: the job alone is larger than the queue.
            Cancelled: the scheduler is closed.
            DeviceLost: no device is left that computes.
            Overloaded: the queue has no room for the job now.
        """
        tokens = sum(lengths)
        self._check_size(tokens)
        whole = max(tokens, expected)
        self.check_room(whole)
        if whole > self.budget:
            priority = Priority.PASSAGE
        if lengths or grows:
            job = _Job(key, list(lengths), priority, cap or math.inf, streams, grows, consumed=not streams)
            self._expect(job, whole - tokens)
            self._jobs[key] = job
            self._enqueue(job, tokens)

    def check_room(self, tokens: int) -> None:
        """Check that a job of so many tokens would be queued now; its size alone is not checked.

        Raises:
            Cancelled: the scheduler is closed.
            DeviceLost: no device is left that computes.
            Overloaded: the queue has no room for the job now.
        """
        if self._closed:
            raise Cancelled("the worker is shutting down")
        if self._lost:
            raise DeviceLost(NO_DEVICE)
        if self.tokens + self._expected + tokens > self.queue_tokens:
            raise Overloaded(
                f"the queue holds {self.tokens + self._expected} of {self.queue_tokens} tokens "
                f"and this request has {tokens}; retry later"
            )

    def extend(self, key: JobKey, lengths: Sequence[int], *, last: bool) -> None:
        """Queue further texts of a job that grows. It stays one job, for its turn, its cap and its window.

        Accepted after `close` too, as the job was. Where this raises, its caller should `drop` the job.

        Args:
            key: of the job.
            lengths: tokens of each further text.
            last: whether no more come.

        Raises:
            InvalidRequest: the whole job is now larger than the queue.
            Cancelled: the job was dropped.
            DeviceLost: no device is left that computes.
            Overloaded: the queue has no room for these texts now.
        """
        job = self._jobs.get(key)
        if self._lost:
            raise DeviceLost(NO_DEVICE)
        if job is None or not job.wanted:
            raise Cancelled("nobody waits for this job any more")
        tokens = sum(lengths)
        self._check_size(sum(job.lengths) + tokens)
        unexpected = max(0, tokens - job.expected)
        if self.tokens + self._expected + unexpected > self.queue_tokens:
            raise Overloaded(
                f"the queue holds {self.tokens} of {self.queue_tokens} tokens "
                f"and this request has {tokens} more; retry later"
            )
        self._expect(job, 0 if last else max(0, job.expected - tokens))
        idle = not job.waiting
        job.lengths += lengths
        job.grows = not last
        if idle:
            self._enqueue(job, tokens)
        else:
            self.tokens += tokens
        self._forget_if_over(job)

    def consume(self, key: JobKey) -> None:
        """Somebody takes the results of this stream from now on."""
        if key in self._jobs:
            self._jobs[key].consumed = True

    def release(self, key: JobKey, indices: Sequence[int]) -> None:
        """The consumer of a stream is done with these results; others may be computed in their place."""
        job = self._jobs.get(key)
        if job is not None:
            self._release(job, indices)
            self._forget_if_over(job)

    def abandon(self, key: JobKey) -> None:
        """Nobody wants further results of this stream: forget what waits. What it holds counts until it is released."""
        job = self._jobs.get(key)
        if job is not None:
            self._dequeue(job)
            job.wanted = job.grows = False
            self._expect(job, 0)
            self._forget_if_over(job)

    def drop(self, key: JobKey) -> None:
        """Nobody wants a result of this job any more: forget what waits of it and release the rest."""
        job = self._jobs.pop(key, None)
        if job is not None:
            self._dequeue(job)
            self._expect(job, 0)
            self._release(job, list(job.held))

    def close(self) -> None:
        """Accept no job any more; what was accepted is still planned."""
        self._closed = True

    def lose_all(self) -> dict[JobKey, list[int]]:
        """No device is left that computes: accept no job any more, and return the texts that wait, by job."""
        self._lost = True
        stranded = {job.key: list(job.waiting) for queue in self._queues.values() for job in queue}
        for job in list(self._jobs.values()):
            self._dequeue(job)
            self._expect(job, 0)
            job.grows = False
            self._forget_if_over(job)
        return stranded

    @property
    def free_tokens(self) -> float:
        """Tokens for which the queue has room."""
        return self.queue_tokens - self.tokens - self._expected

    # --- passes -----------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether a text waits, be it for its turn, for the window or for a consumer, or is still to come."""
        return any(self._queues.values()) or any(job.grows for job in self._jobs.values())

    @property
    def over(self) -> bool:
        """Whether nothing waits and nothing will: after `close`."""
        return self._closed and not self.waiting

    def next_batch(self, flights: Flights) -> Batch[JobKey] | None:
        """Remove and return the next batch for a device, now under way there; None if no text may be taken now."""
        has_room = flights.has_room(Priority.PASSAGE)
        passages = has_room and self._has_ready(Priority.PASSAGE)
        queries = flights.has_room(Priority.QUERY) and self._has_ready(Priority.QUERY)
        if passages and self._passed_over:
            queries = False
        if has_room:
            self._passed_over = queries and passages
        if not (queries or passages):
            return None
        return self._launched(Priority.QUERY if queries else Priority.PASSAGE, flights)

    def queries_first(self, running: Pass[JobKey], now_s: float) -> Batch[JobKey] | None:
        """The queries that go first at a yield point of a pass; None if it goes on: rule 6.

        Args:
            running: the pass; the caller adds to `yielded_s` what the queries take.
            now_s: the time, by the clock of `started_s`.

        Raises:
            Cancelled: no job wants a result of the pass any more; it should stop.
        """
        jobs = (self._jobs.get(pick.key) for pick in running.batch.picks)
        if not any(job is not None and job.wanted for job in jobs):
            raise Cancelled("nobody waits for this batch any more")
        own_s = now_s - running.started_s - running.yielded_s
        if running.yielded_s > own_s or not running.flights.has_room(Priority.QUERY):
            return None
        return self._launched(Priority.QUERY, running.flights)

    def finish(self, batch: Batch[JobKey], flights: Flights) -> None:
        """The batch was computed, or its texts failed."""
        flights.finished(batch.priority, batch.tokens)
        for pick in batch.picks:
            job = self._jobs.get(pick.key)
            if job is not None:
                job.computing -= 1
                self._forget_if_over(job)

    def _launched(self, priority: Priority, flights: Flights) -> Batch[JobKey] | None:
        batch = self._take(priority)
        if batch is not None:
            flights.launched(priority, batch.tokens)
        return batch

    def _take(self, priority: Priority) -> Batch[JobKey] | None:
        queue = self._queues[priority]
        visited: list[_Job[JobKey]] = []
        picks: list[Pick[JobKey]] = []
        portions: dict[JobKey, _Portion] = {}
        left = self.budget
        open_jobs: Iterable[_Job[JobKey]] = _popped(queue, visited)
        turn = 0
        while open_jobs and (left >= TEXT_MIN_TOKENS or not picks):
            turn += 1
            still_open = []
            for job in open_jobs:
                if not self._ready(job):
                    continue
                length = job.lengths[job.next]
                if length > left and picks:
                    continue
                picks.append(Pick(job.key, job.next))
                self._start(job, length, portions)
                left -= length
                if turn < job.cap and job.next < len(job.lengths):
                    still_open.append(job)
                if left < TEXT_MIN_TOKENS:
                    break
            open_jobs = still_open
        opener = self._jobs[picks[0].key] if picks else None
        queue.extendleft(job for job in reversed(visited) if job.waiting and job is not opener)
        if opener is not None and opener.waiting:
            queue.append(opener)
        return Batch(tuple(picks), priority, self.budget - left) if picks else None

    def _start(self, job: _Job[JobKey], length: int, portions: dict[JobKey, _Portion]) -> None:
        """The next text of a job leaves the queue for a batch with these portions."""
        if job.streams:
            portion = job.held[job.next] = portions.setdefault(job.key, _Portion())
            portion.tokens += length
            portion.held += 1
            self._free -= length
        job.next += 1
        job.computing += 1
        self.tokens -= length

    def _has_ready(self, priority: Priority) -> bool:
        return next(self._ready_jobs(priority), None) is not None

    def _ready_jobs(self, priority: Priority) -> Iterator[_Job[JobKey]]:
        return (job for job in self._queues[priority] if self._ready(job))

    def _ready(self, job: _Job[JobKey]) -> bool:
        return job.next < len(job.lengths) and (not job.streams or (job.consumed and self._free > 0))

    def _release(self, job: _Job[JobKey], indices: Sequence[int]) -> None:
        """Give the tokens of portions of which nothing is held back to the window."""
        for index in indices:
            portion = job.held.pop(index, None)
            if portion is not None:
                portion.held -= 1
                self._free += 0 if portion.held else portion.tokens

    def _check_size(self, tokens: int) -> None:
        if tokens > self.queue_tokens:
            raise InvalidRequest(
                f"{tokens} tokens are more than the queue holds (QUEUE_TOKENS={self.queue_tokens}); split the job"
            )

    def _enqueue(self, job: _Job[JobKey], tokens: int) -> None:
        """A job of which no text waited takes its place, with texts of so many tokens."""
        if job.waiting:
            self._queues[job.priority].append(job)
            self.tokens += tokens

    def _expect(self, job: _Job[JobKey], tokens: int) -> None:
        """Keep room for so many tokens of a job, and no more."""
        self._expected += tokens - job.expected
        job.expected = tokens

    def _dequeue(self, job: _Job[JobKey]) -> None:
        if job.waiting:
            self._queues[job.priority].remove(job)
            self.tokens -= sum(job.lengths[index] for index in job.waiting)
            job.next = len(job.lengths)

    def _forget_if_over(self, job: _Job[JobKey]) -> None:
        if job.over:
            self._jobs.pop(job.key, None)


def _popped(queue: deque[_Job[JobKey]], visited: list[_Job[JobKey]]) -> Iterator[_Job[JobKey]]:
    """The jobs from the front of a queue, which leave it: only those that a batch has come to cost it time."""
    while queue:
        visited.append(queue.popleft())
        yield visited[-1]
