"""What SIGINT and SIGTERM do to a command."""

from __future__ import annotations

import signal
from collections.abc import Callable

from service.operations.load_values import INTERRUPTED
from service.shutdown import end_process
from service.transports.cli.messages import say


def end_on_signals() -> None:
    """End the process with status 2 on a signal, before there is something to finish."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted_early)


def _interrupted_early(_number: int, _frame: object) -> None:
    say(INTERRUPTED)
    end_process(2)


def interrupt_on_signals(interrupt: Callable[[], None]) -> None:
    """Call this on the first signal; the second ends the process."""

    def stop(number: int, _frame: object) -> None:
        interrupt()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
