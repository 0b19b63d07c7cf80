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
from qdrant_sink.edge.settings import PAYLOAD_SIZE_BYTES, PayloadBounds, read_payload_bounds, write_payload_bounds

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
        self._written = PayloadBounds(PAYLOAD_SIZE_BYTES, {})  # while nothing is known of the others

    @property
    def is_known(self) -> bool:
        """Whether the sizes of all payloads were recorded. Otherwise any may have the maximum size."""
        return self._known() is not None

    def bound(self, point: edge.PointId) -> int:
        """Return the maximum size of the payload of a point in bytes."""
        bounds = self._bounds
        return bounds.large.get(point, bounds.max_bytes)

    def record(self, sizes: Mapping[edge.PointId, int]) -> None:
        """Note the sizes in bytes of payloads that will be stored, by the ids of their points."""
        bounds = self._known()
        if bounds is None:
            self._written = _including(self._written, sizes)
            return
        changed = _including(bounds, sizes)
        if changed != bounds:
            self._keep(changed)

    def found(self, sizes: Mapping[edge.PointId, int]) -> None:
        """Note the sizes in bytes of all payloads that are stored, where nothing was known of them."""
        self._keep(_including(self._written, sizes))

    def _keep(self, bounds: PayloadBounds) -> None:
        write_payload_bounds(self._directory, bounds)
        self._cached = bounds

    def _known(self) -> PayloadBounds | None:
        if self._cached is None:
            self._cached = read_payload_bounds(self._directory)
        return self._cached

    @property
    def _bounds(self) -> PayloadBounds:
        return self._known() or PayloadBounds(PAYLOAD_MAX_BYTES, {})


def _including(bounds: PayloadBounds, sizes: Mapping[edge.PointId, int]) -> PayloadBounds:
    """Bounds that also hold for payloads of these sizes."""
    largest, large = bounds.max_bytes, dict(bounds.large)
    for point, size in sizes.items():
        if size <= large.get(point, largest):
            continue
        rounded = 1 << (size - 1).bit_length()  # a power of two, so that the file is rarely written
        if point in large or (size > LARGE_BYTES and len(large) < LARGE_MAX_POINTS):
            large[point] = rounded
        else:
            largest = rounded
    return PayloadBounds(largest, large)
