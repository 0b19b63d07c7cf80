"""Optimise a collection in a separate process, because the engine holds the GIL during the whole run.

The page docs/design.md states what an optimisation inside the worker would cost.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qdrant_sink.edge.directories import collection_in
from qdrant_sink.errors import StoreError, StoreRejected, StoreUnavailable

log = logging.getLogger(__name__)

OPTIMIZER_COMMAND: Final = (sys.executable, "-m", "qdrant_sink.edge.optimizer")
"""Command that starts the process, without the arguments of a run."""

_ERRORS: Final[dict[str, type[StoreError]]] = {kind.__name__: kind for kind in (StoreUnavailable, StoreRejected)}


@dataclass(frozen=True, slots=True)
class Optimizer:
    """Starts processes that optimise a collection.

    Attributes:
        lock_file: descriptor with the lock of the store's directory. The process inherits it and holds the lock while
            it writes.
        command: command of the process. Tests use other commands.
    """

    lock_file: int
    command: Sequence[str] = OPTIMIZER_COMMAND

    def start(self, directory: Path, vector: str) -> Optimization:
        """Start to optimise a collection that must not be open.

        The same thread must wait for the process, because on Linux the process ends with the thread that started it.

        Raises:
            StoreUnavailable: no process can be started.
        """
        collection = collection_in(directory)
        arguments = [str(directory.absolute()), vector, str(os.getpid())]
        try:
            process = subprocess.Popen(  # noqa: S603 - the program of this package, without a shell
                [*self.command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # a panic of the engine may quote a text
                # The process imports the same modules as the worker, and nothing from the working directory.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"},
                pass_fds=[self.lock_file],
                process_group=0,  # Ctrl-C must reach only the worker
                text=True,
            )
        except OSError as exc:
            reason = os.strerror(exc.errno or 0).lower()
            raise StoreUnavailable(
                f"Qdrant Edge cannot start the process that optimises collection {collection!r}: {reason}; "
                "allow the worker to start processes, or use a Qdrant server"
            ) from exc
        return Optimization(collection, process)


class Optimization:
    """A running process that optimises a collection.

    Args:
        collection: name of the collection.
        process: started process.
    """

    def __init__(self, collection: str, process: subprocess.Popen[str]) -> None:
        self._collection = collection
        self._process = process

    def wait(self) -> bool:
        """Wait for the process to end, and return whether it changed the collection. No points are lost in any case.

        Raises:
            StoreUnavailable: the process was killed or ended early, or an error of the operating system occurred.
            StoreRejected: the engine reported an error.
        """
        result: dict[str, Any] = {}
        with self._process as process:
            try:
                for line in process.stdout or ():
                    if line.endswith("\n"):  # otherwise the process was killed while it wrote the line
                        result = json.loads(line)
                        if "level" in result:
                            log.log(result["level"], "%s", result["message"])
                process.wait()  # must precede the end of its standard input
            except BaseException:
                process.kill()
                raise
        if "changed" in result and process.returncode == 0:
            return bool(result["changed"])
        cause = subprocess.CalledProcessError(process.returncode, OPTIMIZER_COMMAND)
        if "error" in result:
            raise _ERRORS[result["error"]](result["message"]) from cause
        raise StoreUnavailable(
            f"the optimisation of collection {self._collection!r} ended early "
            f"({_exit_description(process.returncode)}); no points are lost, run it again"
        ) from cause

    def stop(self) -> None:
        """Kill the process, so that `wait` raises. It can be called from any thread."""
        self._process.kill()


def _exit_description(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return f"signal {-status}" + (", possibly out of memory" if status == -signal.SIGKILL else "")
