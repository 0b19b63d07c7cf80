"""Validation of local runs of the RunPod SDK, a single job or its local API, before the model loads."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from embedder import ConfigurationError
from qdrant_sink import kind_of
from service.validation import BYTE_ORDER_MARK

TEST_INPUT_FILE: Final = "test_input.json"
"""File with a job in the working directory, which the SDK reads if no argument gives another job."""

QUEUE: Final = "RUNPOD_WEBHOOK_GET_JOB"
"""Variable in which the platform names its queue."""

_REALTIME_PORT_VARIABLE: Final = "RUNPOD_REALTIME_PORT"
"""Variable that also starts the SDK's local API."""


def polls(environment: Mapping[str, str], arguments: Sequence[str]) -> bool:
    """Whether the SDK polls the platform's queue, rather than run a single job or its local API.

    Args:
        environment: the environment of the process.
        arguments: the arguments of the command line, which `check` accepts.
    """
    options = _options(arguments)
    return bool(environment.get(QUEUE)) and not _serves_api(options, environment) and not options.test_input


def check(environment: Mapping[str, str], arguments: Sequence[str]) -> list[str]:
    """Validate what the SDK itself would check only after the model has loaded.

    The SDK refuses a job with a byte order mark, which some editors write, so it gets the job without the mark.

    Args:
        environment: the environment of the process.
        arguments: the arguments of the command line.

    Returns:
        The arguments for the SDK.

    Raises:
        ConfigurationError: there is no job to run, or the given job is invalid.
    """
    options = _options(arguments)
    if _serves_api(options, environment):
        return [*arguments]
    name, text = "--test_input", options.test_input
    if not text:
        if environment.get(QUEUE):
            return [*arguments]
        if not Path(TEST_INPUT_FILE).exists():
            raise ConfigurationError(
                "RUNPOD_WEBHOOK_GET_JOB names no queue; set PORT to serve HTTP, or use --test_input or --rp_serve_api"
            )
        name, text = TEST_INPUT_FILE, Path(TEST_INPUT_FILE).read_text(encoding="utf-8", errors="replace")
    job = text.removeprefix(BYTE_ORDER_MARK)
    _check_job(name, job)
    return [*arguments] if job == text else [*arguments, f"--test_input={job}"]


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments as the SDK's own parser reads them."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--rp_serve_api", action="store_true")
    parser.add_argument("--test_input")
    try:
        return parser.parse_known_args(arguments)[0]
    except argparse.ArgumentError as error:
        raise ConfigurationError(str(error)) from None


def _serves_api(options: argparse.Namespace, environment: Mapping[str, str]) -> bool:
    return bool(options.rp_serve_api) or environment.get(_REALTIME_PORT_VARIABLE, "0") != "0"


def _check_job(name: str, text: str) -> None:
    """Validate that the text is an object with an input."""
    try:
        job = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"{name} is not valid JSON (column {getattr(error, 'colno', '?')})") from None
    except RecursionError:
        raise ConfigurationError(f"{name} is nested too deeply") from None
    if not isinstance(job, dict):
        raise ConfigurationError(f'{name} must be an object such as {{"input": {{...}}}}, got {kind_of(job)}')
    if job.get("input") is None:
        raise ConfigurationError(f'{name} must have an input such as {{"input": {{"texts": ["hello"]}}}}')
