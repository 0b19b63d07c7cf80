"""Adapter for Qdrant Edge, the server's engine in this process. Only the modules of this package import qdrant-edge."""

from __future__ import annotations

from qdrant_sink.edge.disk_space import DiskSpace
from qdrant_sink.edge.store import EdgeStore

__all__ = ["DiskSpace", "EdgeStore"]
