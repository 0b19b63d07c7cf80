"""An embedded collection is optimised in a process of its own, which costs nothing however it ends."""

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
PATIENCE_S = 60
POINTS = 200
HANGING = [sys.executable, "-c", "import time; time.sleep(60)"]


def opened(directory: Path, *optimizer: str, points: int = POINTS) -> EdgeStore:
    """A store whose collection "docs" wants a graph; "other" is empty."""
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
    """Wait until this is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def has_graph(collection: Path) -> bool:
    """Whether there is an HNSW graph of the dense vectors."""
    return bool(list(collection.glob("segments/*/vector_index-dense/graph*")))


def test_the_graph_is_built_in_another_process(tmp_path: Path) -> None:
    """The graph is there when the call returns, with every point, and so is what is written afterwards."""
    store = opened(tmp_path)
    assert not has_graph(tmp_path / "docs")
    assert store.optimize("docs")
    assert has_graph(tmp_path / "docs")
    assert write(store, "docs", job(POINTS + 10), SCHEMA).stored == POINTS + 10
    assert store.count("docs") == POINTS + 10
    store.close()


def test_others_answer_meanwhile_and_closing_ends_it(tmp_path: Path) -> None:
    """Only calls for the collection itself wait; a store that is closed waits for nothing, and loses nothing."""
    store = opened(tmp_path, *HANGING)
    with ThreadPoolExecutor(2) as threads:
        optimizing = threads.submit(store.optimize, "docs")
        until(lambda: store._collections["docs"]._optimization)
        waiting = threads.submit(store.count, "docs")
        assert write(store, "other", job(5), SCHEMA).stored == 5
        assert store.count("other") == 5
        assert not optimizing.done()
        assert not waiting.done()
        began = time.monotonic()
        store.close()
        assert time.monotonic() - began < 5
        for call in (optimizing, waiting):
            with pytest.raises(StoreUnavailable, match="the store is closed"):
                call.result(PATIENCE_S)
    store = EdgeStore(tmp_path)
    assert store.count("docs") == POINTS
    store.close()


def test_a_process_that_is_killed_costs_only_its_run(tmp_path: Path) -> None:
    """The collection answers with all its points, and so does the next run."""
    points = 2000  # so that there is a middle
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
            optimizing.result(PATIENCE_S)
    assert store.count("docs") == points
    store.build_index("docs", SCHEMA, timeout_s=PATIENCE_S)
    assert has_graph(tmp_path / "docs")
    store.close()


def test_a_process_that_cannot_start_is_told(tmp_path: Path) -> None:
    """In words that name the way out and no path; the collection is as it was."""
    store = opened(tmp_path, "/secret/python")
    with pytest.raises(
        StoreUnavailable, match=r"no such file.*; allow the worker to start processes, or use a"
    ) as caught:
        store.optimize("docs")
    assert isinstance(caught.value.__cause__, OSError)
    assert "secret" not in caught.value.message
    assert store.count("docs") == POINTS
    store.close()


def test_what_the_engine_refuses_there_is_an_error_here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It has the type and the words of the seam, its log line is the worker's, and neither quotes anything."""
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
def test_it_ends_with_its_worker(ends: str) -> None:
    """By the kernel on Linux, elsewhere by the end of a pipe that the worker held: not even its Python has to run."""
    optimizer = f"import os, ctypes; from qdrant_sink.edge.optimizer import *; {ends}; print(os.getpid(), flush=True); "
    optimizer += "ctypes.PyDLL(None).sleep(60)"  # holds the GIL
    worker = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {optimizer!r}], stdin=subprocess.PIPE).wait()
"""
    with subprocess.Popen([sys.executable, "-c", worker], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdecimal()
        process.kill()
        began = time.monotonic()
        assert process.stdout.read() == ""  # the optimizer has it open to its end
        assert time.monotonic() - began < 20
