"""Log lines as text or as JSON objects, each with the id of its request."""

from __future__ import annotations

import logging
import os
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final, Literal

import orjson

from embedder import whereabouts
from service.printed_lines import PrintedLines, capture
from service.variables import plain

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the current request or job, in all of its tasks and threads; None outside of a request."""

CALLER: ContextVar[str] = ContextVar("caller", default="this process")
"""Who sent the current request or job, by the name of the key; `anyone` (no key is set) or `queue`."""

AUDIT: Final = logging.getLogger("service.audit")
"""Logger of one line per deletion or step of a load: who, what and how many, without texts, ids and filters; at any
`LOG_LEVEL`."""

_OURS = ("embedder", "precision", "qdrant_sink", "service")


class _Formatter(logging.Formatter):
    """Logs the type and the origin of an exception only: a traceback or a message may quote a user's text."""

    def message_of(self, record: logging.LogRecord) -> str:
        """The message of a record, with the type and the origin of its exception."""
        message = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            message = f"{message.partition(chr(10))[0]}: {whereabouts(error)}"  # asyncio's further lines quote it
        return message.encode("utf-8", "replace").decode()


class TextFormatter(_Formatter):
    """Formats a line of text: `2026-11-23 08:45:09,123 INFO service.transports.http.gate: /embed 200, 3 ms [id]`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; the line ends with the request id within a request."""
        record.message = self.message_of(record)
        record.asctime = self.formatTime(record)
        line = self.formatMessage(record)
        request_id = REQUEST_ID.get()
        return line if request_id is None else f"{line} [{request_id}]"


class JsonFormatter(_Formatter):
    """Formats one JSON object per line: `{"time", "level", "logger", "message"}`.

    Lines within a request or a job also have `request_id`, and the line of a failed request has `error_code`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": self.message_of(record),
        }
        request_id = getattr(record, "request_id", None) or REQUEST_ID.get()
        if request_id is not None:
            line["request_id"] = request_id
        error_code = getattr(record, "error_code", None)
        if error_code is not None:
            line["error_code"] = error_code
        return orjson.dumps(line).decode()


def configure(level: str, form: Literal["text", "json"] = "text") -> None:
    """Log to standard error, one line per event. Libraries log from WARNING up, since their lines may quote requests.

    Args:
        level: level of this project's loggers.
        form: format of the lines.
    """
    handler = logging.StreamHandler(sys.stderr.stream if isinstance(sys.stderr, PrintedLines) else sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in _OURS:
        logging.getLogger(package).setLevel(level)
    AUDIT.setLevel(logging.INFO)


def configure_start() -> None:
    """Log as `LOG_FORMAT` says until the settings are read, so that warnings about them have the same form."""
    configure("WARNING", _form())


def configure_server(level: str, form: Literal["text", "json"] = "text") -> None:
    """As `configure`, for a process whose whole output is its log.

    As JSON that includes what libraries print, without their progress bars; native code can still write to the file
    of the standard error by itself.

    Args:
        level: of our own loggers, and of what libraries print.
        form: of the lines.
    """
    configure(level, form)
    if form == "json":
        for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
            os.environ.setdefault(variable, "1")
        for stream in ("stdout", "stderr"):
            logging.getLogger(stream).setLevel(level)
        capture()


def refuse_to_start(message: str) -> int:
    """Say on one line why the process ends, in the form that `LOG_FORMAT` asks for, whatever the other settings are.

    Returns:
        The exit status, 2.
    """
    if _form() == "json":
        if not isinstance(sys.stderr, PrintedLines):  # not configured yet
            configure("CRITICAL", "json")
        logging.getLogger(__name__).critical("refusing to start: %s", message)
    else:
        print(f"refusing to start: {message}", file=sys.stderr)  # noqa: T201 - logging may not be set up yet
    return 2


def _form() -> Literal["text", "json"]:
    """The form that `LOG_FORMAT` asks for, whatever the other settings are."""
    return "json" if plain(os.environ.get("LOG_FORMAT", "")).lower() == "json" else "text"
