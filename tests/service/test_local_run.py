"""Local runs of the SDK are validated before the model loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedder import ConfigurationError
from service.transports.queue.local_run import TEST_INPUT_FILE, check, polls

JOB = '{"input": {"texts": ["hello"]}}'
NAMED = {"RUNPOD_WEBHOOK_GET_JOB": "https://queue?"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in a directory without the SDK's file."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "environment", "polling"),
    [
        ([], NAMED, True),
        (["--rp_log_level", "DEBUG"], NAMED, True),
        (["--rp_serve_api"], {}, False),
        (["--rp_serve_api", "--rp_api_port", "8001"], NAMED, False),
        ([], {"RUNPOD_REALTIME_PORT": "8000"}, False),
        ([], {**NAMED, "RUNPOD_REALTIME_PORT": "8000"}, False),
        (["--test_input", JOB], {}, False),
        ([f"--test_input={JOB}"], NAMED, False),
    ],
)
def test_a_queue_a_job_or_the_local_api_is_accepted(
    arguments: list[str], environment: dict[str, str], polling: bool
) -> None:
    """The worker starts with a queue, a job or the local API, and polls only a queue that nothing overrides."""
    check(environment, arguments)
    assert polls(environment, arguments) is polling


@pytest.mark.parametrize("arguments", [[], ["--rp_log_level", "DEBUG"], ["--test_input", ""]])
def test_a_process_without_work_is_refused(arguments: list[str]) -> None:
    """The message names what is missing and all ways to start."""
    with pytest.raises(ConfigurationError, match=r"RUNPOD_WEBHOOK_GET_JOB.*PORT.*--test_input.*--rp_serve_api"):
        check({}, arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{nonsense", "is not valid JSON (column 2)"),
        ("[" * 100_000, "is nested too deeply"),
        ("[1]", "must be an object such as"),
        ("{}", "must have an input"),
        ('{"input": null}', "must have an input"),
    ],
)
def test_an_invalid_job_is_refused(text: str, said: str) -> None:
    """An invalid job on the command line or in the SDK's file is an error that names its source."""
    with pytest.raises(ConfigurationError) as refusal:
        check(NAMED, ["--test_input", text])
    assert str(refusal.value).startswith(f"--test_input {said}")
    Path(TEST_INPUT_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as refusal:
        check({}, [])
    assert str(refusal.value).startswith(f"{TEST_INPUT_FILE} {said}")
    check(NAMED, [])


def test_the_file_of_the_sdk_is_a_job() -> None:
    """A job in `test_input.json` in the working directory is enough to start: the SDK runs it."""
    Path(TEST_INPUT_FILE).write_text(JOB, encoding="utf-8")
    check({}, [])


@pytest.mark.parametrize("arguments", [[], ["--test_input", f"\ufeff{JOB}"]], ids=["file", "argument"])
def test_a_byte_order_mark_before_the_job_is_skipped(arguments: list[str]) -> None:
    """A job that an editor saved with a mark runs: the SDK, which refuses the mark, gets the job without it."""
    Path(TEST_INPUT_FILE).write_text(JOB, encoding="utf-8-sig")
    assert check({}, arguments) == [*arguments, f"--test_input={JOB}"]
    assert check({}, ["--test_input", JOB]) == ["--test_input", JOB]
