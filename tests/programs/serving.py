"""The worker of `handler.py` over operations that a test program builds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from service.operations import Operations
from service.settings import Settings
from service.transports.queue import worker
from service.transports.queue.progress import POST_INTERVAL_S
from service.wire import Codec, Progress


def serve(build: Callable[[Settings], Operations], *, progress_s: float = POST_INTERVAL_S) -> int:
    """Serve the queue or, with `PORT`, HTTP; return the exit status of the process.

    Args:
        build: makes the operations.
        progress_s: seconds between two reports of a long job.
    """
    codecs: list[Codec] = []

    def load(settings: Settings) -> Operations:
        operations = build(settings)
        codecs.append(Codec(operations))
        return operations

    async def answer(job: dict[str, Any], progress: Progress | None = None) -> Any:
        return await codecs[0].job(job.get("input"), progress)

    return worker.serve(answer, load, progress_s=progress_s)
