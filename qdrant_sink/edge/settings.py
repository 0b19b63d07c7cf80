"""Read and change the files beside the data of a collection: configuration of Qdrant Edge, metadata, payload size.

The engine reads the configuration when it opens a collection, and writes it back with additional fields. It does not
know the other files, which only this package reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import qdrant_edge as edge

from qdrant_sink.model_identity import ModelIdentity

CONFIG_FILE: Final = "edge_config.json"
"""Name of the engine's configuration file in the directory of a collection."""

SEARCH_THREADS: Final = 2
"""Number of search threads per open collection. The engine would start eight on two cores. A search usually visits two
segments, and because of the GIL only one search runs at a time; more threads were not faster in measurements."""

CONFIG_BACKUP_FILE: Final = "edge_config.before.json"
"""Name of the backup of the configuration during `merging`."""

METADATA_FILE: Final = "collection_metadata.json"
"""Name of the file with the metadata of a collection, in the form that a server keeps it."""

PAYLOAD_SIZE_FILE: Final = "payload_size.json"
"""Name of the file with the sizes of the largest payloads; see `edge.payload_size`."""

PAYLOAD_SIZE_BYTES: Final = 4096
"""Bound in bytes with which a new collection begins."""

MERGE_SETTINGS: Final = {"indexing_threshold": 1, "default_segment_number": 1}
"""Optimizer settings that index segments of one kilobyte or more, and merge all segments into one."""


@dataclass(frozen=True, slots=True)
class PayloadBounds:
    """Upper bounds of the sizes of payloads.

    Attributes:
        max_bytes: size in bytes of any payload that is not listed.
        large: sizes in bytes of listed payloads by the ids of their points.
    """

    max_bytes: int
    large: Mapping[edge.PointId, int]


def read_config(directory: Path) -> dict[str, Any]:
    """Read the configuration of a collection."""
    config: dict[str, Any] = json.loads((directory / CONFIG_FILE).read_text())
    return config


@contextmanager
def merging(directory: Path) -> Iterator[None]:
    """Apply the settings of `MERGE_SETTINGS` to a collection that is opened within the block."""
    config = read_config(directory)
    _write(directory, CONFIG_BACKUP_FILE, config)
    _write(directory, CONFIG_FILE, {**config, "optimizers": {**(config.get("optimizers") or {}), **MERGE_SETTINGS}})
    try:
        yield
    finally:
        recover_config(directory)


def recover_config(directory: Path) -> None:
    """Restore the configuration if a process ended within `merging`. Call it before a collection is opened."""
    backup = directory / CONFIG_BACKUP_FILE
    if backup.exists():
        backup.replace(directory / CONFIG_FILE)


def limit_threads(directory: Path) -> None:
    """Set `SEARCH_THREADS` unless the configuration has its own value. Call it before a collection is opened."""
    config = read_config(directory)
    if not config.get("max_search_threads"):
        _write(directory, CONFIG_FILE, {**config, "max_search_threads": SEARCH_THREADS})


def write_model(directory: Path, model: ModelIdentity) -> None:
    """Write the model of a new collection into its metadata."""
    _write(directory, METADATA_FILE, model.metadata)


def read_model(directory: Path) -> ModelIdentity | None:
    """Read the model of a collection from its metadata; None if it has no metadata or they cannot be read."""
    return ModelIdentity.from_metadata(read_metadata(directory))


def read_metadata(directory: Path) -> dict[str, Any]:
    """Read the metadata of a collection; empty if it has none or they cannot be read."""
    try:
        metadata = json.loads((directory / METADATA_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def update_metadata(directory: Path, changes: Mapping[str, Any]) -> None:
    """Set keys of the metadata, and remove those whose value is None. Not thread-safe."""
    metadata = {**read_metadata(directory), **changes}
    _write(directory, METADATA_FILE, {key: value for key, value in metadata.items() if value is not None})


def read_payload_bounds(directory: Path) -> PayloadBounds | None:
    """Read the bounds on the sizes of payloads; None if the file is missing or cannot be read."""
    try:
        bounds = json.loads((directory / PAYLOAD_SIZE_FILE).read_bytes())
        return PayloadBounds(int(bounds["max_bytes"]), {point: int(size) for point, size in bounds["large"]})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_payload_bounds(directory: Path, bounds: PayloadBounds) -> None:
    """Write the bounds on the sizes of payloads."""
    _write(directory, PAYLOAD_SIZE_FILE, {"max_bytes": bounds.max_bytes, "large": list(bounds.large.items())})


def write_vectors(directory: Path, vectors: Mapping[str, Any]) -> None:
    """Replace the parts of the configuration that describe vectors. The collection must be closed."""
    _write(directory, CONFIG_FILE, {**read_config(directory), **vectors})


def _write(directory: Path, name: str, config: Mapping[str, Any]) -> None:
    temporary = directory / f".writing-{name}"
    with temporary.open("w") as file:
        json.dump(config, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / name)
