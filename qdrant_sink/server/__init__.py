"""The adapter of a Qdrant server: the only modules that know qdrant-client."""

from __future__ import annotations

from qdrant_sink.server.store import ServerStore

__all__ = ["ServerStore"]
