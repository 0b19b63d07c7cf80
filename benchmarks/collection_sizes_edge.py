"""Disk of ColBERT rows in Qdrant Edge by storage type, among them turbo4, which a server has from 1.19 on."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import qdrant_edge as edge

from benchmarks.collection_sizes import allocated
from service.planning.stored_vectors import SIZE

POINTS: Final = 400
ROWS: Final = 256
DATATYPES: Final = ("Float32", "Float16", "Turbo4")


def measure(datatype: str, folder: Path) -> dict[str, Any]:
    """Store points with random rows, optimize, and measure the files.

    Args:
        datatype: name of a storage type of Edge.
        folder: an empty folder.
    """
    params = edge.EdgeVectorParams(
        size=SIZE,
        distance=edge.Distance.Cosine,
        multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
        datatype=getattr(edge.VectorStorageDatatype, datatype),
        memory=edge.Memory.Cold,
        hnsw_config=edge.HnswIndexConfig(0, 100, 10_000),
    )
    shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors={"v": params}, sparse_vectors={}))
    for points in _points():
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.flush()
    shard.optimize()
    shard.close()
    parts = {part: size for part, size in sorted(allocated(folder).items()) if size >= 4096 * 4}
    name = f"edge-colbert-{datatype.lower()}"
    return {"case": name, "points": POINTS, "disk_bytes": parts}


def _points() -> Iterator[list[Any]]:
    generator = np.random.default_rng(0)
    for start in range(0, POINTS, 16):
        yield [
            edge.Point(start + offset, {"v": generator.standard_normal((ROWS, SIZE), np.float32).tolist()}, {})
            for offset in range(16)
        ]


def main() -> None:
    """Measure every storage type, and write one line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/collection-sizes.jsonl"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for datatype in DATATYPES:
        with tempfile.TemporaryDirectory(dir=arguments.out.parent) as folder:
            line = json.dumps(measure(datatype, Path(folder)))
        print(line, flush=True)
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
