"""The worker with jobs that take 10 ms; with `bare`, the SDK alone with a concurrency limit of 128."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import handler
from service.transports.queue.concurrency import Concurrency
from service.transports.queue.worker import serve
from service.wire import Progress


async def brief(job: dict[str, Any], _progress: Progress | None = None) -> dict[str, Any]:
    """Answer after 10 ms."""
    await asyncio.sleep(0.01)
    return {"id": job["id"]}


def main() -> int:
    """Serve the queue."""
    if sys.argv[1:] == ["bare"]:
        import runpod

        runpod.serverless.start({"handler": brief, "concurrency_modifier": lambda _current: 128})
        return 0
    defaults = Concurrency.__init__.__kwdefaults__
    assert defaults is not None
    defaults["clock"] = lambda: 0.0  # jobs stay brief on a busy machine, where their durations would lower the limit
    return serve(brief, handler.build)


if __name__ == "__main__":
    sys.exit(main())
