"""The RunPod queue worker: load and warm first, then take jobs. Also `--test_input` and `--rp_serve_api`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from embedder.errors import ConfigurationError
from service.concurrency import Concurrency
from service.intake import Intake
from service.operations import Operations
from service.settings import Settings

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

log = logging.getLogger(__name__)

_SDK_LEVELS = {"DEBUG": "INFO", "INFO": "INFO", "WARNING": "WARN", "ERROR": "ERROR", "CRITICAL": "ERROR"}


def serve(handler: Handler, build: Callable[[Settings], Operations]) -> int:
    """Run the SDK's worker until it is told to stop.

    Args:
        handler: answers one job.
        build: loads the model that the handler uses; called before the first poll.

    Returns:
        The exit status of the process: 2 if the settings cannot work, 1 if the last device was lost.
    """
    # Until the SDK installs its own handler, nothing is in flight: stop at once, and cleanly.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        settings = Settings.from_environment()
        configure_logging(settings.log_level)
        if settings.port is not None:
            log.warning("PORT is set, but this program serves the RunPod queue and opens no HTTP port")
        operations = build(settings)
    except ConfigurationError as error:
        print(f"refusing to start: {error}", file=sys.stderr)  # noqa: T201 - logging may not be set up yet
        return 2
    # The SDK logs at DEBUG by default, and then every answer, which is the user's data.
    if not os.environ.get("RUNPOD_LOG_LEVEL"):
        os.environ["RUNPOD_LOG_LEVEL"] = _SDK_LEVELS[settings.log_level]

    import runpod
    from runpod.serverless.modules.worker_state import JobsProgress

    concurrency = Concurrency(
        settings.min_concurrency,
        settings.max_concurrency,
        scale_up=settings.scale_up_threshold,
        scale_down=settings.scale_down_threshold,
    )

    lost = threading.Event()

    def leave() -> None:
        lost.set()
        os.kill(os.getpid(), signal.SIGTERM)

    operations.when_lost(leave)
    intake = Intake(concurrency.intake, lambda: {job.id for job in JobsProgress()})

    async def limited(job: dict[str, Any]) -> dict[str, Any]:
        intake.begin(job.get("id", ""))
        async with concurrency.slot():
            return await handler(job)

    try:
        runpod.serverless.start({"handler": limited, "concurrency_modifier": intake})
    finally:
        operations.close()
    return 1 if lost.is_set() else 0


def configure_logging(level: str) -> None:
    """One line per event on standard error; libraries only from WARNING up, since theirs may quote requests."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    for package in ("embedder", "qdrant_sink", "service"):
        logging.getLogger(package).setLevel(level)
