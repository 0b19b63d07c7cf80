"""What a worker proves of itself before its first poll, or before its port says that it is ready.

RunPod's SDK ends the worker if a check raises, and so does the HTTP server.

The weights are loaded by then: settings or a checkpoint that cannot work have refused to start already.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from embedder import ConfigurationError, ModelFailure
from qdrant_sink import SchemaMismatch, StoreUnavailable
from service.operations import EmbedRequest, Operations, open_store
from service.settings import Settings

log = logging.getLogger(__name__)

STORE_TIMEOUT_S: Final = 5.0
"""How long a start waits for the store."""

_ANY_COLLECTION: Final = "fitness-check"
"""A name that is asked for where the settings name no collection, to see whether the store answers."""

Check = Callable[[], Awaitable[None]]


def checks(operations: Operations, settings: Settings, *, store_timeout_s: float = STORE_TIMEOUT_S) -> list[Check]:
    """The checks, in their order. Each raises a `WorkerError` if the worker should not serve.

    Args:
        operations: loaded.
        settings: name the store and its collections.
        store_timeout_s: how long to wait for the store.
    """
    default = () if settings.qdrant_collection is None else (settings.qdrant_collection,)
    named = dict.fromkeys((*default, *settings.qdrant_collections)) or (_ANY_COLLECTION,)

    async def device_computes() -> None:
        """A text has finite vectors of all kinds."""
        result = (await operations.embed(EmbedRequest(["fit"]))).texts[0]
        if isinstance(result, ModelFailure):
            raise result

    async def store_fits() -> None:
        """The collections that the settings name have the model's schema, as far as they are there.

        A store that does not answer is no reason to leave: it may come back, a restart would not help, and jobs
        that only embed do not need it. Those that do are answered `store_unavailable` meanwhile.
        """
        try:
            async with asyncio.timeout(store_timeout_s):
                for collection in named:
                    await operations.collections.verify(collection)
        except SchemaMismatch:
            if collection != _ANY_COLLECTION:  # a stranger's, which happens to have the name
                raise
        except (StoreUnavailable, TimeoutError):
            log.warning("the store does not answer yet; jobs that need it fail as store_unavailable until it does")

    async def default_store_is_free() -> None:
        """Nobody else holds the directory that the first job which stores would open."""
        try:
            await asyncio.to_thread(_tried, settings)
        except ConfigurationError as error:
            log.warning("%s; until then jobs that need it fail as store_unavailable", error)

    # An embedded store that nobody named is made by the first job that needs it.
    has_store = settings.qdrant_url is not None or "qdrant_path" in settings.model_fields_set
    return [device_computes, store_fits if has_store else default_store_is_free]


def _tried(settings: Settings) -> None:
    """Open the embedded store, if it is there, and leave it as it was."""
    if Path(settings.qdrant_path).is_dir():
        open_store(settings).close()
