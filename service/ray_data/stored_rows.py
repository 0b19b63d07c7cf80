"""The stored rows of a load, on the disk of the driver's machine: which the collection has as they were given.

Ray hands each outcome of an actor to the driver once, also if the actor ran twice. The outcomes of a sink's tasks come
all together at the end, so tasks send their rows to an actor beside the driver, which takes those of a task once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, Self

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from service.bulk.account import point_of, why_lost
from service.bulk.line_index import LineIndex, Standing, StoredLine
from service.ray_data.outcome import REJECTS_BLOCK_MAX_ROWS, rejects_table


class StoredRows:
    """The stored rows of a load.

    Args:
        keeps: whether points that exist are kept.

    The methods raise `IndexFullError` if the disk is full.
    """

    def __init__(self, *, keeps: bool) -> None:
        self._keeps = keeps
        self._index = LineIndex(keeps=keeps)
        self._tasks: set[int] = set()

    def __enter__(self) -> Self:
        """Open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Delete what is on disk."""
        self.close()

    def add(self, rows: Sequence[StoredLine], task: int | None = None) -> None:
        """Add rows, those of one point in the order in which they were stored.

        Args:
            rows: the rows.
            task: number of the task that has stored them, whose rows are ignored if it has added rows before; None
                always adds them.
        """
        if task is None or task not in self._tasks:
            self._index.add(rows)
        if task is not None:
            self._tasks.add(task)

    def standing(self) -> Standing:
        """How all rows stand to the points of the collection."""
        return self._index.standing()

    def lost(self) -> Iterator[pa.Table]:
        """The rows that the collection does not have as they were given, as `REJECTS_SCHEMA`, after `standing`."""
        code = "differing" if self._keeps else "replaced"
        lost = self._index.lost()
        while rows := list(islice(lost, REJECTS_BLOCK_MAX_ROWS)):
            yield rejects_table(
                [
                    {
                        "code": code,
                        "message": why_lost(row, "another row", keeps=self._keeps),
                        "point": str(point_of(row.key)),
                    }
                    for row in rows
                ]
            )

    def close(self) -> None:
        """Delete what is on disk. Idempotent."""
        self._index.close()


class RowAccount(Protocol):
    """The stored rows, for the tasks of a sink."""

    def add(self, rows: Sequence[StoredLine], task: int) -> None: ...  # noqa: D102
    def standing(self) -> Standing: ...  # noqa: D102
    def lost(self) -> Iterator[pa.Table]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class SharedRows:
    """Stored rows in an actor on the machine of the driver, which the tasks of a sink reach. Blocks.

    Args:
        keeps: as of `StoredRows`.

    The methods raise `RayError` if the actor is lost, which happens only with the machine of the driver.
    """

    def __init__(self, *, keeps: bool) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor: Any = ray.remote(StoredRows).options(num_cpus=0, scheduling_strategy=here).remote(keeps=keeps)

    def add(self, rows: Sequence[StoredLine], task: int) -> None:
        """As of `StoredRows`."""
        ray.get(self._actor.add.remote(rows, task))

    def standing(self) -> Standing:
        """As of `StoredRows`."""
        standing: Standing = ray.get(self._actor.standing.remote())
        return standing

    def lost(self) -> Iterator[pa.Table]:
        """As of `StoredRows`."""
        yield from map(ray.get, self._actor.lost.options(num_returns="streaming").remote())

    def close(self) -> None:
        """End the actor."""
        ray.kill(self._actor)
