"""Loads into collections: each is recorded in its collection, and the last to end finishes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from embedder import InvalidRequest
from qdrant_sink.loading import (
    BEAT_INTERVAL_S,
    LEASE_S,
    LOAD_ID_RULE,
    LoadRecord,
    SignsOfLife,
    changes_of,
    is_load_id,
    records_of,
)
from service.operations.collections import Collections
from service.operations.life_wait import LifeWait
from service.operations.load_values import LoadRequest, described
from service.operations.ongoing_load import POLL_INTERVAL_S, PROCESS, OngoingLoad
from service.operations.store_access import StoreAccess
from service.validation import invalid_field, shown


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

    async def load(
        self, request: LoadRequest, say: Callable[[str], None], signs: SignsOfLife | None = None
    ) -> OngoingLoad:
        """A load that has not begun.

        Args:
            request: the load.
            say: prints a message.
            signs: what an earlier part of the load has seen of others; None for nothing.

        Raises:
            InvalidRequest: the collection is not allowed, or the id of the load is invalid.
        """
        self._collections.named(request.collection, "collection")
        if not is_load_id(request.load_id):
            name = request.load_id if request.shard is None else request.shard.name_of(request.load_id)
            also = "" if request.shard is None else f", the {len(request.load_id) - len(name)} of the shard included"
            raise invalid_field("loadId", f"must {LOAD_ID_RULE}{also}, got {shown(name)}")
        return OngoingLoad(
            self._store, self._collections, request, say, signs or await self._signs(), lease_s=self.lease_s,
            beat_interval_s=self.beat_interval_s,
        )  # fmt: skip

    async def _signs(self) -> SignsOfLife:
        is_shared = await self._store.patient_call(lambda: self._store.opened().is_shared)
        return SignsOfLife(None if is_shared else PROCESS, lease_s=self.lease_s)

    async def forget(self, collection: str, load_id: str, say: Callable[[str], None]) -> None:
        """Remove what is recorded of a load, or of its shards. Its missing lines are given up.

        Args:
            collection: name of the collection.
            load_id: the load: its id, the name of its shards, or that and their number, such as `v2/8`.
            say: prints a message.

        Raises:
            InvalidRequest: there is no record of the load, or the load is under way.
        """
        self._collections.named(collection, "collection")
        store, signs, wait = self._store.opened, await self._signs(), LifeWait(say, self.lease_s)
        while True:
            records = await self._store.patient_call(lambda: records_of(store().metadata(collection)))
            signs.see(records)
            runs = [record for record in records.values() if load_id in _names(record)]
            if not runs:
                raise InvalidRequest(f"nothing is recorded of a load {load_id!r} into {collection!r}")
            lives = [(record, signs.life(record)) for record in runs if record.is_active]
            for record, life in lives:
                if life == "alive":
                    raise InvalidRequest(f"{described(record)} is under way; end it first")
            doubted = [record for record, life in lives if life == "unknown"]
            if not doubted:
                break
            wait.go_on(doubted)
            await asyncio.sleep(POLL_INTERVAL_S)
        wait.end()
        changes = changes_of(dict.fromkeys(record.holder for record in runs))
        await self._store.patient_call(lambda: store().update_metadata(collection, changes))


def _names(record: LoadRecord) -> tuple[str, ...]:
    """The names under which an operator knows the load of a record."""
    if record.shard is None:
        return (record.load,)
    name = record.shard.name_of(record.load)
    return (record.load, name, f"{name}/{record.shard.count}")
