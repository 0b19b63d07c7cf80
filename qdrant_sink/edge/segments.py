"""Inspect the segments of a collection of Qdrant Edge on disk, and whether they have an HNSW graph.

The engine builds a graph for a segment with at least `GRAPH_KB` kilobytes of vectors, so that points in several smaller
segments never get one. Small segments arise from an interrupted optimisation: it has added an empty segment, and the
replayed log and all later writes are distributed among the writable segments. With `edge.settings.merging`, the engine
merges them.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qdrant_sink.edge.settings import read_config

GRAPH_KB: Final = 10_000
"""The engine's default threshold in kilobytes of vectors, which `optimizers.indexing_threshold` in the configuration
overrides."""

_COMPONENT_BYTES: Final = {"float16": 2}
"""Bytes per component by datatype; other datatypes have 4."""
_SEGMENT_NAME: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VERSION_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of a collection.

    Attributes:
        points: number of points on disk, including deleted ones.
        indexed: whether the segment has an HNSW graph of the vector.
    """

    points: int
    indexed: bool


def segments_of(directory: Path, vector: str) -> list[Segment]:
    """List the segments of a flushed collection, with the state of one vector."""
    result = []
    for path in sorted((directory / "segments").iterdir()):
        state = path / "segment.json"
        if not (_SEGMENT_NAME.fullmatch(path.name) and state.exists() and (path / "version.info").exists()):
            continue  # incomplete or partly removed, so that the engine does not open it
        params = json.loads(state.read_text())["config"]["vector_data"].get(vector, {})
        versions = sum(file.stat().st_size for file in path.glob("*id_tracker.versions"))
        result.append(Segment(versions // _VERSION_BYTES, params.get("index", {}).get("type") == "hnsw"))
    return result


def count_unindexed(directory: Path, vector: str, point_count: int) -> int:
    """Count the points that should be in a graph and are not; 0 if they are too few, or if the vector has no graph.

    Args:
        directory: directory of a flushed collection.
        vector: name of the vector.
        point_count: number of points that have the vector.
    """
    config = read_config(directory)
    params = (config.get("vectors") or {}).get(vector, {})
    graph = {**(config.get("hnsw_config") or {}), **(params.get("hnsw_config") or {})}
    if not params or graph.get("m") == 0:
        return 0
    unindexed = sum(segment.points for segment in segments_of(directory, vector) if not segment.indexed)
    points = min(unindexed, point_count)
    size = params["size"] * _COMPONENT_BYTES.get(str(params.get("datatype")).lower(), 4)
    threshold = (config.get("optimizers") or {}).get("indexing_threshold") or GRAPH_KB
    return points if points * size >= threshold * 1024 else 0


def clear_unfinished(directory: Path) -> None:
    """Remove the temporary segments of an interrupted optimisation. Call it after a collection was opened."""
    unfinished = directory / "temp_segments"
    if unfinished.is_dir():
        for segment in unfinished.iterdir():
            shutil.rmtree(segment, ignore_errors=True)
