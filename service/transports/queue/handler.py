"""What RunPod calls: a job in, its answer out, over one model per process.

Nothing heavy is imported here: the model loads on the first job, or before the first poll.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.operations import Operations
    from service.settings import Settings
    from service.wire import Codec, Progress

_building = threading.Lock()
_codec: Codec | None = None


async def handler(job: dict[str, Any], progress: Progress | None = None) -> Any:
    """The answer to one RunPod job, `{"id", "input"}`; works in any event loop, for any number of jobs concurrently.

    Args:
        job: as the platform sends it.
        progress: told how far a job that stores has come.

    Returns:
        What the operation in `job["input"]` answers, or `{"error", "error_code", "retryable", "details"}`; for an
        `openai_route` a list of one, OpenAI's object.

    Raises:
        ConfigurationError: the settings cannot work; only on the first call.
        asyncio.CancelledError: the job was cancelled; its queued texts are dropped.
    """
    codec = _codec
    if codec is None:
        from embedder import in_own_thread

        codec = await in_own_thread(_load)
    return await codec.job(job.get("input"), progress)


def build(settings: Settings | None = None) -> Operations:
    """The operations over one loaded model: built by the first call, the same object ever after. Blocks.

    Args:
        settings: for the first call; None reads the environment.
    """
    return _load(settings).core


def _load(settings: Settings | None = None) -> Codec:
    global _codec  # noqa: PLW0603 - one model per process is what this module is for
    with _building:
        if _codec is None:
            from service.operations import Operations
            from service.settings import Settings
            from service.wire import Codec

            _codec = Codec(Operations.build(settings or Settings.from_environment()))
        return _codec
