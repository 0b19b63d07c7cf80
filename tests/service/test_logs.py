"""Log lines are text or JSON, one per event, with the request id and without tracebacks."""

from __future__ import annotations

import asyncio
import gc
import json
import logging

import pytest

from service.logs import REQUEST_ID, JsonFormatter, TextFormatter


def record(message: str, *values: object) -> logging.LogRecord:
    """An event of the service."""
    return logging.LogRecord("service.transports.http.gate", logging.WARNING, __file__, 1, message, values, None)


def test_a_json_line_is_one_object() -> None:
    """A JSON line has time, level, logger and message, whatever the message contains."""
    line = JsonFormatter().format(record('a "quoted"\nmessage of %d lines \ud800', 2))
    assert "\n" not in line
    event = json.loads(line)
    assert set(event) == {"time", "level", "logger", "message"}
    assert (event["level"], event["logger"]) == ("WARNING", "service.transports.http.gate")
    assert event["message"] == 'a "quoted"\nmessage of 2 lines ?'
    assert event["time"].endswith("+00:00")


def test_a_line_within_a_request_has_its_id() -> None:
    """Both formats contain the request id within a request, and no id outside of one."""
    token = REQUEST_ID.set("abc-1")
    try:
        assert json.loads(JsonFormatter().format(record("x")))["request_id"] == "abc-1"
        assert TextFormatter().format(record("x")).endswith("WARNING service.transports.http.gate: x [abc-1]")
    finally:
        REQUEST_ID.reset(token)
    assert TextFormatter().format(record("x")).endswith("WARNING service.transports.http.gate: x")


def test_a_line_that_names_its_request_itself_keeps_that_id() -> None:
    """A record of the SDK about one job, written outside of the job's task, has the id of that job."""
    event = record("x")
    event.request_id = "job-7"
    assert json.loads(JsonFormatter().format(event))["request_id"] == "job-7"


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_a_line_has_no_traceback(formatter: logging.Formatter) -> None:
    """A failure is logged with its type and origin only, since the exception's message may quote a user's text."""
    try:
        raise ValueError("the private words of a user")
    except ValueError as error:
        event = logging.LogRecord("x", logging.ERROR, "", 1, "failed", (), (ValueError, error, error.__traceback__))
    event.exc_text = "as another handler has spelt it: the private words"
    line = formatter.format(event)
    assert "private" not in line
    assert "failed: ValueError in test_a_line_has_no_traceback (service/test_logs.py:" in line
    assert "\n" not in line


@pytest.mark.slow
@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_what_asyncio_logs_quotes_nothing(formatter: logging.Formatter, caplog: pytest.LogCaptureFixture) -> None:
    """The message of an exception that asyncio logs is left out."""

    async def fail() -> None:
        raise ValueError("the private words of a user")

    async def forgotten() -> None:
        task = asyncio.create_task(fail())
        await asyncio.wait([task])

    asyncio.run(forgotten())
    gc.collect()
    (event,) = [event for event in caplog.records if event.name == "asyncio"]
    assert "private" in event.getMessage()
    line = formatter.format(event)
    assert "private" not in line
    assert "Task exception was never retrieved: ValueError in fail" in line
