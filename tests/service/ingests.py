"""Ingest jobs into one collection, and expectations about it."""

from __future__ import annotations

from typing import Any, Final

from tests.service.client import Client, Json

NOTES: Final = "notes"
CHUNK: Final = {"maxTokens": 48, "overlap": 8}
LONG: Final = " ".join(f"Sentence number {n} speaks of topic {n % 7}." for n in range(60))
"""A document that is cut into many chunks."""


def job(*texts: str, **qdrant: Any) -> Json:
    """An ingest of these texts as passages into `NOTES`."""
    return {"texts": list(texts), "isPassage": True, "qdrant": {"collection": NOTES, **qdrant}}


def count(worker: Client) -> int:
    """The number of points that `NOTES` holds."""
    points = worker.good({"operation": "count", "collection": NOTES})["count"]
    assert isinstance(points, int)
    return points


def block(stored: int, *, skipped: int = 0) -> Json:
    """The `upsert` block of a job into `NOTES` without rejections."""
    return {"collection": NOTES, "stored": stored, "skipped": skipped, "rejected": []}
