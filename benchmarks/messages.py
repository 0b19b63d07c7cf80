"""What it costs to build the request that stores points with ColBERT rows, in three ways."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

ROWS, SIZE, WEIGHTS = 256, 1024, 100


@dataclass(frozen=True, slots=True)
class Way:
    """One way to build a request.

    Attributes:
        name: of the way.
        build: seconds from points to the request as the client takes it, median.
        encode: seconds from there to the bytes that are sent, median.
        nbytes: of the request.
    """

    name: str
    build: float
    encode: float
    nbytes: int

    @property
    def ready(self) -> float:
        """Seconds from points to the bytes that are sent."""
        return self.build + self.encode


def measure(points: int, repeats: int) -> list[Way]:
    """The models of REST, gRPC from those models, and gRPC from array bytes, which is this sink's own."""
    from qdrant_client import grpc, models
    from qdrant_client.conversions.conversion import RestToGrpc
    from qdrant_client.http.api.points_api import jsonable_encoder

    from qdrant_sink.client_models import points_list
    from qdrant_sink.protobuf import upsert_request

    made = _points(points)

    def json_bytes(rows: Any) -> bytes:
        text: str = jsonable_encoder(models.PointsList(points=rows))
        return text.encode()

    def converted() -> Any:
        rows = [RestToGrpc.convert_point_struct(row) for row in points_list(made)]
        return grpc.UpsertPoints(collection_name="c", wait=True, points=rows)

    return [
        _way("REST, client models", lambda: points_list(made), json_bytes, repeats),
        _way("gRPC, from client models", converted, lambda message: message.SerializeToString(), repeats),
        _way(
            "gRPC, from array bytes (this sink)",
            lambda: upsert_request("c", made, insert_only=False),
            bytes,  # they are what is sent
            repeats,
        ),
    ]


def _way(name: str, build: Callable[[], Any], encode: Callable[[Any], bytes], repeats: int) -> Way:
    built, encoded, nbytes = [], [], 0
    for _ in range(repeats):
        start = time.perf_counter()
        request = build()
        middle = time.perf_counter()
        nbytes = len(encode(request))
        encoded.append(time.perf_counter() - middle)
        built.append(middle - start)
        del request
    return Way(name, statistics.median(built), statistics.median(encoded), nbytes)


def _points(count: int) -> Sequence[Any]:
    import numpy as np

    from embedder.vectors import Embedding, SparseVector
    from qdrant_sink.conformance import conform
    from qdrant_sink.points import Draft, Point
    from service.collection import CollectionBlock

    rng = np.random.default_rng(0)
    schema = CollectionBlock().schema_for(SIZE, SIZE)
    found = []
    for index in range(count):
        rows = rng.standard_normal((ROWS + 1, SIZE), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        indices = np.sort(rng.choice(250_002, WEIGHTS, replace=False)).astype(np.uint32)
        sparse = SparseVector(indices, rng.uniform(0.01, 0.4, WEIGHTS).astype(np.float32))
        embedding = Embedding(rows[0], sparse, rows[1:], ROWS + 1, truncated=False)
        point = conform(Draft(index, index, {"text": "a passage " * 100}, embedding), schema)
        if not isinstance(point, Point):
            raise TypeError(point.message)
        found.append(point)
    return found
