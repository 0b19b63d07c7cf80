"""The embedded default: Qdrant Edge, the engine of the server in this process, behind the `Store` seam.

One directory per collection. Every call of the engine holds the GIL, so calls of one collection are
serialised and nothing is lost by it.

Points are searched exactly until `optimize` builds the HNSW graph. That is not done on its own, because it
holds the GIL for its whole run, during which the worker answers nothing. Measured on two busy cores with
20 000 points of 1024 components: the exact search takes 12 ms (hybrid 24 ms), the run 98 s, the search after
it 6 ms (hybrid 2 ms). Call it after a bulk load, before serving.

A point that makes the engine panic stays in its write-ahead log, and the collection takes and opens nothing
any more. So only what `conformance` has proven may come here.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import qdrant_edge as edge

from embedder.errors import (
    ConfigurationError,
    InvalidRequest,
    NotFound,
    StoreRejected,
    StoreUnavailable,
    WorkerError,
)
from embedder.vectors import SparseVector
from qdrant_sink.edge_filter import edge_filter
from qdrant_sink.filters import matches_all
from qdrant_sink.points import Point, PointId
from qdrant_sink.reasons import reason
from qdrant_sink.schema import CollectionSchema, FoundSchema, FoundVector, verify
from qdrant_sink.search import Fuse, Hit, Nearest, Plan, Search, Vectors, page, plan
from qdrant_sink.store import Filter, check_collection

FULL_SCAN_KB: Final = 10_000
"""Below this many kilobytes of candidates a filtered search compares all of them (Qdrant's default)."""

_CONFIG: Final = "edge_config.json"
_DATATYPES: Final = {
    "float32": edge.VectorStorageDatatype.Float32,
    "float16": edge.VectorStorageDatatype.Float16,
}
_DISTANCES: Final = {
    "cosine": edge.Distance.Cosine,
    "dot": edge.Distance.Dot,
    "euclid": edge.Distance.Euclid,
    "manhattan": edge.Distance.Manhattan,
}


@dataclass(slots=True)
class _Collection:
    shard: edge.EdgeShard
    found: FoundSchema
    lock: threading.Lock = field(default_factory=threading.Lock)


class EdgeStore:
    """Collections under one directory of this machine. Thread-safe; one process owns the directory.

    Args:
        path: of the directory; made if it is not there.

    Raises:
        ConfigurationError: the directory cannot be written, or another process owns it.
    """

    def __init__(self, path: str | Path) -> None:
        self._root = Path(path)
        self._guard = threading.Lock()
        self._open: dict[str, _Collection] = {}
        self._lock_file = _own(self._root)
        self._closed = False
        for leftover in self._root.glob(".creating-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @property
    def label(self) -> str:
        """What a person is told about the store."""
        return "Qdrant Edge (embedded)"

    def ensure(self, collection: str, schema: CollectionSchema) -> None:
        """Create the collection, or verify what is on disk; raises SchemaMismatch."""
        check_collection(collection)
        with self._guard:
            self._check_open()
            if not (self._root / collection / _CONFIG).exists():
                self._open.pop(collection, None)  # its directory was removed from under it
                self._create(collection, schema)
            found = self._load(collection).found
        verify(collection, schema, found)

    def verify(self, collection: str, schema: CollectionSchema) -> bool:
        """Whether the collection is there; raises SchemaMismatch."""
        check_collection(collection)
        with self._guard:
            self._check_open()
            if not (self._root / collection / _CONFIG).exists():
                return False
            found = self._load(collection).found
        verify(collection, schema, found)
        return True

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Store all points and flush them to disk; raises NotFound, StoreRejected, StoreUnavailable."""
        mode = edge.UpdateMode.InsertOnly if insert_only else edge.UpdateMode.Upsert
        with self._collection(collection) as shard, _mapped("points"):
            if not points:
                return
            rows = [edge.Point(point.id, _vectors(point), dict(point.payload)) for point in points]
            shard.update(edge.UpdateOperation.upsert_points(rows, update_mode=mode))
            shard.flush()

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """Which of these ids are stored."""
        with self._collection(collection) as shard, _mapped("ids"):
            return {_id(r.id) for r in shard.retrieve(list(ids), with_payload=False, with_vector=False)}

    def query(self, collection: str, searches: Sequence[Search]) -> list[list[Hit]]:
        """Answer all searches in one batch: one list of hits per search, best first."""
        plans = [plan(search) for search in searches]
        with self._collection(collection) as shard, _mapped("search"):
            requests = [_request(p) for p in plans if p is not None]
            answers = iter(shard.query_batch(edge.QueryBatchRequest(requests)) if requests else [])
            return [[] if p is None else page(p, [_hit(scored) for scored in next(answers)]) for p in plans]

    def delete(self, collection: str, *, ids: Sequence[PointId] = (), where: Filter | None = None) -> int:
        """Delete by ids or by a filter with at least one condition; returns how many points were there."""
        if bool(ids) == (where is not None):
            raise InvalidRequest("delete: exactly one of ids and filter")
        condition = edge_filter(where)
        if where is not None and matches_all(where):
            raise InvalidRequest("filter: must have at least one condition to delete by, got none")
        with self._collection(collection) as shard, _mapped("deletion"):
            if condition is not None:
                there = shard.count(edge.CountRequest(exact=True, filter=condition))
                shard.update(edge.UpdateOperation.delete_points_by_filter(condition))
            else:
                there = len(shard.retrieve(list(set(ids)), with_payload=False, with_vector=False))
                shard.update(edge.UpdateOperation.delete_points(list(ids)))
            shard.flush()
        return there

    def count(self, collection: str, where: Filter | None = None) -> int:
        """The exact number of points that match."""
        condition = edge_filter(where)
        with self._collection(collection) as shard, _mapped("count"):
            return shard.count(edge.CountRequest(exact=True, filter=condition))

    def optimize(self, collection: str) -> bool:
        """Build the HNSW graph and merge segments; holds the GIL throughout. True if anything was done."""
        with self._collection(collection) as shard, _mapped("optimisation"):
            changed = shard.optimize()
            shard.flush()
            return changed

    def close(self) -> None:
        """Flush and release the directory; calling it twice is harmless."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            failed: WorkerError | None = None
            try:
                for opened in self._open.values():
                    try:
                        with opened.lock, _mapped("flush"):
                            opened.shard.flush()
                            opened.shard.close()
                    except WorkerError as error:  # the other collections are closed all the same
                        failed = error
                if failed is not None:
                    raise failed
            finally:
                self._open.clear()
                os.close(self._lock_file)

    @contextmanager
    def _collection(self, name: str) -> Iterator[edge.EdgeShard]:
        check_collection(name)
        with self._guard:
            self._check_open()
            if not (self._root / name / _CONFIG).exists():
                raise NotFound(f"collection {name!r} does not exist")
            opened = self._load(name)
        with opened.lock:
            yield opened.shard

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _load(self, name: str) -> _Collection:
        opened = self._open.get(name)
        if opened is None:
            directory = self._root / name
            with _mapped(f"opening of collection {name!r}"):
                opened = _Collection(edge.EdgeShard.load(str(directory)), _found(directory))
            self._open[name] = opened
        return opened

    def _create(self, name: str, schema: CollectionSchema) -> None:
        """Create beside and rename, so that a crash leaves no half-made collection."""
        beside = self._root / f".creating-{uuid.uuid4().hex}"
        with _mapped(f"creation of collection {name!r}"):
            shard = edge.EdgeShard.create(str(beside), _config(schema))
            shard.flush()
            shard.close()
            beside.rename(self._root / name)


@contextmanager
def _mapped(what: str) -> Iterator[None]:
    """Turn whatever the engine raises, its panics too, into the errors of the seam."""
    try:
        yield
    except (WorkerError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as exc:  # PanicException derives from BaseException
        why = reason(str(exc))
        if "space" in why:
            raise StoreUnavailable(f"Qdrant Edge cannot write: {why}") from exc
        raise StoreRejected(f"Qdrant Edge refused the {what}" + (f": {why}" if why else "")) from exc


def _own(root: Path) -> int:
    """Make the directory and take its lock for this process; the kernel drops it when the process ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise ConfigurationError(f"QDRANT_PATH: the directory cannot be written ({exc.strerror})") from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(handle)
        raise ConfigurationError(
            "QDRANT_PATH: another process owns the directory; stop it, choose another directory, "
            "or share a Qdrant server through QDRANT_URL"
        ) from exc
    except OSError:
        pass  # a file system without locks; the engine's own lock still guards each collection
    return handle


def _config(schema: CollectionSchema) -> edge.EdgeConfig:
    dense, sparse, colbert = schema.dense, schema.sparse, schema.colbert
    return edge.EdgeConfig(
        vectors={
            "dense": edge.EdgeVectorParams(
                size=dense.size,
                distance=_DISTANCES[dense.distance],
                hnsw_config=edge.HnswIndexConfig(dense.m, dense.ef_construct, FULL_SCAN_KB),
            ),
            "colbert": edge.EdgeVectorParams(
                size=colbert.size,
                distance=_DISTANCES[colbert.distance],
                multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
                datatype=_DATATYPES[colbert.datatype],
                memory=edge.Memory.Cold if colbert.on_disk else edge.Memory.Cached,
                hnsw_config=edge.HnswIndexConfig(colbert.m, dense.ef_construct, FULL_SCAN_KB),
            ),
        },
        sparse_vectors={
            "sparse": edge.EdgeSparseVectorParams(
                datatype=_DATATYPES[sparse.datatype],
                modifier=edge.Modifier.Idf if sparse.modifier == "idf" else None,
            )
        },
    )


def _found(directory: Path) -> FoundSchema:
    """The schema that the engine has written beside the data."""
    config: dict[str, Any] = json.loads((directory / _CONFIG).read_text())
    found: dict[str, FoundVector] = {}
    for name, params in (config.get("vectors") or {}).items():
        multi = params.get("multivector_config")
        found[name] = FoundVector(
            kind="multivector" if multi else "dense",
            size=params["size"],
            distance=params["distance"].lower(),
            comparator=multi["comparator"].lower() if multi else None,
        )
    for name, params in (config.get("sparse_vectors") or {}).items():
        modifier = (params.get("modifier") or "none").lower()
        found[name] = FoundVector(kind="sparse", modifier=None if modifier == "none" else modifier)
    return found


def _vectors(point: Point) -> dict[str, Any]:
    vectors: dict[str, Any] = {}
    if point.dense is not None:
        vectors["dense"] = point.dense.tolist()
    if point.sparse is not None:
        vectors["sparse"] = _sparse(point.sparse)
    if point.colbert is not None:
        vectors["colbert"] = point.colbert.tolist()
    return vectors


def _sparse(vector: SparseVector) -> edge.SparseVector:
    return edge.SparseVector(vector.indices.tolist(), vector.values.tolist())


def _request(planned: Plan) -> edge.QueryRequest:
    search = planned.search
    condition = edge_filter(search.where)
    params = edge.SearchParams(hnsw_ef=search.hnsw_ef, exact=search.exact)
    last = not planned.branches
    return edge.QueryRequest(
        limit=planned.limit,
        offset=planned.offset,
        query=_fuse(planned.query) if isinstance(planned.query, Fuse) else _nearest(planned.query),
        prefetches=[
            edge.Prefetch(limit=b.limit, query=_nearest(b.query), params=params, filter=condition)
            for b in planned.branches
        ],
        with_vector=list(search.with_vectors) or False,
        with_payload=search.with_payload,
        filter=condition if last else None,
        params=params if last else None,
        score_threshold=search.score_threshold,
    )


def _nearest(query: Nearest) -> edge.Query:
    vector = _sparse(query.vector) if isinstance(query.vector, SparseVector) else query.vector.tolist()
    return edge.Query.Nearest(vector, using=query.kind)


def _fuse(query: Fuse) -> Any:
    if query.method == "dbsf":
        return edge.Fusion.Dbsf()
    return edge.Fusion.Rrf(k=query.k, weights=None if query.weights is None else list(query.weights))


def _hit(scored: edge.ScoredPoint) -> Hit:
    found = scored.vector
    vectors = None
    if isinstance(found, dict) and found:
        sparse: Any = found.get("sparse")
        dense, colbert = found.get("dense"), found.get("colbert")
        vectors = Vectors(
            dense=None if dense is None else np.asarray(dense, dtype=np.float32),
            sparse=None
            if sparse is None
            else SparseVector(np.asarray(sparse.indices, np.uint32), np.asarray(sparse.values, np.float32)),
            colbert=None if colbert is None else np.asarray(colbert, dtype=np.float32),
        )
    return Hit(_id(scored.id), scored.score, scored.payload, vectors)


def _id(value: edge.PointId) -> PointId:
    return uuid.UUID(value) if isinstance(value, str) else value
