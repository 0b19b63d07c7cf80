"""A store whose calls are counted and timed, and end where nobody waits for them any more."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final, cast

from embedder import WorkerError
from qdrant_sink import Store
from service.operations.store_wait import WAIT

Observe = Callable[[str, str, float], None]
"""Callback for one call: the name of the method, the code of the outcome, and the seconds, retries included."""

CALLS: Final = frozenset(name for name in vars(Store) if not name.startswith("_")) - {"label", "is_shared", "close"}
"""Methods that are counted, which is all that may talk to a server."""


def metered(store: Store, observe: Observe) -> Store:
    """The store with a callback for each of its calls.

    Args:
        store: the store.
        observe: the callback, which must not raise.
    """
    return cast("Store", _MeteredStore(store, observe))


class _MeteredStore:
    def __init__(self, store: Store, observe: Observe) -> None:
        self._store = store
        self._observe = observe

    def __getattr__(self, name: str) -> Any:
        if name not in CALLS:
            return getattr(self._store, name)

        def call(*values: Any, **named: Any) -> Any:
            wait = WAIT.get()
            if wait is not None:
                wait.check()
            code, started = "internal", time.perf_counter()
            try:
                result = getattr(self._store, name)(*values, **named)
                code = "ok"
                if wait is not None:
                    wait.answered()
            except WorkerError as error:
                code = outcome_of(type(error))
                raise
            finally:
                self._observe(name, code, time.perf_counter() - started)
            return result

        return call


def outcome_of(kind: type[WorkerError]) -> str:
    """The name of an error as a label: `StoreUnavailable` is `store_unavailable`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
