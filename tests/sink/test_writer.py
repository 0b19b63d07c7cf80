"""Every point of a job is accounted for, whatever happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
import numpy as np
import pytest

from embedder.errors import NotFound, StoreRejected, StoreUnavailable
from qdrant_sink.points import Point, PointId
from qdrant_sink.schema import schema_for
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from qdrant_sink.writer import BATCH_BYTES, Rejection, write
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import SCHEMA, draft, embedding, spoilt

NAN = np.full(8, np.nan, dtype=np.float32)


class Memory:
    """A store in a dictionary that refuses, or ceases to answer, as told. Only what the writer uses."""

    label = "memory"

    def __init__(self, *, refuse: Sequence[PointId] = (), answers: int = 10**9, error: Any = None) -> None:
        self.points: dict[PointId, Point] = {}
        self.batches: list[int] = []
        self._refuse = set(refuse)
        self._answers = answers
        self._error = error or StoreUnavailable("no answer")

    def upsert(self, _collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Take a batch whole or not at all."""
        self.batches.append(len(points))
        self._answers -= 1
        if self._answers < 0:
            raise self._error
        if any(point.id in self._refuse for point in points):
            raise StoreRejected("refused")
        for point in points:
            if not (insert_only and point.id in self.points):
                self.points[point.id] = point

    def existing(self, _collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """What is there."""
        return set(ids) & set(self.points)


def _memory(**how: Any) -> Any:
    return Memory(**how)


def test_good_points_are_stored_beside_bad_ones(store: Store, collection: str) -> None:
    """Each refusal names its own point by index and reason; all others are in the collection."""
    store.ensure(collection, SCHEMA)
    drafts = [
        draft(0),
        spoilt(1, dense=NAN),
        draft(2, id=0, payload={"other": 1}),
        draft(3, id=0, payload=draft(0).payload),
        draft(4, payload={"a": float("inf")}),
        draft(5),
    ]
    report = write(store, collection, drafts, SCHEMA)
    assert (report.submitted, report.stored, report.skipped) == (6, 3, 0)
    assert [(r.index, r.code) for r in report.rejected] == [
        (1, "invalid_vector"),
        (2, "duplicate_id"),
        (4, "invalid_payload"),
    ]
    assert store.count(collection) == 2


def test_a_duplicate_of_a_refused_point_takes_its_place() -> None:
    """A point that cannot be stored does not hold its id against one that can."""
    report = write(_memory(), "c", [spoilt(0, dense=NAN), draft(1, id=0)], SCHEMA)
    assert report.stored == 1
    assert [(r.index, r.code) for r in report.rejected] == [(0, "invalid_vector")]


def test_insert_only_counts_what_was_there(store: Store, collection: str) -> None:
    """A second run of the same job stores all and skips all: nothing is written twice."""
    store.ensure(collection, SCHEMA)
    drafts = [draft(i) for i in range(5)]
    assert write(store, collection, drafts[:3], SCHEMA, insert_only=True).skipped == 0
    report = write(store, collection, drafts, SCHEMA, insert_only=True)
    assert (report.stored, report.skipped, report.rejected) == (5, 3, ())


def test_a_refused_batch_is_split_down_to_the_point_at_fault() -> None:
    """One point that a store will not have costs its neighbours nothing."""
    memory = _memory(refuse=[3, 11])
    report = write(memory, "c", [draft(i) for i in range(16)], SCHEMA)
    assert report.rejected == (
        Rejection(3, "store_rejected", "refused"),
        Rejection(11, "store_rejected", "refused"),
    )
    assert set(memory.points) == set(range(16)) - {3, 11}
    assert len(memory.batches) <= 2 * 2 * 5


def test_merged_points_share_the_fate_of_their_owner() -> None:
    """What merged into a refused point is refused too, each under its own index."""
    drafts = [draft(0), draft(1), draft(2, id=0, payload=draft(0).payload)]
    report = write(_memory(refuse=[0]), "c", drafts, SCHEMA)
    assert (report.stored, [r.index for r in report.rejected]) == (1, [0, 2])


@pytest.mark.parametrize("error", [StoreUnavailable("no answer"), NotFound("gone")])
@pytest.mark.parametrize("answers", [0, 1, 2])
def test_what_was_not_acknowledged_is_reported(error: Any, answers: int) -> None:
    """When the store ceases to answer, every point is either stored or named as not stored."""
    size = 1024
    drafts = [draft(i, embedding=embedding(i, rows=300, size=size)) for i in range(12)]
    memory = _memory(answers=answers, error=error)
    report = write(memory, "c", drafts, schema_for(size, size))
    assert report.stored == len(memory.points) == 3 * answers
    assert report.stored + len(report.rejected) == report.submitted == 12
    assert {(r.code, r.message) for r in report.rejected} == {(error.code, error.message)}
    assert len(memory.batches) == answers + 1


def test_a_store_that_fails_while_a_batch_is_split_is_accounted_for() -> None:
    """Halves of a refused batch that were never sent are reported like any other."""
    memory = _memory(refuse=[0], answers=3)
    report = write(memory, "c", [draft(i) for i in range(8)], SCHEMA)
    assert report.stored + len(report.rejected) == 8
    assert report.stored == len(memory.points)
    assert {r.code for r in report.rejected} == {"store_unavailable"}


def test_batches_are_bounded_by_bytes() -> None:
    """ColBERT rows make points of a megabyte: a batch holds few, alone if it must."""
    size = 1024
    drafts = [draft(i, embedding=embedding(i, rows=rows, size=size)) for i, rows in enumerate([300] * 6 + [1023] * 2)]
    memory = _memory()
    report = write(memory, "c", drafts, schema_for(size, size))
    assert report.stored == 8
    assert memory.batches == [3, 3, 1, 1]
    points = list(memory.points.values())
    assert sum(point.nbytes for point in points[:3]) <= BATCH_BYTES


def test_nothing_submitted_is_nothing_done() -> None:
    """An empty job asks the store nothing."""
    memory = _memory()
    assert write(memory, "c", [], SCHEMA).submitted == 0
    assert memory.batches == []


def test_a_point_that_the_server_refuses_stands_alone(server_store: ServerStore, double: GrpcDouble) -> None:
    """Over gRPC too: the neighbours are stored, and the server's words are not passed on."""
    server_store.ensure("docs", SCHEMA)
    double.refused_ids.add(4)
    report = write(server_store, "docs", [draft(i) for i in range(9)], SCHEMA)
    assert report.stored == 8
    [rejection] = report.rejected
    assert (rejection.index, rejection.code) == (4, "store_rejected")
    assert rejection.message == "Qdrant refused the request: INVALID_ARGUMENT"
    assert server_store.count("docs") == 8


def test_a_server_that_goes_away_is_accounted_for(server_store: ServerStore, double: GrpcDouble) -> None:
    """The report is exact when the server is lost in the middle of a job."""
    size = 256
    schema = schema_for(size, size)
    server_store.ensure("docs", schema)
    drafts = [draft(i, embedding=embedding(i, rows=1500, size=size)) for i in range(6)]
    double.before["Upsert"] = lambda: double.fail("Upsert", grpc.StatusCode.UNAVAILABLE, times=10**6)
    report = write(server_store, "docs", drafts, schema)
    assert report.stored + len(report.rejected) == 6
    assert {r.code for r in report.rejected} == {"store_unavailable"}
    double.failures.clear()
    assert server_store.count("docs") == report.stored
