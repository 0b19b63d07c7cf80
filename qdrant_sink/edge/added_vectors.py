"""Add named vectors to an existing collection of Qdrant Edge.

The engine's call has no fields for a graph, the place of the rows and their quantization. They are written into the
configuration of the collection while that is closed, and before any row arrives.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from embedder.vectors import KINDS, Kind
from qdrant_sink.edge.schema import collection_description, edge_config
from qdrant_sink.edge.settings import read_config, write_vectors
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.schema_diff import verify


def create_vectors(
    shard: edge.EdgeShard, directory: Path, collection: str, schema: CollectionSchema, kinds: Sequence[Kind]
) -> list[str]:
    """Add the vectors of these kinds that an open collection lacks, and verify the others.

    Returns:
        The names of those without rows, whose settings `set_vectors` sets.
    """
    wanted = _only(schema, kinds)
    config = edge_config(wanted)
    existing = collection_description(directory).vectors
    for name, params in (config.vectors or {}).items():
        if name not in existing:
            shard.update(
                edge.UpdateOperation.create_dense_vector(
                    name, params.size, params.distance, params.multivector_config, params.datatype
                )
            )
    for name, weights in (config.sparse_vectors or {}).items():
        if name not in existing:
            shard.update(edge.UpdateOperation.create_sparse_vector(name, weights.modifier, weights.datatype))
    verify(collection, wanted, collection_description(directory))
    return [name for kind in kinds if not _has_rows(shard, name := schema.names.of(kind))]


def set_vectors(directory: Path, schema: CollectionSchema, names: Sequence[str]) -> None:
    """Give vectors of a closed collection the settings of the schema."""
    wanted = _configuration(schema)
    actual = read_config(directory)
    changed = {}
    for part in ("vectors", "sparse_vectors"):
        mine: Mapping[str, Any] = wanted.get(part) or {}
        changed[part] = {**(actual.get(part) or {}), **{name: mine[name] for name in names if name in mine}}
    if any(changed[part] != (actual.get(part) or {}) for part in changed):
        write_vectors(directory, changed)


def _only(schema: CollectionSchema, kinds: Sequence[Kind]) -> CollectionSchema:
    others: dict[str, Any] = {kind: None for kind in KINDS if kind not in kinds}
    return replace(schema, payload_indexes={}, tenant_key=None, explicit=frozenset(), **others)


def _configuration(schema: CollectionSchema) -> dict[str, Any]:
    """Return the configuration of a new collection of this schema, as the engine writes it."""
    with tempfile.TemporaryDirectory() as directory:
        edge.EdgeShard.create(directory, edge_config(schema)).close()
        return read_config(Path(directory))


def _has_rows(shard: edge.EdgeShard, name: str) -> bool:
    condition = edge.Filter(must=[edge.HasVectorCondition(name)])
    records, _ = shard.scroll(edge.ScrollRequest(limit=1, filter=condition, with_payload=False, with_vector=False))
    return bool(records)
