"""One optimisation of a collection, in a process of its own, since the engine holds the GIL throughout.

What it costs to have it in the worker, and why nothing else is in another process: docs/design.md.
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

from qdrant_sink.errors import StoreError, StoreRejected, StoreUnavailable

log = logging.getLogger(__name__)

OPTIMIZER: Final = (sys.executable, "-m", "qdrant_sink.edge.optimizer")
"""Command of the process, before the arguments of one run."""

_ERRORS: Final[dict[str, type[StoreError]]] = {kind.__name__: kind for kind in (StoreUnavailable, StoreRejected)}


@dataclass(frozen=True, slots=True)
class Optimizer:
    """How the process of an optimisation is started.

    Attributes:
        command: the program; a test has others.
        lock_file: descriptor with the lock of the store's directory, which the process holds too while it writes.
    """

    lock_file: int
    command: Sequence[str] = OPTIMIZER

    def start(self, directory: Path, vector: str) -> Optimization:
        """Start optimising a collection that nobody has open.

        The same thread must wait: on Linux the process ends with the thread that started it.

        Raises:
            StoreUnavailable: no process can be started.
        """
        arguments = [str(directory.absolute()), vector, str(os.getpid())]
        try:
            process = subprocess.Popen(  # noqa: S603 - our own program, no shell
                [*self.command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # a panic of the engine may quote a text
                # Modules come from where the worker's come from, and from no other working directory.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"},
                pass_fds=[self.lock_file],
                process_group=0,  # so that Ctrl-C reaches the worker alone, which decides
                text=True,
            )
        except OSError as exc:
            why = os.strerror(exc.errno or 0).lower()
            raise StoreUnavailable(
                f"Qdrant Edge cannot start the process that optimises collection {directory.name!r}: {why}; "
                "let the worker start processes, or use a Qdrant server"
            ) from exc
        return Optimization(directory.name, process)


class Optimization:
    """A process that optimises a collection.

    Args:
        collection: by name.
        process: as started.
    """

    def __init__(self, collection: str, process: subprocess.Popen[str]) -> None:
        self._collection = collection
        self._process = process

    def wait(self) -> bool:
        """Wait for the end; true if anything was done. Whatever the end, no point is lost.

        Raises:
            StoreUnavailable: the process was killed or broke off, or the system refused it something.
            StoreRejected: the engine refused.
        """
        outcome: dict[str, Any] = {}
        with self._process as process:
            try:
                for line in process.stdout or ():
                    if line.endswith("\n"):  # else a kill has cut it off
                        outcome = json.loads(line)
                        if "level" in outcome:
                            log.log(outcome["level"], "%s", outcome["message"])
                process.wait()  # before its standard input ends
            except BaseException:
                process.kill()
                raise
        if "changed" in outcome and process.returncode == 0:
            return bool(outcome["changed"])
        cause = subprocess.CalledProcessError(process.returncode, OPTIMIZER)
        if "error" in outcome:
            raise _ERRORS[outcome["error"]](outcome["message"]) from cause
        raise StoreUnavailable(
            f"the optimisation of collection {self._collection!r} broke off ({_ending(process.returncode)}): "
            "no point is lost; run it again"
        ) from cause

    def stop(self) -> None:
        """End the process now; `wait` then raises. Usable from any thread."""
        self._process.kill()


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return f"signal {-status}" + (", as when memory runs out" if status == -signal.SIGKILL else "")
