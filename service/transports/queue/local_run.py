"""What the RunPod SDK is asked to do where no queue is: one job, or its local API. Checked before the model loads."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from embedder import ConfigurationError
from service.validation import kind_of

FILE: Final = "test_input.json"
"""In the working directory; the SDK reads it where no argument says anything else."""

_REALTIME: Final = "RUNPOD_REALTIME_PORT"
"""Opens the SDK's API too."""


def check(environment: Mapping[str, str], arguments: Sequence[str], *, queue: bool) -> None:
    """Refuse what the SDK would find out when the model is loaded.

    Args:
        environment: of the process.
        arguments: of the command line.
        queue: whether one is named.

    Raises:
        ConfigurationError: there is nothing to do, or the job of the command line is none.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)  # reads as the SDK's own parser does
    parser.add_argument("--rp_serve_api", action="store_true")
    parser.add_argument("--test_input")
    try:
        asked, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigurationError(str(error)) from None
    if asked.rp_serve_api or environment.get(_REALTIME, "0") != "0":
        return
    if asked.test_input:
        _check_job("--test_input", asked.test_input)
    elif not queue:
        if not Path(FILE).exists():
            raise ConfigurationError(
                "no RunPod queue is named (RUNPOD_WEBHOOK_GET_JOB): set PORT for HTTP, "
                "or use --test_input or --rp_serve_api"
            )
        _check_job(FILE, Path(FILE).read_text(encoding="utf-8", errors="replace"))


def _check_job(name: str, text: str) -> None:
    """A job is an object with an input, whatever that is."""
    try:
        job = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"{name} is not JSON (column {getattr(error, 'colno', '?')})") from None
    except RecursionError:
        raise ConfigurationError(f"{name} is nested too deeply") from None
    if not isinstance(job, dict):
        raise ConfigurationError(f'{name} must be an object such as {{"input": {{...}}}}, got {kind_of(job)}')
    if job.get("input") is None:
        raise ConfigurationError(f'{name} must have an input, such as {{"input": {{"texts": ["hello"]}}}}')
