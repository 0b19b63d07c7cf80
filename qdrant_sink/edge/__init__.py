"""The adapter of Qdrant Edge, the engine of the server in this process: the only modules that know qdrant-edge."""

from __future__ import annotations

from qdrant_sink.edge.store import EdgeStore

__all__ = ["EdgeStore"]
