"""Readiness checks, which run before a queue worker's first poll or before the HTTP server reports that it is ready.

RunPod's SDK and the HTTP server both end the process if a check raises. The weights are loaded before the checks run,
so invalid settings or an invalid checkpoint have already ended the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from embedder import ConfigurationError, ModelFailure, in_own_thread
from qdrant_sink import SchemaMismatch, StoreUnavailable
from service.operations import EmbedRequest, Operations, open_store
from service.operations.store_access import PROBE_COLLECTION
from service.settings import Settings

log = logging.getLogger(__name__)

STORE_TIMEOUT_S: Final = 5.0
"""Maximum time that the start waits for the store."""

Check = Callable[[], Awaitable[None]]


def checks(operations: Operations, settings: Settings, *, store_timeout_s: float = STORE_TIMEOUT_S) -> list[Check]:
    """The readiness checks, in order. Each raises a `WorkerError` if the worker must not serve.

    Args:
        operations: the loaded operations.
        settings: the settings, which name the store and its collections.
        store_timeout_s: maximum time to wait for the store.
    """
    default = () if settings.qdrant_collection is None else (settings.qdrant_collection,)
    collections = dict.fromkeys((*default, *settings.qdrant_collections)) or (PROBE_COLLECTION,)

    async def device_computes() -> None:
        """Check that the model computes finite vectors of all kinds."""
        result = (await operations.embed(EmbedRequest(["fit"]))).texts[0]
        if isinstance(result, ModelFailure):
            raise result

    async def store_fits() -> None:
        """Check that those collections of the settings which exist have the model's schema.

        A store that does not answer passes with a warning. It may recover, a restart would not help, and jobs that
        only embed do not need it. Other jobs fail with `store_unavailable` meanwhile.
        """
        try:
            async with asyncio.timeout(store_timeout_s):
                for collection in collections:
                    await operations.collections.exists(collection)
        except SchemaMismatch:
            if collection != PROBE_COLLECTION:  # a collection of that name that is not ours
                raise
        except (StoreUnavailable, TimeoutError):
            log.warning("the store does not answer; until it does, jobs that need it fail with store_unavailable")

    async def default_store_is_free() -> None:
        """Warn if another process holds the directory that the first job with points would open."""
        try:
            await in_own_thread(lambda: _try_open(settings))
        except ConfigurationError as error:
            log.warning("%s; until then, jobs that need the store fail with store_unavailable", error)

    # An embedded store at the default path is created by the first job that needs it.
    if settings.qdrant_path is None:
        return [device_computes]
    return [device_computes, store_fits if settings.names_store else default_store_is_free]


def _try_open(settings: Settings) -> None:
    """Open and close the embedded store, if its directory exists."""
    if settings.qdrant_path is not None and Path(settings.qdrant_path).is_dir():
        open_store(settings).close()
