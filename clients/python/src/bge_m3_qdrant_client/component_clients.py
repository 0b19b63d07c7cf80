"""The clients of a pipeline's component, which is described by values and connects when it first runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from bge_m3_qdrant_client.async_client import AsyncClient
from bge_m3_qdrant_client.core import target_of
from bge_m3_qdrant_client.errors import InvalidOption
from bge_m3_qdrant_client.exchange import Target
from bge_m3_qdrant_client.runpod_target import RunPodTarget
from bge_m3_qdrant_client.sync_client import Client

_lock = threading.Lock()
"""Held while a client is made or given up. It is no attribute, so that a component that has not run can be copied."""


class ComponentClients:
    """A blocking client, and one for each event loop. Thread-safe.

    Args:
        url: the address of a worker.
        api_key: returns the key, which is read when a client is made; None if there is none.
        runpod_endpoint_id: the id of an endpoint on RunPod, called in place of `url`.
        timeout: maximum seconds of a request, with its retries and waits.
    """

    def __init__(
        self, url: str, *, api_key: Callable[[], str | None], runpod_endpoint_id: str | None, timeout: float
    ) -> None:
        self._url = url
        self._api_key = api_key
        self._runpod_endpoint_id = runpod_endpoint_id
        self._timeout = timeout
        self._client: Client | None = None
        self._async_clients: dict[asyncio.AbstractEventLoop, AsyncClient] = {}

    def blocking(self) -> Client:
        """The blocking client.

        Raises:
            InvalidOption: the address, the key or the id is invalid.
        """
        with _lock:
            if self._client is None:
                self._client = Client(self._target(), timeout=self._timeout)
            return self._client

    def awaited(self) -> AsyncClient:
        """The client of the running event loop, whose connections no other loop can use.

        Raises:
            InvalidOption: the address, the key or the id is invalid.
        """
        loop = asyncio.get_running_loop()
        with _lock:
            if loop not in self._async_clients:
                for ended in [other for other in self._async_clients if other.is_closed()]:
                    del self._async_clients[ended]
                self._async_clients[loop] = AsyncClient(self._target(), timeout=self._timeout)
            return self._async_clients[loop]

    def close(self) -> None:
        """Close the connections of the blocking client. A later call makes a new one."""
        with _lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """Close the connections of the client of the running event loop. A later call makes a new one."""
        with _lock:
            client = self._async_clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def _target(self) -> Target:
        key = self._api_key()
        if self._runpod_endpoint_id is None:
            return target_of(self._url, key, None)
        if key is None:
            raise InvalidOption("an endpoint on RunPod needs RunPod's key: give api_key, or set its variable")
        return RunPodTarget(self._runpod_endpoint_id, api_key=key)
