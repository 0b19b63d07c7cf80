"""The sizes of the largest payloads of a collection, which bound what a point can take to compare with a filter.

They are kept in a file, because a scan of all payloads would take seconds at every start. The file is written before a
larger payload is stored, and never lowers a size, so that after a kill a size is too large rather than too small.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import qdrant_edge as edge

from qdrant_sink.conformance import PAYLOAD_MAX_BYTES
from qdrant_sink.edge.settings import PayloadBounds, read_payload_bounds, write_payload_bounds

LARGE_BYTES: Final = 65_536
"""Size in bytes beyond which a payload is large."""

LARGE_MAX_POINTS: Final = 1000
"""Maximum number of points with large payloads that are listed. Further ones raise the bound of all others."""


class PayloadSize:
    """Upper bounds of the sizes of the payloads of one collection. The caller serialises calls of `record`.

    Args:
        directory: directory of the collection.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._cached: PayloadBounds | None = None

    def bound(self, point: edge.PointId) -> int:
        """Return the maximum size of the payload of a point in bytes."""
        bounds = self._bounds
        return bounds.large.get(point, bounds.max_bytes)

    def record(self, sizes: Mapping[edge.PointId, int]) -> None:
        """Note the sizes in bytes of payloads that will be stored, by the ids of their points."""
        bounds = self._bounds
        largest, large = bounds.max_bytes, dict(bounds.large)
        for point, size in sizes.items():
            if size <= large.get(point, largest):
                continue
            rounded = 1 << (size - 1).bit_length()  # a power of two, so that the file is rarely written
            if point in large or (size > LARGE_BYTES and len(large) < LARGE_MAX_POINTS):
                large[point] = rounded
            else:
                largest = rounded
        changed = PayloadBounds(largest, large)
        if changed != bounds:
            write_payload_bounds(self._directory, changed)
            self._cached = changed

    @property
    def _bounds(self) -> PayloadBounds:
        if self._cached is None:
            self._cached = read_payload_bounds(self._directory) or PayloadBounds(PAYLOAD_MAX_BYTES, {})
        return self._cached
