"""A query for the name of the processor that runs while the model loads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def ask_ahead() -> None:
    """Start `cpuinfo.get_cpu_info` in a thread. The import of the SDK calls it, and it takes a second.

    From now on the function returns, or raises, the result of this call. If the package is missing, nothing happens:
    then the SDK is missing too, or no longer needs it.
    """
    try:
        import cpuinfo
    except ImportError:
        return
    answer: Future[Any] = Future()
    threading.Thread(target=_ask, args=(cpuinfo.get_cpu_info, answer), name="processor", daemon=True).start()
    cpuinfo.get_cpu_info = answer.result


def _ask(ask: Callable[[], Any], answer: Future[Any]) -> None:
    try:
        answer.set_result(ask())
    except Exception as error:  # noqa: BLE001 - raised in the caller
        answer.set_exception(error)
