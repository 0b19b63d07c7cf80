"""The name of the processor, asked for while the model loads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def ask_ahead() -> None:
    """Begin what the SDK's import waits for: `cpuinfo.get_cpu_info`, a second in a process of its own.

    From here on that function returns, or raises, what this one call of it comes to. Nothing is done where the
    package is missing: the SDK that needs it is then missing too, or needs it no longer.
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
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
        answer.set_exception(error)
