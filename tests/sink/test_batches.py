"""Parts of the writer without threads: batches, deliveries and reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.errors import Cancelled, NotFound, WorkerError
from qdrant_sink.conformance import Refusal
from qdrant_sink.errors import NothingTaken, StoreRejected, StoreUnavailable
from qdrant_sink.points import Point
from qdrant_sink.writing import Rejection, WriteReport
from qdrant_sink.writing.batches import Batches, Claim
from qdrant_sink.writing.delivery import deliver
from qdrant_sink.writing.reports import Tally


def _claim(number: int, components: int = 1) -> Claim:
    return Claim(Point(number, {}, dense=np.ones(components, np.float32)), (number,))


@given(sizes=st.lists(st.integers(1, 400), max_size=60), max_bytes=st.integers(1, 4000), max_points=st.integers(1, 20))
def test_batches_hold_every_point_once_in_order_and_within_bounds(
    sizes: list[int], max_bytes: int, max_points: int
) -> None:
    """No batch exceeds a limit unless a single point does, and no two consecutive batches would fit into one."""
    batches = Batches(max_bytes=max_bytes, max_points=max_points)
    claims = [_claim(number, size) for number, size in enumerate(sizes)]
    full = [batch for claim in claims for batch in batches.add(claim)]
    rest = batches.flush()
    assert [claim for batch in [*full, rest] for claim in batch] == claims
    assert all(full)
    nbytes = [sum(claim.point.nbytes for claim in batch) for batch in [*full, rest]]
    for batch, size, following in zip(full, nbytes, [*full[1:], rest], strict=False):
        assert len(batch) <= max_points
        assert len(batch) == 1 or size - batch[-1].point.nbytes < max_bytes
        full_by_bytes = size >= max_bytes or (following and size + following[0].point.nbytes > max_bytes)
        assert len(batch) == max_points or full_by_bytes
    assert batches.flush() == []


class Refusing:
    """An upsert that refuses requests with any of these points, and records every request."""

    def __init__(self, *ids: int, error: StoreRejected | None = None) -> None:
        self.requests: list[list[object]] = []
        self._ids = set(ids)
        self._error = error or StoreRejected("refused")

    def __call__(self, points: Sequence[Point]) -> None:
        """Store the points or raise the error."""
        self.requests.append([point.id for point in points])
        if any(point.id in self._ids for point in points):
            raise self._error


def test_a_batch_is_halved_until_the_invalid_points_are_found() -> None:
    """A refused batch is halved until the invalid points are found, and all others are stored."""
    upsert = Refusing(2, 5)
    outcome = deliver(upsert, [_claim(number) for number in range(6)], lambda: None)
    assert upsert.requests == [[0, 1, 2, 3, 4, 5], [0, 1, 2], [0], [1, 2], [1], [2], [3, 4, 5], [3], [4, 5], [4], [5]]
    assert [claim.indices for claim in outcome.stored] == [(0,), (1,), (3,), (4,)]
    assert [claim.indices for claim, _ in outcome.refused] == [(2,), (5,)]
    assert (outcome.unsent, outcome.failure) == ([], None)


def test_a_batch_is_not_halved_after_nothing_taken() -> None:
    """After `NothingTaken` no further request is sent."""
    upsert = Refusing(2, error=NothingTaken("no room"))
    outcome = deliver(upsert, [_claim(number) for number in range(6)], lambda: None)
    assert len(upsert.requests) == 1
    assert len(outcome.unsent) == 6
    assert isinstance(outcome.failure, NothingTaken)


def test_halves_that_were_not_sent_are_reported() -> None:
    """If the job ends while a batch is split, the remaining points are unsent with the error of the job."""
    ends: list[WorkerError | None] = [None, None, Cancelled("nobody waits")]
    outcome = deliver(Refusing(0), [_claim(number) for number in range(4)], lambda: ends.pop(0))
    assert [claim.indices for claim in outcome.unsent] == [(0,), (1,), (2,), (3,)]
    assert isinstance(outcome.failure, Cancelled)


def test_a_failure_while_a_batch_is_split_ends_it() -> None:
    """After the store fails, nothing more is sent, and points acknowledged before are stored."""
    requests: list[int] = []

    def upsert(points: Sequence[Point]) -> None:
        requests.append(len(points))
        if len(requests) == 1:
            raise StoreRejected("refused")
        if len(requests) == 3:
            raise StoreUnavailable("no answer")

    outcome = deliver(upsert, [_claim(number) for number in range(8)], lambda: None)
    assert requests == [8, 4, 4]
    assert (len(outcome.stored), len(outcome.unsent)) == (4, 4)
    assert isinstance(outcome.failure, StoreUnavailable)


def test_a_tally_counts_every_index_once() -> None:
    """A report has ascending indices."""
    tally = Tally()
    tally.store([3, 1])
    tally.reject([2], Refusal("invalid_vector", "no"))
    assert (tally.done, tally.any_stored) == (3, True)
    assert tally.report(None) == WriteReport((1, 3), (Rejection(2, Refusal("invalid_vector", "no")),))


def test_points_that_are_gone_are_revoked() -> None:
    """Points that were stored or skipped and are gone become rejected, and the others keep their place."""
    gone = NotFound("collection 'c' does not exist")
    report = WriteReport((0, 1, 3), (Rejection(2, gone),)).completed(4, skipped=[3])
    revoked = report.revoked({1: gone, 3: gone, 9: gone}, gone, skipped=[3])
    assert (revoked.indices, revoked.skipped, revoked.submitted, revoked.failure) == ((0,), 0, 4, gone)
    assert [rejection.index for rejection in revoked.rejected] == [1, 2, 3]


@pytest.mark.parametrize("failure", [None, StoreUnavailable("no answer")])
def test_a_report_is_completed_to_the_whole_job(failure: WorkerError | None) -> None:
    """Existing points count as stored, and points that the writer did not receive are rejected with the error."""
    report = WriteReport((4,), (Rejection(1, Refusal("invalid_vector", "no")),), failure=failure)
    whole = report.completed(6, skipped=[0, 2])
    assert (whole.indices, whole.stored, whole.skipped, whole.submitted) == ((0, 2, 4), 3, 2, 6)
    assert [rejection.index for rejection in whole.rejected] == [1, 3, 5]
    assert {type(rejection.cause) for rejection in whole.rejected[1:]} == {
        Cancelled if failure is None else StoreUnavailable
    }
