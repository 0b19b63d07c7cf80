"""The SDK's log lines, by way of `logging`."""

from __future__ import annotations

import logging
from typing import Any, Final

MESSAGE_MAX_CHARACTERS: Final = 4096
"""Characters of a message that are kept, as the SDK does it: it also logs the answer of a local run."""

_LEVELS: Final = {
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "TIP": logging.INFO,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
}

log = logging.getLogger("runpod")


def log_through_logging() -> None:
    """Have the SDK log records with the id of their job, rather than print; its own level still decides which."""
    from runpod.serverless.modules.rp_logger import LOG_LEVELS, RunPodLogger

    def write(logger: Any, message: object, message_level: str = "INFO", job_id: str | None = None) -> None:
        below = message_level in LOG_LEVELS and LOG_LEVELS.index(message_level) < LOG_LEVELS.index(logger.level)
        if logger.level != "NOTSET" and not below:
            extra = {} if job_id is None else {"request_id": job_id}
            log.log(_LEVELS.get(message_level, logging.INFO), "%s", str(message)[:MESSAGE_MAX_CHARACTERS], extra=extra)

    log.setLevel(logging.DEBUG)
    RunPodLogger.log = write
