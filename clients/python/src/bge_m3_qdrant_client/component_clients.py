"""The clients of a pipeline's component, which is described by values and connects when it first runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bge_m3_qdrant_client.async_client import AsyncClient
from bge_m3_qdrant_client.core import target_of
from bge_m3_qdrant_client.errors import InvalidOption
from bge_m3_qdrant_client.exchange import Target
from bge_m3_qdrant_client.runpod_target import RunPodTarget
from bge_m3_qdrant_client.sync_client import Client


class ComponentClients:
    """A blocking client, and one for the running event loop.

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
        self._async_client: AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def blocking(self) -> Client:
        """The blocking client.

        Raises:
            InvalidOption: the address, the key or the id is invalid.
        """
        if self._client is None:
            self._client = Client(self._target(), timeout=self._timeout)
        return self._client

    def awaited(self) -> AsyncClient:
        """The client of the running event loop, whose connections no other loop can use.

        Raises:
            InvalidOption: the address, the key or the id is invalid.
        """
        loop = asyncio.get_running_loop()
        if self._async_client is None or self._loop is not loop:
            self._async_client, self._loop = AsyncClient(self._target(), timeout=self._timeout), loop
        return self._async_client

    def close(self) -> None:
        """Close the connections of the blocking client. A later call makes a new one."""
        if self._client is not None:
            self._client.close()
            self._client = None

    async def aclose(self) -> None:
        """Close the connections of the client of the running event loop. A later call makes a new one."""
        if self._async_client is not None and self._loop is asyncio.get_running_loop():
            await self._async_client.aclose()
        self._async_client = self._loop = None

    def _target(self) -> Target:
        key = self._api_key()
        if self._runpod_endpoint_id is None:
            return target_of(self._url, key, None)
        if key is None:
            raise InvalidOption("an endpoint on RunPod needs RunPod's key: give api_key, or set its variable")
        return RunPodTarget(self._runpod_endpoint_id, api_key=key)
