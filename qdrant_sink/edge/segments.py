"""The segments of a collection of Qdrant Edge, as it keeps them on the disk, and the HNSW graph that they have or lack.

The engine gives a graph to a segment of `GRAPH_KB` kilobytes of vectors or more, and never to two halves of one. There
are halves after an optimisation that did not end: it has added an empty segment, and what the log has to repeat, and
whatever is written later, is dealt among all that take writes. `edge.settings.merging` has the engine join them.
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
"""The engine's default threshold in kilobytes of vectors; `optimizers.indexing_threshold` of a configuration overrides
it."""

_BYTES: Final = {"float16": 2}
"""Bytes per component; 4 for any other type."""
_SEGMENT: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VERSION_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a collection.

    Attributes:
        points: that the disk knows of, deleted ones included.
        indexed: whether it was built with an HNSW index of the vector, rather than to be compared point by point.
    """

    points: int
    indexed: bool


def segments_of(directory: Path, vector: str) -> list[Segment]:
    """The segments of a collection after a flush, with regard to one vector."""
    segments = []
    for segment in sorted((directory / "segments").iterdir()):
        state = segment / "segment.json"
        if not (_SEGMENT.fullmatch(segment.name) and state.exists() and (segment / "version.info").exists()):
            continue  # one that is being removed, or that was never finished: the engine opens none of them
        params = json.loads(state.read_text())["config"]["vector_data"].get(vector, {})
        versions = sum(file.stat().st_size for file in segment.glob("*id_tracker.versions"))
        segments.append(Segment(versions // _VERSION_BYTES, params.get("index", {}).get("type") == "hnsw"))
    return segments


def without_graph(directory: Path, vector: str, carriers: int) -> int:
    """How many points wait for a graph; 0 if they are too few for one, or if the vector is searched without.

    Args:
        directory: of the collection, just flushed.
        vector: its name.
        carriers: how many points have it.
    """
    config = read_config(directory)
    params = (config.get("vectors") or {}).get(vector, {})
    graph = {**(config.get("hnsw_config") or {}), **(params.get("hnsw_config") or {})}
    if not params or graph.get("m") == 0:
        return 0
    outside = sum(segment.points for segment in segments_of(directory, vector) if not segment.indexed)
    points = min(outside, carriers)
    size = params["size"] * _BYTES.get(str(params.get("datatype")).lower(), 4)
    threshold = (config.get("optimizers") or {}).get("indexing_threshold") or GRAPH_KB
    return points if points * size >= threshold * 1024 else 0


def clear_unfinished(directory: Path) -> None:
    """After a collection was opened: remove what an optimisation that did not end had built so far."""
    unfinished = directory / "temp_segments"
    if unfinished.is_dir():
        for built in unfinished.iterdir():
            shutil.rmtree(built, ignore_errors=True)
