"""Fixtures of the hostile tests: those of the service."""

from tests.service.conftest import embedder, serve, store, watched, worker

__all__ = ["embedder", "serve", "store", "watched", "worker"]
