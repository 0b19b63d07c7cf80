"""An embedded collection is optimised in a separate process. However it ends, no points are lost."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qdrant_sink.edge import EdgeStore
from qdrant_sink.edge.settings import CONFIG_FILE, read_config
from qdrant_sink.errors import StoreRejected, StoreUnavailable
from tests.sink.samples import SCHEMA, job
from tests.sink.writing import write

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60
POINTS = 200
HANGING_COMMAND = [sys.executable, "-c", "import time; time.sleep(600)"]


def opened(directory: Path, *optimizer: str, points: int = POINTS) -> EdgeStore:
    """Open a store whose collection "docs" needs a graph. The collection "other" is empty."""
    store = EdgeStore(directory)
    for name in ("docs", "other"):
        store.ensure(name, SCHEMA)
    store.close()
    config = read_config(directory / "docs")
    (directory / "docs" / CONFIG_FILE).write_text(json.dumps({**config, "optimizers": {"indexing_threshold": 1}}))
    store = EdgeStore(directory, optimizer=optimizer) if optimizer else EdgeStore(directory)
    assert write(store, "docs", job(points), SCHEMA).stored == points
    return store


def until(condition: Callable[[], object]) -> None:
    """Wait until the condition is true."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def has_graph(collection: Path) -> bool:
    """Whether the collection has an HNSW graph of the dense vectors."""
    return bool(list(collection.glob("segments/*/vector_index-dense/graph*")))


def test_the_graph_is_built_in_a_separate_process(tmp_path: Path) -> None:
    """The graph exists when the call returns, and the collection has all points and accepts new ones."""
    store = opened(tmp_path)
    assert not has_graph(tmp_path / "docs")
    assert store.optimize("docs")
    assert has_graph(tmp_path / "docs")
    assert write(store, "docs", job(POINTS + 10), SCHEMA).stored == POINTS + 10
    assert store.count("docs") == POINTS + 10
    store.close()


def test_other_collections_stay_usable_and_closing_stops_the_optimisation(tmp_path: Path) -> None:
    """Only calls for the same collection wait. Closing the store stops the optimisation without losing points."""
    store = opened(tmp_path, *HANGING_COMMAND)
    with ThreadPoolExecutor(2) as threads:
        optimizing = threads.submit(store.optimize, "docs")
        until(lambda: store._collections["docs"]._optimization)
        waiting = threads.submit(store.count, "docs")
        assert write(store, "other", job(5), SCHEMA).stored == 5
        assert store.count("other") == 5
        assert not optimizing.done()
        assert not waiting.done()
        started_at = time.monotonic()
        store.close()
        assert time.monotonic() - started_at < TIMEOUT_S
        for call in (optimizing, waiting):
            with pytest.raises(StoreUnavailable, match="the store is closed"):
                call.result(TIMEOUT_S)
    store = EdgeStore(tmp_path)
    assert store.count("docs") == POINTS
    store.close()


@pytest.mark.slow
def test_a_killed_process_loses_no_points(tmp_path: Path) -> None:
    """After a kill, the collection has all points, and the next run builds the graph."""
    points = 2000  # enough for a run that can be interrupted
    store = opened(tmp_path, points=points)
    with ThreadPoolExecutor(1) as threads:
        optimizing = threads.submit(store.optimize, "docs")
        until(lambda: list((tmp_path / "docs").glob("temp_segments/*")))
        optimization = store._collections["docs"]._optimization
        assert optimization is not None
        optimization._process.send_signal(signal.SIGKILL)
        with pytest.raises(
            StoreUnavailable, match=r"'docs' ended early \(signal 9, possibly out of memory\); no points are"
        ):
            optimizing.result(TIMEOUT_S)
    assert store.count("docs") == points
    store.build_index("docs", SCHEMA, timeout_s=TIMEOUT_S)
    assert has_graph(tmp_path / "docs")
    store.close()


def test_a_process_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    """The error states the way out and no path, and the collection is unchanged."""
    store = opened(tmp_path, "/secret/python")
    with pytest.raises(
        StoreUnavailable, match=r"no such file.*; allow the worker to start processes, or use a"
    ) as caught:
        store.optimize("docs")
    assert isinstance(caught.value.__cause__, OSError)
    assert "secret" not in caught.value.message
    assert store.count("docs") == POINTS
    store.close()


def test_an_error_in_the_process_is_raised_by_the_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An error in the process is raised and logged by the worker, without quoting data."""
    store = opened(tmp_path)
    config = tmp_path / "docs" / CONFIG_FILE
    sound = config.read_text()
    config.write_text("secret")
    with (
        caplog.at_level(logging.INFO, "qdrant_sink"),
        pytest.raises(StoreRejected, match=r"^Qdrant Edge refused the opening of collection 'docs'$") as caught,
    ):
        store.optimize("docs")
    assert isinstance(caught.value.__cause__, subprocess.CalledProcessError)
    assert caplog.messages == ["the optimisation of collection 'docs' failed: JSONDecodeError"]
    config.write_text(sound)
    assert store.count("docs") == POINTS
    store.close()


@pytest.mark.parametrize(
    "ends",
    [
        pytest.param(
            "kill_with_worker(os.getppid())", marks=pytest.mark.skipif(sys.platform != "linux", reason="prctl")
        ),
        "kill_with_stdin()",
    ],
)
def test_the_process_ends_with_its_worker(ends: str) -> None:
    """If the worker is killed, its process ends even while the engine holds the GIL."""
    optimizer = f"import os, ctypes; from qdrant_sink.edge.optimizer import *; {ends}; print(os.getpid(), flush=True); "
    optimizer += "ctypes.PyDLL(None).sleep(600)"  # holds the GIL
    worker = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {optimizer!r}], stdin=subprocess.PIPE).wait()
"""
    with subprocess.Popen([sys.executable, "-c", worker], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdecimal()
        process.kill()
        started_at = time.monotonic()
        assert process.stdout.read() == ""  # the optimizer keeps it open until it ends
        assert time.monotonic() - started_at < TIMEOUT_S
