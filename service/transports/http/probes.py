"""The probes of a container platform: whether the process lives, and whether it can answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

from service.operations import StoreState
from service.transports.http.state import ServerState, State

STORE_STATE_KEPT_S: Final = 5.0
"""Time for which the state of the store is kept, so that callers without a key cannot make the worker ask it often."""

STORE_WAIT_S: Final = 1.0
"""Maximum time that a probe waits for the store, since platforms give a probe one second by default."""

_REASONS: Final[Mapping[State, str]] = {
    "loading": "the model is loading",
    "draining": "the worker is shutting down and finishes its running requests",
    "lost": "the last device is lost",
}

_STORE_REASONS: Final[Mapping[StoreState, str]] = {
    "unavailable": "the store does not answer; requests that only embed or score texts are answered",
    "none": "the worker has no store; requests that only embed or score texts are answered",
}


class Probes:
    """The state of the worker in words. All methods must be called in the event loop of the server.

    Args:
        state: the state of the server.
        store_state_kept_s: time for which the state of the store is kept.
        store_wait_s: maximum time that a probe waits for the store.
    """

    def __init__(
        self,
        state: ServerState,
        *,
        store_state_kept_s: float = STORE_STATE_KEPT_S,
        store_wait_s: float = STORE_WAIT_S,
    ) -> None:
        self._state = state
        self._kept_s = store_state_kept_s
        self._wait_s = store_wait_s
        self._asking: asyncio.Task[StoreState] | None = None
        self._store_state: StoreState = "unavailable"
        self._asked_at = -float("inf")

    async def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether the worker can answer, and its state with a reason.

        A store that does not answer leaves the worker ready: it embeds and scores, a restart would not help, and the
        store is used again as soon as it answers.
        """
        operations = self._state.operations
        state = self._state.state
        if state != "ready" or operations is None:
            return False, {"status": state, "reason": _REASONS[state]}
        store = await self._store()
        report = {"status": state, "model": operations.model_label, "store": store}
        return True, report | ({"reason": _STORE_REASONS[store]} if store in _STORE_REASONS else {})

    async def _store(self) -> StoreState:
        """The state of the store, which is asked once for all probes of `store_state_kept_s`."""
        if self._asking is None and time.monotonic() - self._asked_at >= self._kept_s:
            self._asking = asyncio.create_task(self._state.ready().core.store_state())
            self._asking.add_done_callback(self._asked)
        if self._asking is not None:
            asked, _ = await asyncio.wait([self._asking], timeout=self._wait_s)
            if not asked:
                return "unavailable"
        return self._store_state

    def _asked(self, asking: asyncio.Task[StoreState]) -> None:
        self._asking, self._asked_at = None, time.monotonic()
        failed = asking.cancelled() or asking.exception() is not None
        self._store_state = "unavailable" if failed else asking.result()
