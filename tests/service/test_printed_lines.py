"""A server with `LOG_FORMAT=json` writes JSON lines and nothing else, whoever prints."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.printed_lines import PrintedLines

ROOT = Path(__file__).parents[2]

PRINT_EVERYTHING = """
import logging, sys, threading, warnings
from service import logs

logs.configure_server("INFO", "json")
logs.configure_server("INFO", "json")  # as for a process that finds out late that it serves HTTP
print("a line of a library")
print("two lines\\nin one call")
sys.stdout.write("half a line, ")
sys.stdout.write("and the other half\\n")
print("a bar 1/2\\ra bar 2/2", file=sys.stderr)
print("without an end", end="", flush=True)
warnings.warn("a warning of a library")

import huggingface_hub
from embedder.checkpoint.hub import log_with_the_application
log_with_the_application()
logging.getLogger("huggingface_hub.utils._http").warning("a line of the hub client")

def fail():
    raise ValueError("the private words of a user")

thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()
"""


def entries(output: str) -> list[dict[str, Any]]:
    """The objects of JSON lines."""
    return [json.loads(line) for line in output.splitlines()]


def test_everything_that_a_server_writes_is_json() -> None:
    """Prints, warnings, the hub client's lines and uncaught exceptions are objects like the service's own lines."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT_EVERYTHING], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    logged = [(entry["logger"], entry["level"], entry["message"]) for entry in entries(done.stderr)]
    for expected in (
        ("stdout", "INFO", "a line of a library"),
        ("stdout", "INFO", "two lines"),
        ("stdout", "INFO", "in one call"),
        ("stdout", "INFO", "half a line, and the other half"),
        ("stderr", "WARNING", "a bar 2/2"),
        ("stdout", "INFO", "without an end"),
        ("huggingface_hub.utils._http", "WARNING", "a line of the hub client"),
    ):
        assert logged.count(expected) == 1, expected
    assert any(name == "py.warnings" and "a warning of a library" in message for name, _, message in logged)
    uncaught = [message for _, level, message in logged if level == "CRITICAL"]
    assert len(uncaught) == 2
    assert all(message.startswith("uncaught exception: ValueError in fail") for message in uncaught)
    assert "private" not in done.stderr


def test_a_log_that_cannot_be_written_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler reports its own failure on the standard error, which does not come back to that handler for ever."""
    closed = io.StringIO()
    closed.close()
    handler = logging.StreamHandler(closed)
    logger = logging.getLogger("stderr")
    logger.addHandler(handler)
    monkeypatch.setattr(sys, "stderr", PrintedLines(sys.__stderr__ or sys.stderr, logging.WARNING))
    try:
        print("a line", file=sys.stderr)  # noqa: T201 - what is tested
    finally:
        logger.removeHandler(handler)
