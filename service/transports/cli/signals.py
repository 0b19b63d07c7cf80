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


def interrupt_on_signals(*interrupt: Callable[[], None]) -> None:
    """Call these functions on the first signals, one on each; the next signal ends the process."""
    calls = iter(interrupt)

    def stop(_number: int, _frame: object) -> None:
        next(calls)()
        left.pop()
        if not left:
            for each in (signal.SIGINT, signal.SIGTERM):
                signal.signal(each, signal.SIG_DFL)

    left = list(interrupt)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
