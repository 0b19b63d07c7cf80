"""`handler.py` is cheap to import and offers one coroutine that answers jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.embedder.oracle import TOLERANCE

ROOT = Path(__file__).parents[1]
SETTINGS = {"MODEL_ID": "mini", "GPU_DEVICE": "cpu", "DTYPE": "float32", "TOKEN_BUDGET": "4096"}

SHOW_MODULES = """
import json, sys
import handler
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""

AS_A_PROGRAM = """
import json, runpy, signal, sys, types

entry = types.ModuleType("service.transports.queue.worker")

def serve(handler, build):
    handled = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    print(json.dumps([handler.__name__, build.__name__, all(map(callable, handled))]))
    return 7

entry.serve = serve
sys.modules[entry.__name__] = entry
try:
    runpy.run_path("handler.py", run_name="__main__")
except SystemExit as ended:
    print(ended.code)
"""

TWO_LOOPS = """
import asyncio, json, logging
import handler

logging.basicConfig(level=logging.INFO)
embed = {"id": "a", "input": {"texts": ["one", ""]}}

async def several():
    return await asyncio.gather(*(handler.handler(dict(embed)) for _ in range(4)))

together = asyncio.run(several())
built = handler.build()
again = asyncio.run(handler.handler(embed))
print(json.dumps({
    "together": together,
    "again": again,
    "same": handler.build() is built,
    "without input": asyncio.run(handler.handler({"id": "b"})),
    "input null": asyncio.run(handler.handler({"id": "c", "input": None})),
    "batch size": asyncio.run(handler.handler({"id": "d", "input": {"texts": ["a"], "batchSize": -1}})),
}))
"""

REFUSED = """
import asyncio
import handler
from embedder.errors import ConfigurationError

for _ in range(2):
    try:
        asyncio.run(handler.handler({"id": "a", "input": {"texts": ["one"]}}))
    except ConfigurationError as error:
        print(error)
"""


def output(program: str, **variables: str) -> tuple[str, str]:
    """Return stdout and stderr of a program in a fresh process; it must succeed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("QDRANT_", "MODEL_"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**clean, **SETTINGS, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_importing_the_handler_loads_nothing_heavy() -> None:
    """Importing the handler loads neither models nor the SDK nor clients."""
    loaded = set(json.loads(output(SHOW_MODULES)[0]))
    assert "handler" in loaded
    heavy = {"torch", "runpod", "qdrant_client", "qdrant_edge", "transformers", "FlagEmbedding", "pydantic", "numpy"}
    assert not loaded & heavy


def test_as_a_program_it_starts_the_worker() -> None:
    """`python handler.py` hands its coroutine and its builder to the worker, and exits with the worker's status.

    Both signals have handlers by then: the first process of a container would ignore them otherwise.
    """
    assert output(AS_A_PROGRAM)[0].splitlines() == ['["handler", "build", true]', "7"]


@pytest.mark.slow
def test_a_handler_works_in_any_event_loop_and_loads_one_model() -> None:
    """Concurrent jobs and jobs in later event loops share one model and get their own answers."""
    printed, logged = output(TWO_LOOPS)
    answers: dict[str, Any] = json.loads(printed)
    assert logged.count("model ready") == 1
    assert answers["same"] is True
    for answer in (*answers["together"], answers["again"]):
        assert [result["text"] for result in answer["results"]] == ["one", ""]
        for result, other in zip(answer["results"], answers["again"]["results"], strict=True):
            assert result["dense"] == pytest.approx(other["dense"], abs=TOLERANCE)
    for name in ("without input", "input null"):
        assert answers[name]["error_code"] == "invalid_request"
        assert answers[name]["error"] == "input must be an object, got null"
    assert "batchSize" in answers["batch size"]["error"]


def test_settings_that_cannot_work_are_not_forgotten() -> None:
    """A handler with invalid settings reports the reason to every job, not only to the first."""
    lines = output(REFUSED, MAX_MODELS="0")[0].splitlines()
    assert len(lines) == 2
    assert all("MAX_MODELS" in line for line in lines)
