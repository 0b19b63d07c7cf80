"""One run of a load into a collection: its record, its signs of life, the graph and the aliases.

The steps are in `qdrant_sink.loading`; here they are carried out.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Final, Literal

from embedder import InvalidRequest, WorkerError
from qdrant_sink import AccessDenied, CollectionChanged, FeatureMissing, StoreUnavailable
from qdrant_sink.loading import (
    LoadRecord,
    Records,
    ShardedLoad,
    SignsOfLife,
    Step,
    Steps,
    changes_of,
    records_of,
)
from service.operations.collections import Collections
from service.operations.life_wait import LifeWait
from service.operations.load_content import refusal
from service.operations.load_target import LoadTarget
from service.operations.load_values import LoadCounts, LoadEnd, LoadRequest, described
from service.operations.store_access import StoreAccess

log = logging.getLogger(__name__)

POLL_INTERVAL_S: Final = 0.5
"""Time between two looks at the records of other loads, while this one waits for them."""

RECORDS_MAX: Final = 5000
"""Maximum records in a collection with which a run of a load begins. There is one of each run until the collection is
finished, and every step reads all of them.
"""

CLAIMS_MAX: Final = 20
"""Attempts to write the first record of a load and to read it again, before the server counts as one without records.
"""

PROCESS: Final = secrets.token_hex(4)
"""What the holders of this process begin with."""

_OUTCOMES: Final[dict[Step, Literal["finished", "left", "blocked", "stopped"]]] = {
    Step.FINISHED: "finished",
    Step.LEFT: "left",
    Step.BLOCKED: "blocked",
    Step.STOPPED: "stopped",
}


class OngoingLoad:
    """One run of a load: `begin`, then `alive` while lines are stored, then `end` or `stop`. Not thread-safe.

    Attributes:
        is_deferred: whether the graph is deferred, so that searches compare the query with every point.
        signs: what was seen of the signs of life of other loads.
    """

    def __init__(
        self,
        store: StoreAccess,
        collections: Collections,
        request: LoadRequest,
        say: Callable[[str], None],
        signs: SignsOfLife,
        *,
        lease_s: float,
        beat_interval_s: float,
    ) -> None:
        self._store = store
        self._target = LoadTarget(store, collections, request, say)
        self._request = request
        self._say = say
        self._lease_s = lease_s
        self._beat_interval_s = beat_interval_s
        now = _now()
        holder = PROCESS + secrets.token_hex(4)
        record = LoadRecord(request.load_id, holder, "running", now, now, alias=request.alias, shard=request.shard)
        self._steps = Steps(record, has_lines=request.has_lines, keeps=request.keeps)
        self.signs = signs
        self._is_recorded = True
        self._written_s = monotonic()
        self._claims = 0
        self._wait = LifeWait(say, lease_s)
        self._kept: tuple[str, ...] = ()
        self.is_deferred = False

    @property
    def load_id(self) -> str:
        """The id of the load."""
        return self._request.load_id

    async def begin(self, stopping: asyncio.Event) -> bool:
        """Create or verify the collection, record the load, and defer the graph if the collection is empty.

        Args:
            stopping: event that ends the wait for other loads.

        Returns:
            Whether the load may store lines; False if it was stopped.

        Raises:
            InvalidRequest: another run of the same load is under way, the points of the load have other content, or too
                many loads are recorded.
            WorkerError: the store fails.
        """
        alias_from, content = await self._store.patient_call(self._target.ensured)
        await self._check_count()
        record = replace(self._steps.record, alias_from=alias_from, content=content)
        self._steps = replace(self._steps, record=record)
        try:
            await self._run(stopping)
        except WorkerError:
            await self.stop()
            raise
        if self._steps.step is Step.REFUSED and self._steps.unlike:
            raise refusal(self._steps.record, self._steps.unlike)
        if self._steps.step is Step.REFUSED:
            raise InvalidRequest(
                f"{_named(self._steps.others)} is under way already; wait until it ends, or name this load with "
                "--load-id if it is another one"
            )
        is_first = not self._steps.record.replaces
        if is_first and self._request.shard is not None and alias_from == self._request.collection:
            self._say(
                f"the alias {self._request.alias!r} leads to {self._request.collection!r} already, so searches see the "
                "points of this shard before all shards are compared; a new load has a collection of its own"
            )
        return self._steps.step is Step.LOADING

    async def _check_count(self) -> None:
        count = len(await self._read())
        if count >= RECORDS_MAX:
            raise InvalidRequest(
                f"loadId: a collection must have at most {RECORDS_MAX} records of loads, got {count}; finish it, or "
                "give loads up with --drop-load"
            )

    @asynccontextmanager
    async def alive(self, lost: Callable[[WorkerError], None]) -> AsyncIterator[None]:
        """Give signs of life until the context ends.

        Args:
            lost: called with the error if this run may not go on, because its record is gone.
        """
        ended = asyncio.Event()
        beating = asyncio.create_task(self._beat_until(ended, lost))
        try:
            yield
        finally:
            ended.set()
            await beating

    async def _beat_until(self, ended: asyncio.Event, lost: Callable[[WorkerError], None]) -> None:
        while not await _is_set_within(ended, self._beat_interval_s):
            try:
                await self._beat()
            except StoreUnavailable as error:  # the next sign of life may arrive
                log.warning("the load could not give a sign of life: %s", error.message)
            except WorkerError as error:
                lost(error)
                return

    async def _beat(self) -> None:
        """Give a sign of life.

        Raises:
            CollectionChanged: the record is gone, or another run of the same load has begun.
            WorkerError: the store fails.
        """
        if not self._is_recorded:
            return
        records = await self._read()
        if self._steps.record.holder not in records or self._steps.is_replaced_in(records):
            raise CollectionChanged(
                "the record of this load is gone: the collection was deleted, the load was dropped, or it was started "
                "again because it gave no sign of life for too long; run it again"
            )
        await self._write(self._steps.signed(_now()))

    async def end(
        self,
        stopping: asyncio.Event,
        *,
        complete: bool,
        rejected: int,
        alias: str | None,
        counts: LoadCounts = LoadCounts(),  # noqa: B008 - a frozen value
    ) -> LoadEnd:
        """End a load whose lines are all stored or rejected. The last to end builds the graph and moves the aliases.

        A shard leaves both to the load without lines that finishes all shards. That one does neither while shards are
        missing.

        Args:
            stopping: event that ends the wait for the graph, and for other loads.
            complete: whether all lines are stored, or rejections are allowed.
            rejected: number of rejected points and lines.
            alias: alias that is to lead to the collection; None for none.
            counts: what the load has counted.
        """
        sharded: Sequence[ShardedLoad] = ()
        points = 0
        if not self._request.has_lines:
            sharded, points = await self._store.patient_call(self._target.shards)
            if any(load.is_unfinished(points) for load in sharded):
                return LoadEnd("unfinished", sharded=sharded, points=points)
        self._steps = self._steps.ending(
            complete=complete,
            rejected=rejected,
            alias=alias,
            read=counts.read,
            lines=counts.lines,
            points=counts.points,
        )
        await self._run(stopping)
        steps = self._steps
        if steps.step is Step.REFUSED:
            return LoadEnd("left", others=steps.others)
        aliases = steps.aliases if steps.step is Step.FINISHED else ()
        return LoadEnd(_OUTCOMES[steps.step], aliases, steps.others, sharded, points, self._kept)

    async def stop(self) -> None:
        """Record that the load was interrupted, so that its next run need not wait for signs of life.

        If the store does not answer, the record stays as that of a killed load.
        """
        if self._steps.step not in (Step.CONFIRM, Step.DEFER, Step.LOADING):
            return
        self._steps = self._steps.stopping()
        try:
            await self._run(asyncio.Event())
        except WorkerError as error:
            log.warning("the end of the load could not be recorded: %s", error.message)

    async def _run(self, stopping: asyncio.Event) -> None:
        while self._steps.action != "none":
            steps = self._steps
            match steps.action:
                case "read":
                    await self._look(stopping)
                case "write":
                    await self._try_write(steps)
                case "defer":
                    self.is_deferred = await self._store.patient_call(self._target.defer)
                    self._steps = steps.done()
                case "build":
                    await self._build(stopping)
                case _ if monotonic() - self._written_s > self._lease_s / 2:  # others may count this load as dead
                    self._steps = replace(steps, step=Step.CLOSE if steps.action == "restore" else Step.RECLOSE)
                case "restore":
                    await self._store.patient_call(self._target.restore)
                    self._steps = steps.done()
                case "move":
                    aliases = await self._store.patient_call(partial(self._target.move, steps))
                    self._kept = aliases.kept
                    self._steps = replace(steps.done(), aliases=aliases.moved)

    async def _look(self, stopping: asyncio.Event) -> None:
        before = self._steps
        after = before.seen(await self._read(), self.signs.life)
        self._steps = after
        if after.step is Step.CLAIM and before.step is Step.CONFIRM:
            self._claims += 1
            if self._claims >= CLAIMS_MAX:
                self._go_unrecorded("the server keeps no metadata of collections")
        is_waiting = after.step is before.step or (after.step is Step.CLAIM and before.step is Step.CONFIRM)
        if not is_waiting:
            self._wait.end()
            return
        if after.others:
            self._wait.go_on(after.others)
        if await _is_set_within(stopping, POLL_INTERVAL_S):
            self._steps = after.stopping() if before.step is not Step.LOOK else replace(after, step=Step.STOPPED)

    async def _build(self, stopping: asyncio.Event) -> None:
        """Wait for the graph. Another load that begins, or a stop, ends the wait; the store goes on building."""
        steps = self._steps
        building = asyncio.create_task(self._store.patient_call(self._target.build_index))
        stopped = asyncio.create_task(stopping.wait())
        try:
            while True:
                await asyncio.wait(
                    {building, stopped}, timeout=self._beat_interval_s, return_when=asyncio.FIRST_COMPLETED
                )
                if building.done():
                    await building
                    self._steps = self._steps.done()
                elif stopped.done():
                    self._steps = self._steps.stopping()
                else:
                    self._steps = self._steps.seen(await self._read(), self.signs.life)
                if self._steps.step is not steps.step:
                    return
                await self._write(self._steps.signed(_now()))
        finally:
            building.cancel()
            stopped.cancel()

    async def _try_write(self, steps: Steps) -> None:
        try:
            await self._write(steps.signed(_now()))
        except (FeatureMissing, AccessDenied) as error:
            if steps.step not in (Step.CLAIM, Step.CLOSE):
                raise
            self._go_unrecorded(error.message)
        self._steps = self._steps.done()

    async def _write(self, steps: Steps) -> None:
        if self._is_recorded:
            collection, changes = self._request.collection, changes_of(steps.changes)
            await self._store.patient_call(lambda: self._store.opened().update_metadata(collection, changes))
        self._written_s = monotonic()
        self._steps = steps

    async def _read(self) -> Records:
        if not self._is_recorded:
            return {self._steps.record.holder: self._steps.record}
        store, collection = self._store.opened, self._request.collection
        records = await self._store.patient_call(lambda: records_of(store().metadata(collection)))
        self.signs.see(records)
        return records

    def _go_unrecorded(self, why: str) -> None:
        if self._request.shard is not None:
            raise InvalidRequest(
                f"a shard cannot be recorded in the collection ({why}), so nobody could compare it with the others; "
                "load the whole input without --shard"
            )
        self._is_recorded = False
        self._say(
            f"this load cannot be recorded in the collection ({why}): run no other load into it at the same time, "
            "since neither would know of the other"
        )


def _named(records: Sequence[LoadRecord]) -> str:
    return ", ".join(described(record) for record in records)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
