"""Signs of life of other loads, by which the living are told from the dead without comparing the clocks of machines."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from qdrant_sink.loading.record import LoadRecord, Records

BEAT_INTERVAL_S: Final = 10.0
"""Time between two signs of life of a load."""

LEASE_S: Final = 60.0
"""Time without a sign of life after which a load counts as dead. Only the lengths of times are compared, so the clocks
of the machines may differ. A process that was stopped for longer checks its record before it goes on."""

Life = Literal["alive", "dead", "unknown"]
"""`unknown` until a load was watched for long enough."""


@dataclass(slots=True)
class _Watch:
    beat: int
    since_s: float
    changed: bool = False


class SignsOfLife:
    """What one process has seen of the signs of life of all loads.

    Args:
        process: what the holders of this process begin with, if no other process can use the store: records of all
            other holders are then those of processes that have ended. None if the store is shared.
        lease_s: time without a sign of life after which a load counts as dead.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self, process: str | None, *, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._process = process
        self._lease_s = lease_s
        self._clock = clock
        self._watches: dict[str, _Watch] = {}

    def see(self, records: Records) -> None:
        """Note the records as they were read just now."""
        now = self._clock()
        self._watches = {holder: watch for holder, watch in self._watches.items() if holder in records}
        for holder, record in records.items():
            watch = self._watches.get(holder)
            if watch is None:
                self._watches[holder] = _Watch(record.beat, now)
            elif watch.beat != record.beat:
                self._watches[holder] = _Watch(record.beat, now, changed=True)

    def life(self, record: LoadRecord) -> Life:
        """Whether the process of a record is alive. A record whose state is not active has no process."""
        if not record.is_active or (self._process is not None and not record.holder.startswith(self._process)):
            return "dead"
        watch = self._watches.get(record.holder)
        if watch is None:
            return "unknown"
        if self._clock() - watch.since_s >= self._lease_s:
            return "dead"
        return "alive" if watch.changed else "unknown"
