"""The finish of a collection after its loads: the graph and the aliases, without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from embedder import KINDS, NotFound
from qdrant_sink import CollectionSchema, Store
from qdrant_sink.copying import source_vectors
from service.operations.collections import Collections
from service.operations.load_values import LoadEnd, LoadRequest
from service.operations.loads import Loads
from service.operations.ongoing_load import OngoingLoad
from service.operations.store_access import StoreAccess
from service.settings import Settings

FINISH_ID: Final = "finish"
"""Id of the load that a finish is for others while it runs. It stores no lines, and leaves no record."""


async def ended_finish(load: OngoingLoad, stopping: asyncio.Event, alias: str | None) -> LoadEnd:
    """End a load without lines, whose aliases no other load moves if it leaves the end to that one.

    Args:
        load: the load, which need not have begun.
        stopping: event that ends the wait for the graph.
        alias: alias that is to lead to the collection; None for none.

    Raises:
        WorkerError: the store fails.
    """
    end = await load.end(stopping, complete=True, rejected=0, alias=alias)
    return replace(end, outcome="unfinished") if end.outcome == "left" else end


class Finish:
    """The finish operation.

    Args:
        settings: the settings.
        store: the store; None opens the store of the settings on first use.
    """

    def __init__(self, settings: Settings, store: Store | None = None) -> None:
        self._settings = settings
        self._store = StoreAccess(settings, store, lambda: None)

    def close(self) -> None:
        """Release the store. Idempotent."""
        self._store.close()

    async def __call__(
        self,
        collection: str,
        alias: str | None,
        *,
        gives_up: Sequence[str] = (),
        allow_empty: bool = False,
        say: Callable[[str], None],
        stopping: asyncio.Event,
    ) -> LoadEnd:
        """Build the graph and move the aliases, if no load is under way and no line of a load is missing.

        Args:
            collection: name of the collection itself.
            alias: alias that is to lead to it, besides those of the loads; None for none.
            gives_up: ids of loads whose missing lines are given up.
            allow_empty: move aliases although the collection has no points and the one to which they lead has some.
            say: prints a message.
            stopping: event that ends the wait for the graph.

        Raises:
            InvalidRequest: the collection or the alias is not allowed, or nothing is recorded of a load to give up, or
                it is under way.
            NotFound: the collection does not exist.
            WorkerError: the store fails.
        """
        config = self._settings.qdrant_collection_config
        names = Collections(self._settings, self._store, config.schema_for(1, 1))
        names.named(collection, "collection")
        if alias is not None:
            await names.check_alias(alias, collection)
        schema = await self._store.patient_call(lambda: self._schema(collection))
        loads = Loads(self._store, names.of_schema(schema))
        for load_id in gives_up:
            await loads.forget(collection, load_id, say)
        request = LoadRequest(collection, FINISH_ID, alias, has_lines=False, allow_empty=allow_empty)
        load = await loads.load(request, say)
        return await ended_finish(load, stopping, alias)

    def _schema(self, collection: str) -> CollectionSchema:
        """The schema of the config, in the sizes that the collection has."""
        store = self._store.opened()
        if store.collection_of(collection, patient=True) is None:
            raise NotFound(f"collection {collection!r} does not exist")
        config, description = self._settings.qdrant_collection_config, store.description(collection)
        vectors = source_vectors(collection, description, config.schema_for(1, 1).names, {}, replaced=KINDS)
        sizes = {kind: description.vectors[vectors.names.of(kind)].size or 1 for kind in vectors.kinds}
        return config.schema_for(sizes.get("dense", 1), sizes.get("colbert", 1))
