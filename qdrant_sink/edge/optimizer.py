"""Program that optimises one collection of Qdrant Edge: `python -m qdrant_sink.edge.optimizer`.

Its arguments are the directory of the collection, the name of the vector that needs a graph, which the collection may
lack, and the id of the worker's process. It writes JSON Lines to its standard output: `{"level", "message"}` for the
log of the worker, and at the end `{"changed"}` or `{"error", "message"}`. Its standard input is a pipe that closes when
the worker ends.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

import qdrant_edge as edge

from qdrant_sink.edge.collection import count_unindexed_points, open_shard
from qdrant_sink.edge.directories import collection_in
from qdrant_sink.edge.faults import mapped
from qdrant_sink.edge.settings import merging
from qdrant_sink.errors import StoreError

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
"""Option of Linux's `prctl` that sets the signal which the kernel sends when the parent ends."""


def optimize(directory: Path, vector: str) -> bool:
    """Merge segments and build the graph of a vector. Returns whether the collection was changed."""
    shard = open_shard(directory)
    with mapped("optimisation"):
        shard.flush()  # after a kill, one segment then has all points; see `edge.segments`
        changed = shard.optimize()
        shard.flush()
        unindexed = count_unindexed_points(shard, directory, vector)
        shard.close()
        if not unindexed:
            return changed
        log.info(
            "collection %r: merging segments, because %d points are not in the HNSW graph",
            collection_in(directory),
            unindexed,
        )
        with merging(directory):
            shard = edge.EdgeShard.load(str(directory))
            changed |= shard.optimize()
            shard.flush()
            shard.close()
        return changed


def kill_with_worker(worker: int) -> None:
    """Let the kernel kill this process when the worker ends. No Python thread could: the engine holds the GIL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        kill_with_stdin()
    if os.getppid() != worker:  # the worker has already ended
        sys.exit(1)


def kill_with_stdin() -> None:
    """Fork a process that kills this one when the standard input ends, and that closes all other descriptors."""
    optimizer = os.getpid()
    if os.fork():
        return
    os.closerange(1, os.sysconf("SC_OPEN_MAX"))
    while os.read(0, 1):
        pass
    if os.getppid() == optimizer:
        os.kill(optimizer, signal.SIGKILL)
    os._exit(0)


class _WorkerLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _write(level=record.levelno, message=record.getMessage())


def _write(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)  # noqa: T201 - the worker reads the standard output


def main(directory: str, vector: str, worker: str) -> int:
    """Optimise the collection, print the result and return the exit status."""
    kill_with_worker(int(worker))
    logging.basicConfig(level=logging.INFO, handlers=[_WorkerLog()])
    try:
        changed = optimize(Path(directory), vector)
    except StoreError as error:
        collection, cause = collection_in(Path(directory)), type(error.__cause__).__name__
        log.error("the optimisation of collection %r failed: %s", collection, cause)
        _write(error=type(error).__name__, message=error.message)
        return 1
    _write(changed=changed)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
