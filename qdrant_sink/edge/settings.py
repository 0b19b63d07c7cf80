"""The settings under which Qdrant Edge runs a collection, in a file of its own in the collection's directory.

The engine reads them when a collection is opened, and writes them again then, with what it has added.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

CONFIG: Final = "edge_config.json"
"""File in a collection's directory in which the engine keeps its configuration."""

SEARCH_THREADS: Final = 2
"""Search threads per open collection. The engine's own choice is eight on two cores; as a rule a search visits two
segments, and the GIL lets one search run at a time: more threads were measured to be no faster."""

BEFORE: Final = "edge_config.before.json"
"""File with the configuration as it was before `merging`."""

MERGING: Final = {"indexing_threshold": 1, "default_segment_number": 1}
"""Settings that index whatever has one kilobyte, and aim at one segment."""


def read_config(directory: Path) -> dict[str, Any]:
    """The configuration of a collection."""
    config: dict[str, Any] = json.loads((directory / CONFIG).read_text())
    return config


@contextmanager
def merging(directory: Path) -> Iterator[None]:
    """Whoever opens the collection within this has `MERGING` in force."""
    before = read_config(directory)
    _write(directory, BEFORE, before)
    _write(directory, CONFIG, {**before, "optimizers": {**(before.get("optimizers") or {}), **MERGING}})
    try:
        yield
    finally:
        recover_config(directory)


def recover_config(directory: Path) -> None:
    """Before a collection is opened: end what `merging` began, in case a process ended within it."""
    before = directory / BEFORE
    if before.exists():
        before.replace(directory / CONFIG)


def limit_threads(directory: Path) -> None:
    """Before a collection is opened: give it `SEARCH_THREADS`, if it says nothing of its own."""
    config = read_config(directory)
    if not config.get("max_search_threads"):
        _write(directory, CONFIG, {**config, "max_search_threads": SEARCH_THREADS})


def _write(directory: Path, name: str, config: Mapping[str, Any]) -> None:
    beside = directory / f".writing-{name}"
    with beside.open("w") as file:
        json.dump(config, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(directory / name)
