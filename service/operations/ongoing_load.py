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
from time import monotonic
from typing import Final, Literal

from embedder import InvalidRequest, WorkerError
from qdrant_sink import AccessDenied, CollectionChanged, CollectionSchema, FeatureMissing, StoreUnavailable
from qdrant_sink.loading import (
    LoadContent,
    LoadRecord,
    Records,
    ShardedLoad,
    SignsOfLife,
    Step,
    Steps,
    changes_of,
    in_force,
    records_of,
    sharded_loads,
)
from service.operations.collections import Collections
from service.operations.life_wait import LifeWait
from service.operations.load_aliases import MovedAliases, move_aliases
from service.operations.load_content import in_collection, refusal
from service.operations.load_values import LoadCounts, LoadEnd, LoadRequest, described
from service.operations.store_access import StoreAccess

log = logging.getLogger(__name__)

INDEX_TIMEOUT_S: Final = 24 * 3600.0
"""Maximum time for building the HNSW graph."""

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
        self._collections = collections
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
        alias_from, content = await self._store.patient_call(self._ensured)
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
            sharded, points = await self._store.patient_call(self._shards)
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
                    self.is_deferred = await self._store.patient_call(self._defer)
                    self._steps = steps.done()
                case "build":
                    await self._build(stopping)
                case _ if monotonic() - self._written_s > self._lease_s / 2:  # others may count this load as dead
                    self._steps = replace(steps, step=Step.CLOSE if steps.action == "restore" else Step.RECLOSE)
                case "restore":
                    await self._store.patient_call(self._restore)
                    self._steps = steps.done()
                case "move":
                    aliases = await self._store.patient_call(self._move)
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
        building = asyncio.create_task(self._store.patient_call(self._build_index))
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

    def _shards(self) -> tuple[Sequence[ShardedLoad], int]:
        """The loads that are divided into shards, and the number of points in the collection if there are some."""
        store, collection = self._store.opened(), self._request.collection
        sharded = sharded_loads(in_force(records_of(store.metadata(collection)).values()))
        return sharded, store.count(collection) if sharded else 0

    def _ensured(self) -> tuple[str | None, LoadContent | None]:
        """Create or verify the collection.

        Returns:
            The collection that the alias leads to, and what decides the content of the points of the load.
        """
        request, catalogue = self._request, self._collections.catalogue
        catalogue.ensure(request.collection)
        alias_from = None if request.alias is None else self._store.opened().collection_of(request.alias, patient=True)
        if request.content is None:
            return alias_from, None
        schema = catalogue.recognised(request.collection).read_by(request.content.text_key)
        return alias_from, in_collection(request.content, schema, request.collection)

    def _defer(self) -> bool:
        """Defer the graph if that is wanted. A collection without dense vectors has none."""
        store, request = self._store.opened(), self._request
        schema = self._schema()
        if schema.dense is None or (not request.defer_index and store.count(request.collection)):
            return False
        store.defer_index(request.collection, schema)
        return True

    def _restore(self) -> None:
        self._store.opened().restore_index(self._request.collection, self._schema())

    def _build_index(self) -> None:
        self._store.opened().build_index(self._request.collection, self._schema(), timeout_s=INDEX_TIMEOUT_S)

    def _schema(self) -> CollectionSchema:
        """The schema with the graph of the config, which is all that remains known of a graph that is deferred."""
        schema = self._collections.catalogue.recognised(self._request.collection).schema
        wanted = self._collections.wanted
        if schema.dense is None or wanted.dense is None:
            return schema
        return replace(schema, dense=replace(schema.dense, m=wanted.dense.m))

    def _move(self) -> MovedAliases:
        """Move the aliases."""
        store, request, steps = self._store.opened(), self._request, self._steps
        for alias in steps.aliases:
            self._collections.named(alias, "alias")
        records = records_of(store.metadata(request.collection)).values()
        return move_aliases(
            store,
            request.collection,
            steps.aliases,
            own=steps.record.alias,
            led_to={record.alias: record.alias_from for record in records},
            allow_empty=request.allow_empty,
            say=self._say,
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
