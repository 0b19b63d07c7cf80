"""Bulk loads into collections: each is recorded in its collection, and the last to end finishes it.

The steps are in `qdrant_sink.loading`; here they are carried out.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic
from typing import Final, Literal

from embedder import InvalidRequest
from qdrant_sink import AccessDenied, CollectionChanged, CollectionSchema, FeatureMissing
from qdrant_sink.loading import (
    BEAT_INTERVAL_S,
    LEASE_S,
    LOAD_ID_RULE,
    LoadRecord,
    Records,
    SignsOfLife,
    Step,
    Steps,
    changes_of,
    is_load_id,
    records_of,
)
from service.operations.collections import Collections
from service.operations.store_access import StoreAccess
from service.validation import invalid_field

log = logging.getLogger(__name__)

INDEX_TIMEOUT_S: Final = 24 * 3600.0
"""Maximum time for building the HNSW graph."""

POLL_INTERVAL_S: Final = 0.5
"""Time between two looks at the records of other loads, while this one waits for them."""

CLAIMS_MAX: Final = 20
"""Attempts to write the first record of a load and to read it again, before the server counts as one without records.
"""

_PROCESS: Final = secrets.token_hex(4)
"""What the holders of this process begin with."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """A load into a collection.

    Attributes:
        collection: name of the collection itself.
        load_id: id of the load. The next run of the same load has the same id, and goes on where this one ended.
        alias: alias that is to lead to the collection when all loads are complete; None for none.
        defer_index: defer the graph even if the collection has points.
        has_lines: whether lines are loaded. Otherwise the collection is only finished, if no load is under way.
    """

    collection: str
    load_id: str
    alias: str | None = None
    defer_index: bool = False
    has_lines: bool = True


@dataclass(frozen=True, slots=True)
class LoadEnd:
    """How a load has ended.

    Attributes:
        outcome: `finished`: the graph is built and the aliases have moved. `left`: another load is under way, and
            finishes. `blocked`: the graph is built, and lines of some loads are missing, so no alias has moved.
            `stopped`: it was interrupted.
        aliases: aliases that were moved.
        others: loads that are under way, or whose lines are missing, this one included.
    """

    outcome: Literal["finished", "left", "blocked", "stopped"]
    aliases: Sequence[str] = ()
    others: Sequence[LoadRecord] = ()


_OUTCOMES: Final[dict[Step, Literal["finished", "left", "blocked", "stopped"]]] = {
    Step.FINISHED: "finished",
    Step.LEFT: "left",
    Step.BLOCKED: "blocked",
    Step.STOPPED: "stopped",
}


class Loads:
    """The loads of a worker.

    Args:
        store: access to the store.
        collections: the collections of the worker.
        lease_s: time without a sign of life after which a load counts as dead.
        beat_interval_s: time between two signs of life.
    """

    def __init__(
        self,
        store: StoreAccess,
        collections: Collections,
        *,
        lease_s: float = LEASE_S,
        beat_interval_s: float = BEAT_INTERVAL_S,
    ) -> None:
        self._store = store
        self._collections = collections
        self.lease_s = lease_s
        self.beat_interval_s = beat_interval_s

    async def load(self, request: LoadRequest, say: Callable[[str], None]) -> OngoingLoad:
        """A load that has not begun.

        Args:
            request: the load.
            say: prints a message.

        Raises:
            InvalidRequest: the collection is not allowed, or the id of the load is invalid.
        """
        self._collections.named(request.collection, "collection")
        if not is_load_id(request.load_id):
            raise invalid_field("loadId", f"must {LOAD_ID_RULE}, got {len(request.load_id)} characters")
        return OngoingLoad(
            self._store, self._collections, request, say, await self._signs(), lease_s=self.lease_s,
            beat_interval_s=self.beat_interval_s,
        )  # fmt: skip

    async def _signs(self) -> SignsOfLife:
        is_shared = await self._store.patient_call(lambda: self._store.opened().is_shared)
        return SignsOfLife(None if is_shared else _PROCESS, lease_s=self.lease_s)

    async def forget(self, collection: str, load_id: str) -> None:
        """Remove what is recorded of a load, whose missing lines are given up.

        Raises:
            InvalidRequest: there is no record of the load, or the load is under way.
        """
        self._collections.named(collection, "collection")
        store, signs = self._store.opened, await self._signs()
        while True:
            records = await self._store.patient_call(lambda: records_of(store().metadata(collection)))
            signs.see(records)
            runs = [record for record in records.values() if record.load == load_id]
            lives = {signs.life(record) for record in runs if record.is_active}
            if not runs:
                raise InvalidRequest(f"nothing is recorded of a load {load_id!r} into {collection!r}")
            if "alive" in lives:
                raise InvalidRequest(f"{described(runs[0])} is under way; end it first")
            if "unknown" not in lives:
                break
            await asyncio.sleep(POLL_INTERVAL_S)
        changes = changes_of(dict.fromkeys(record.holder for record in runs))
        await self._store.patient_call(lambda: store().update_metadata(collection, changes))


class OngoingLoad:
    """One run of a load: `begin`, then `beat` regularly, then `end` or `stop`. Not thread-safe.

    Attributes:
        is_deferred: whether the graph is deferred, so that searches compare the query with every point.
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
        record = LoadRecord(request.load_id, _PROCESS + secrets.token_hex(4), "running", now, now, alias=request.alias)
        self._steps = Steps(record, has_lines=request.has_lines)
        self._signs = signs
        self._is_recorded = True
        self._written_s = monotonic()
        self._claims = 0
        self._waits = False
        self.is_deferred = False

    @property
    def load_id(self) -> str:
        """The id of the load."""
        return self._request.load_id

    @property
    def beat_interval_s(self) -> float:
        """Time between two calls of `beat`."""
        return self._beat_interval_s

    async def begin(self, stopping: asyncio.Event) -> bool:
        """Create or verify the collection, record the load, and defer the graph if the collection is empty.

        Args:
            stopping: event that ends the wait for other loads.

        Returns:
            Whether the load may store lines; False if it was stopped.

        Raises:
            InvalidRequest: another run of the same load is under way.
            WorkerError: the store fails.
        """
        alias_from = await self._store.patient_call(self._ensured)
        self._steps = replace(self._steps, record=replace(self._steps.record, alias_from=alias_from))
        await self._run(stopping)
        if self._steps.step is Step.REFUSED:
            raise InvalidRequest(
                f"{_named(self._steps.others)} is under way already; wait until it ends, or name this load with "
                "--load-id if it is another one"
            )
        return self._steps.step is Step.LOADING

    async def beat(self) -> None:
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

    async def end(self, stopping: asyncio.Event, *, complete: bool, rejected: int, alias: str | None) -> LoadEnd:
        """End a load whose lines are all stored or rejected. The last to end builds the graph and moves the aliases.

        Args:
            stopping: event that ends the wait for the graph, and for other loads.
            complete: whether all lines are stored, or rejections are allowed.
            rejected: number of rejected points and lines.
            alias: alias that is to lead to the collection; None for none.
        """
        self._steps = self._steps.ending(complete=complete, rejected=rejected, alias=alias)
        await self._run(stopping)
        steps = self._steps
        if steps.step is Step.REFUSED:
            return LoadEnd("left", others=steps.others)
        aliases = steps.aliases if steps.step is Step.FINISHED else ()
        return LoadEnd(_OUTCOMES[steps.step], aliases, steps.others)

    async def stop(self) -> None:
        """Record that the load was interrupted, so that its next run need not wait for signs of life."""
        if self._steps.step is Step.LOADING:
            self._steps = self._steps.stopping()
            await self._run(asyncio.Event())

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
                    moved = await self._store.patient_call(self._move)
                    self._steps = replace(steps.done(), aliases=moved)

    async def _look(self, stopping: asyncio.Event) -> None:
        before = self._steps
        after = before.seen(await self._read(), self._signs.life)
        self._steps = after
        if after.step is Step.CLAIM and before.step is Step.CONFIRM:
            self._claims += 1
            if self._claims >= CLAIMS_MAX:
                self._go_unrecorded("the server keeps no metadata of collections")
        is_waiting = after.step is before.step or (after.step is Step.CLAIM and before.step is Step.CONFIRM)
        if not is_waiting:
            return
        if not self._waits and after.others:
            self._waits = True
            self._say(f"waiting for a sign of life of {_named(after.others)}, at most {self._lease_s:g} s")
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
                    self._steps = self._steps.seen(await self._read(), self._signs.life)
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
        self._signs.see(records)
        return records

    def _go_unrecorded(self, why: str) -> None:
        self._is_recorded = False
        self._say(
            f"this load cannot be recorded in the collection ({why}): run no other load into it at the same time, "
            "since neither would know of the other"
        )

    def _ensured(self) -> str | None:
        """Create or verify the collection; returns the collection that the alias leads to."""
        self._collections.catalogue.ensure(self._request.collection)
        alias = self._request.alias
        return None if alias is None else self._store.opened().collection_of(alias, patient=True)

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

    def _move(self) -> tuple[str, ...]:
        """Move the aliases; returns those that lead to the collection now.

        One that only an earlier load wants is left where it is if it was moved elsewhere since that load began.
        """
        store, collection, steps = self._store.opened(), self._request.collection, self._steps
        wishes = {record.alias: record.alias_from for record in records_of(store.metadata(collection)).values()}
        moved = []
        for alias in steps.aliases:
            target = store.collection_of(alias, patient=True)
            if alias == steps.record.alias or target in (collection, wishes.get(alias)):
                store.alias(self._collections.named(alias, "alias"), collection)
                moved.append(alias)
            else:
                self._say(f"the alias {alias!r} is left where it is: it was moved to another collection meanwhile")
        return tuple(moved)


def described(record: LoadRecord) -> str:
    """A load for a person."""
    return f"load {record.load!r} (begun {record.began}, last sign of life {record.seen})"


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
