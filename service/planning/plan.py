"""The plan of a collection: servers, GPU hours, network and costs, and what other choices would save."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from qdrant_sink import rows_max
from service.planning.collection_size import CollectionSize, colbert_rows, collection_size, vector_bytes
from service.planning.embedding_time import GPU, tokens_per_second
from service.planning.passages import DISTINCT_EXPONENT, DISTINCT_FACTOR, Passages
from service.planning.stored_vectors import (
    CREATED_QUANTIZED_TYPES,
    CREATED_STORAGE_TYPES,
    StoredDense,
    StoredVectors,
)

SHARDS_PER_NODE: Final = 2
"""Shards per node, by Qdrant's advice of two to four: nodes can be doubled without a new collection."""

CANDIDATES: Final = 100
"""Candidates of a search that are reranked by ColBERT, for the bytes that it reads."""

WEIGHT_SENT_BYTES: Final = 7
"""Bytes of a sparse weight on the wire: a float32 and about three bytes of its index."""

POINT_SENT_BYTES: Final = 100
"""Bytes of a point's id, names of vectors and keys on the wire."""

WAL_SHARD_BYTES: Final = 64 * 2**20
"""Bytes of a shard's write-ahead log: two segments of 32 MiB, the server's default."""

HEADROOM: Final = 1.25
"""Memory and disk of a node per byte of data: room for requests, the page cache and growth."""

LOAD_PEAK: Final = 4.5
"""Disk of a small collection at the peak of its load, per byte of data: the log, in float32, and the originals are
still there while segments are rewritten. Measured: 946 MB for 210 MB of ColBERT rows in float16."""

