"""Adapter for a Qdrant server. Only the modules of this package import qdrant-client."""

from __future__ import annotations

from qdrant_sink.server.store import ServerStore

__all__ = ["ServerStore"]
