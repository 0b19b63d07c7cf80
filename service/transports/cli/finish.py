"""The finish of a collection from the command line: `bulk --finish`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from embedder import WorkerError
from service.bulk.end_messages import end_messages
from service.bulk.load import UNFINISHED
from service.bulk.report import LoadReport
from service.operations import LoadEnd
from service.operations.finish import FINISH_ID
from service.operations.load_values import INTERRUPTED
from service.transports.cli.arguments import ARGUMENTS
from service.transports.cli.messages import say
from service.transports.cli.signals import interrupt_on_signals


class FinishOperation(Protocol):
    """Finishes a collection; see `service.operations.finish.Finish`."""

    async def __call__(  # noqa: D102
        self,
        collection: str,
        alias: str | None,
        *,
        gives_up: Sequence[str],
        say: Callable[[str], None],
        stopping: asyncio.Event,
    ) -> LoadEnd: ...


def finished(finish: FinishOperation, collection: str, alias: str | None, gives_up: Sequence[str]) -> LoadReport:
    """Finish a collection; returns the report of a load of no lines.

    Args:
        finish: the operation.
        collection: name of the collection.
        alias: alias that is to lead to it; None for none.
        gives_up: ids of loads whose missing lines are given up.
    """
    report = LoadReport(alias=None if alias is None else False)
    try:
        asyncio.run(_finish(finish, report, collection, alias, gives_up))
    except WorkerError as error:
        report.failure = error.message
    return report


async def _finish(
    finish: FinishOperation, report: LoadReport, collection: str, alias: str | None, gives_up: Sequence[str]
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    interrupt_on_signals(lambda: _set_soon(loop, stopping))
    end = await finish(collection, alias, gives_up=gives_up, say=_say, stopping=stopping)
    for text in end_messages(end, FINISH_ID, alias):
        _say(text)
    if end.outcome == "stopped":
        report.failure = INTERRUPTED
    elif end.outcome == "unfinished":
        report.failure = UNFINISHED
    elif alias is not None:
        report.alias = alias in end.aliases
        if alias in end.kept:
            say("with --allow-empty the alias moves nevertheless")


def _say(text: str) -> None:
    """Print a message in terms of the options."""
    say(ARGUMENTS["bulk"].message(text))


def _set_soon(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)