REWRITTEN_BYTES: Final = 10 * 10**9
"""Disk for the segments of a large collection that are rewritten at a time: two full ones of 4.1 GB, and their log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What is there to work with, and what it costs.

    Attributes:
        gpus: number of GPUs that embed at the same time.
        tokens_per_s: tokens/s of one GPU; None for that of an NVIDIA H200.
        node_ram_bytes: memory of one node of the server.
        node_disk_bytes: disk of one node of the server.
        gpu_hour_price: price of one GPU hour; None for an unknown one.
        ram_gb_month_price: price of 10^9 bytes of RAM for a month; None for an unknown one.
        disk_gb_month_price: price of 10^9 bytes of disk for a month; None for an unknown one.
    """

    gpus: int = 1
    tokens_per_s: float | None = None
    node_ram_bytes: int = 64 * 10**9
    node_disk_bytes: int = 2 * 10**12
    gpu_hour_price: float | None = None
    ram_gb_month_price: float | None = None
    disk_gb_month_price: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another choice, and the size of one copy of the collection with it.

    Attributes:
        name: what is chosen.
        size: size of one copy.
    """

    name: str
    size: CollectionSize


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """The servers of a collection, all copies included.

    Attributes:
        ram_bytes: RAM of all nodes, with room.
        disk_bytes: disk of all nodes, with room and write-ahead logs.
        nodes: number of nodes.
        shards: number of shards.
        replication: copies of each shard.
    """

    ram_bytes: int
    disk_bytes: int
    nodes: int
    shards: int
    replication: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """The time and the traffic of embedding all passages.

    Attributes:
        tokens: tokens of all passages.
        tokens_per_s: tokens/s of one GPU.
        gpu_hours: hours of one GPU.
        hours: hours by the clock, with all GPUs.
        point_sent_bytes: bytes of a point from the service to the server.
        sent_bytes: bytes of all points from the service to the server.
        sent_bytes_per_s: bytes/s that keep all GPUs at work.
    """

    tokens: int
    tokens_per_s: float
    gpu_hours: float
    hours: float
    point_sent_bytes: int
    sent_bytes: int
    sent_bytes_per_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Costs in the currency of the prices. None stands for a price that is not given.

    Attributes:
        embedding: price of all GPU hours.
        ram_month: price of the RAM of all nodes for a month.
        disk_month: price of their disks for a month.
    """

    embedding: float | None
    ram_month: float | None
    disk_month: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The whole plan.

    Attributes:
        stored: how vectors are stored.
        passages: the passages.
        size: size of one copy of the collection.
        servers: the servers.
        embedding: time and traffic of embedding.
        rerank_read_bytes: bytes that a search reads to rerank 100 candidates; 0 without ColBERT.
        costs: costs.
        alternatives: other choices.
        assumptions: where the figures are from, as sentences.
    """

    stored: StoredVectors
    passages: Passages
    size: CollectionSize
    servers: Servers
    embedding: Embedding
    rerank_read_bytes: int
    costs: Costs
    alternatives: tuple[Alternative, ...]
    assumptions: tuple[str, ...]


def plan(stored: StoredVectors, passages: Passages, resources: Resources) -> Plan:
    """Plan a collection.

    Args:
        stored: how vectors are stored.
        passages: what is stored.
        resources: GPUs, nodes and prices.
    """
    size = collection_size(stored, passages)
    servers, embedding = _servers(stored, size, resources), _embedding(stored, passages, resources)
    colbert = stored.colbert
    row = 0.0 if colbert is None else vector_bytes(colbert.datatype, colbert.size) * colbert_rows(colbert, passages)
    return Plan(
        stored=stored,
        passages=passages,
        size=size,
        servers=servers,
        embedding=embedding,
        rerank_read_bytes=round(CANDIDATES * row),
        costs=Costs(
            embedding=_cost(embedding.gpu_hours, resources.gpu_hour_price),
            ram_month=_cost(servers.ram_bytes / 10**9, resources.ram_gb_month_price),
            disk_month=_cost(servers.disk_bytes / 10**9, resources.disk_gb_month_price),
        ),
        alternatives=tuple(
            Alternative(name=name, size=collection_size(choice, passages)) for name, choice in _choices(stored)
        ),
        assumptions=tuple(_assumptions(stored, passages, resources)),
    )


def point_sent_bytes(stored: StoredVectors, passages: Passages) -> int:
    """Mean bytes of a point from the service to a server over gRPC, where every component is a float32."""
    dense = 0 if stored.dense is None else 4 * stored.dense.size
    sparse = 0.0 if stored.sparse is None else WEIGHT_SENT_BYTES * passages.distinct
    colbert = 0.0 if stored.colbert is None else 4 * stored.colbert.size * colbert_rows(stored.colbert, passages)
    return round(dense + sparse + colbert + passages.text_bytes + passages.payload_bytes + POINT_SENT_BYTES)


def _servers(stored: StoredVectors, size: CollectionSize, resources: Resources) -> Servers:
    ram = round(HEADROOM * stored.replication * size.ram_bytes)
    peak = max(HEADROOM * size.disk_bytes, min(LOAD_PEAK * size.disk_bytes, size.disk_bytes + REWRITTEN_BYTES))
    disk = round(stored.replication * peak)
    nodes = max(
        stored.replication, math.ceil(ram / resources.node_ram_bytes), math.ceil(disk / resources.node_disk_bytes)
    )
    shards = stored.shards or (1 if nodes == 1 else SHARDS_PER_NODE * nodes)
    disk += WAL_SHARD_BYTES * shards * stored.replication
    return Servers(ram_bytes=ram, disk_bytes=disk, nodes=nodes, shards=shards, replication=stored.replication)


def _embedding(stored: StoredVectors, passages: Passages, resources: Resources) -> Embedding:
    rate = resources.tokens_per_s or tokens_per_second(passages.tokens, stored.kinds)
    tokens = passages.count * passages.tokens
    gpu_hours = tokens / rate / 3600
    sent = point_sent_bytes(stored, passages)
    return Embedding(
        tokens=round(tokens),
        tokens_per_s=rate,
        gpu_hours=gpu_hours,
        hours=gpu_hours / resources.gpus,
        point_sent_bytes=sent,
        sent_bytes=sent * passages.count,
        sent_bytes_per_s=round(sent * rate * resources.gpus / passages.tokens),
    )


def _cost(amount: float, price: float | None) -> float | None:
    return None if price is None else amount * price


def _choices(stored: StoredVectors) -> Iterator[tuple[str, StoredVectors]]:
    colbert, dense = stored.colbert, stored.dense
    if colbert is not None:
        others = tuple(kind for kind in stored.kinds if kind != "colbert")
        if others:
            yield "without ColBERT", stored.only(others)
        for pooling in (2, 4):
            if colbert.pooling < pooling:
                name = f"ColBERT rows averaged by {pooling}"
                yield name, replace(stored, colbert=replace(colbert, pooling=pooling))
        if colbert.datatype != "turbo4":
            name = "ColBERT rows in turbo4 (Qdrant 1.19)"
            yield name, replace(stored, colbert=replace(colbert, datatype="turbo4"))
    if dense is not None:
        yield from _dense_choices(stored, dense)


def _dense_choices(stored: StoredVectors, dense: StoredDense) -> Iterator[tuple[str, StoredVectors]]:
    if dense.datatype == "float32":
        yield "dense vectors in float16", replace(stored, dense=replace(dense, datatype="float16"))
    for quantization in ("int8", "turbo4", "binary"):
        if (dense.quantization, dense.on_disk) != (quantization, True):
            name = f"dense vectors on disk, their copy in {quantization} in RAM"
            yield name, replace(stored, dense=replace(dense, quantization=quantization, on_disk=True))


def _assumptions(stored: StoredVectors, passages: Passages, resources: Resources) -> Iterator[str]:
    yield (
        "Sizes are of formulas that docs/planning.md compares with a Qdrant server 1.18.3; they are of points that are "
        "indexed, and of one copy."
    )
    if stored.sparse is not None:
        yield (
            f"A passage has {passages.distinct:.0f} sparse weights: counted in the files if there are any, otherwise "
            f"{DISTINCT_FACTOR} x tokens^{DISTINCT_EXPONENT}, as distinct tokens of the bundled corpus."
        )
    if stored.colbert is not None:
        yield from _colbert_assumptions(stored, passages)
    yield from _types_not_created(stored)
    if resources.tokens_per_s is None:
        yield (
            f"Tokens/s are those of one {GPU} with float16 (docs/benchmarks-gpu.md), which is the model alone: a "
            "server that stores slower makes it longer."
        )
    yield (
        f"Servers have {HEADROOM:g} times the RAM and disk of the data, or {LOAD_PEAK:g} times the disk of a small "
        f"collection while segments are rewritten, and {SHARDS_PER_NODE} shards per node, the lower end of Qdrant's "
        "advice."
    )


def _colbert_assumptions(stored: StoredVectors, passages: Passages) -> Iterator[str]:
    colbert = stored.colbert
    if colbert is None:
        return
    yield "ColBERT has a row for each token but the first; rows that are mapped from disk need fast disks, not RAM."
    if colbert.pooling > 1:
        yield (
            "The service averages ColBERT rows only where a point would have more than its limit; a plan with fewer "
            "rows needs vectors that are averaged before they are stored."
        )
    if (passages.tokens - 1) / colbert.pooling > rows_max(colbert.size):
        yield (
            f"A point has at most {rows_max(colbert.size)} rows: longer passages need chunks (--chunk-tokens) or "
            "colbertPooling=mean, which the plan assumes."
        )


def _types_not_created(stored: StoredVectors) -> Iterator[str]:
    vectors = {"dense": stored.dense, "colbert": stored.colbert}
    for kind, vector in vectors.items():
        if vector is None:
            continue
        if vector.datatype == "uint8":
            yield f"uint8 is not usable for {kind}: components of BGE-M3 lie between -1 and 1, and would become 0."
        elif vector.datatype not in CREATED_STORAGE_TYPES:
            yield f"The service does not create {kind} vectors in {vector.datatype}; it needs Qdrant 1.19."
        if vector.quantization not in CREATED_QUANTIZED_TYPES:
            yield f"The service does not create the {kind} quantization {vector.quantization}; Qdrant's own API does."
