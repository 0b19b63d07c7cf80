"""RunPod's entry point, which answers jobs. `python handler.py` serves the queue or, if `PORT` is set, HTTP.

This module imports no heavy library. The model loads with the first job or, if this file is run as a program, before
the first poll.
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
    from service.settings import Settings
    from service.wire import Codec, Progress

_building = threading.Lock()
_codec: Codec | None = None


async def handler(job: dict[str, Any], progress: Progress | None = None) -> Any:
    """Answer one RunPod job, `{"id", "input"}`. Works in any event loop, for any number of concurrent jobs.

    Args:
        job: the job as the platform sends it.
        progress: callback for the progress of a job that stores points.

    Returns:
        The answer of the operation in `job["input"]`, or `{"error", "error_code", "retryable", "details"}`. For an
        `openai_route` it is a list that holds OpenAI's object.

    Raises:
        ConfigurationError: the settings cannot work. Only the first call raises it.
        asyncio.CancelledError: the job was cancelled. Its queued texts are dropped.
    """
    codec = _codec
    if codec is None:
        codec = await asyncio.to_thread(_load)
    return await codec.job(job.get("input"), progress)


def build(settings: Settings | None = None) -> Operations:
    """Load the model and return the operations over it. Later calls return the same object. Blocks.

    Args:
        settings: the settings of the first call; None reads the environment.
    """
    return _load(settings).core


def _load(settings: Settings | None = None) -> Codec:
    global _codec  # noqa: PLW0603 - this module holds the one model of the process
    with _building:
        if _codec is None:
            from service.operations import Operations
            from service.settings import Settings
            from service.wire import Codec

            _codec = Codec(Operations.build(settings or Settings.from_environment()))
        return _codec


if __name__ == "__main__":
    # The handlers come first, since Linux ignores a signal for which the first process of a container has no handler.
    # They call os._exit, since the interpreter's own shutdown can crash in a library that another thread is loading.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from service.transports.queue.worker import serve

    sys.exit(serve(handler, build))
