"""The RunPod adapter: a job in, a dict out. `python handler.py` serves the queue or, with `PORT`, HTTP.

Nothing heavy is imported here: the model loads on the first job, or before the first poll when this
file is the program.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.operations import Operations
    from service.progress import Report
    from service.settings import Settings

_building = threading.Lock()
_operations: Operations | None = None


async def handler(job: dict[str, Any], report: Report | None = None) -> Any:
    """The answer to one RunPod job, `{"id", "input"}`; works in any event loop, any number at once.

    Args:
        job: as the platform sends it.
        report: told how far a job that stores has come.

    Returns:
        What the operation in `job["input"]` answers, or `{"error", "error_code", "retryable", "details"}`;
        for an `openai_route` a list of one, OpenAI's object.

    Raises:
        ConfigurationError: the settings cannot work; only on the first call.
        asyncio.CancelledError: the job was cancelled; its queued texts are dropped.
    """
    operations = await asyncio.to_thread(build) if _operations is None else _operations
    return await operations.answer_job(job.get("input"), report)


def build(settings: Settings | None = None) -> Operations:
    """The operations over one loaded model: built by the first call, the same object ever after. Blocking.

    Args:
        settings: for the first call; None reads the environment.
    """
    global _operations  # noqa: PLW0603 - one model per process is what this module is for
    with _building:
        operations = _operations
        if operations is None:
            from service.operations import Operations
            from service.settings import Settings

            operations = _operations = Operations.build(settings or Settings.from_environment())
        return operations


if __name__ == "__main__":
    # First of all: Linux ignores a signal for which the first process of a container has no handler. And without the
    # interpreter's own end, which can crash in a library that another thread is just loading.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from service.worker import serve

    sys.exit(serve(handler, build))
