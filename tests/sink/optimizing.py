"""Optimising a collection of Qdrant Edge in the process of the test, for tests that assert nothing about the process.

Each start of the process takes 0.2 s of CPU time, most of it for imports, and hundreds of tests load a collection.
`test_edge_optimization.py`, `test_edge_graph.py` and all tests of whole programs start it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qdrant_sink.edge.optimization import OPTIMIZER_COMMAND, Optimizer
from qdrant_sink.edge.optimizer import optimize


@dataclass(frozen=True)
class OptimizationHere:
    """An optimisation that runs in this process when its end is waited for."""

    directory: Path
    vector: str

    def wait(self) -> bool:
        """Optimise the collection, and return whether it changed."""
        return optimize(self.directory, self.vector)

    def stop(self) -> None:
        """Do nothing: it ends before any other call of the store."""


def optimize_here(patch: pytest.MonkeyPatch) -> None:
    """Optimise in this process until the patch is undone, except where a test names a command of its own."""
    start = Optimizer.start

    def start_here(self: Optimizer, directory: Path, vector: str) -> Any:
        if tuple(self.command) == OPTIMIZER_COMMAND:
            return OptimizationHere(directory, vector)
        return start(self, directory, vector)

    patch.setattr(Optimizer, "start", start_here)
