"""The cost of building the request that stores points with ColBERT rows, in three ways."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdrant_sink import Point

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

    from qdrant_sink.server.models import points_list
    from qdrant_sink.server.protobuf import upsert_request

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


def _points(count: int) -> Sequence[Point]:
    import numpy as np

    from embedder import SparseVector
    from qdrant_sink import Draft, Refusal, Vectors, conform
    from service.collection_config import CollectionConfig

    rng = np.random.default_rng(0)
    schema = CollectionConfig().schema_for(SIZE, SIZE)
    points = []
    for index in range(count):
        rows = rng.standard_normal((ROWS + 1, SIZE), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        indices = np.sort(rng.choice(250_002, WEIGHTS, replace=False)).astype(np.uint32)
        sparse = SparseVector(indices, rng.uniform(0.01, 0.4, WEIGHTS).astype(np.float32))
        draft = Draft(index, index, {"text": "a passage " * 100}, Vectors(rows[0], sparse, rows[1:]))
        point = conform(draft, schema)
        if isinstance(point, Refusal):
            raise TypeError(point.message)
        points.append(point)
    return points
