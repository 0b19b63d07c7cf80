"""Texts that many cases use, and a collection that many scenarios begin with."""

from __future__ import annotations

from typing import Any, Final

from tests.contract.steps import Job

Json = dict[str, Any]

NOTES: Final = "notes"

TEXTS: Final = (
    "rsync copies only the changed parts of files to another machine.",
    "PostgreSQL is a relational database server with transactions.",
    "Audacity records and edits sound on every desktop.",
    "A backup that was never restored is only a hope.",
    "The kernel schedules threads on all cores.",
    "Datenbanken speichern Tabellen und Indizes auf der Platte.",
    "git keeps every version of a file, and its branches are cheap.",
    "Firefox draws pages and blocks what follows you around.",
    "A compressed archive takes less room on a remote disk.",
    "An editor with syntax colours for thirty languages.",
)
"""Texts of the collection; the first is that of point 1."""

PAYLOADS: Final[tuple[Json, ...]] = (
    {"topic": "files", "n": 1, "price": 0.5, "tags": ["copy", "network"], "when": "2024-05-01T12:00:00Z",
     "place": {"lon": 13.4, "lat": 52.5}, "free": True,
     "offers": [{"shop": "a", "price": 3}, {"shop": "b", "price": 9}]},
    {"topic": "data", "n": 2, "price": 1.5, "tags": ["server"], "when": "2024-06-01T12:00:00Z",
     "place": {"lon": 2.35, "lat": 48.85}, "free": True, "offers": [{"shop": "a", "price": 9}]},
    {"topic": "sound", "n": 3, "price": 2.5, "tags": [], "when": "2023-01-15", "free": False, "owner": {"name": "kim"}},
    {"topic": "files", "n": 4, "price": 3.5, "tags": ["copy"], "gone": None, "place": {"lon": -0.12, "lat": 51.5}},
    {"topic": "system", "n": 5, "price": 4.5, "owner": {"name": "ada"}},
    {"topic": "data", "n": 6, "price": 5.5, "language": "de"},
    {"topic": "files", "n": 7, "tags": ["copy", "history", "network"]},
    {"topic": "web", "n": 8, "price": 7.5, "free": True},
    {"n": 9, "tags": ["network"]},
    {"topic": 10, "n": 10},
)  # fmt: skip
"""Payloads of the points, in the order of `TEXTS`."""


def stored(name: str, **qdrant: Any) -> Job:
    """Return the job that stores `TEXTS` as points 1 to 10."""
    target = {
        "collection": NOTES,
        "ids": list(range(1, len(TEXTS) + 1)),
        "payloads": list(PAYLOADS),
        **qdrant,
    }
    return Job(name, {"texts": list(TEXTS), "isPassage": True, "qdrant": target})


def search(name: str, *queries: str, **fields: Any) -> Job:
    """Return a search in the collection."""
    queries_field = {"queries": list(queries)} if queries else {}
    return Job(name, {"operation": "search", "collection": NOTES, **queries_field, **fields})


def count(name: str, **fields: Any) -> Job:
    """Return a count of the collection."""
    return Job(name, {"operation": "count", "collection": NOTES, **fields})


def contents(name: str, **fields: Any) -> Job:
    """Return a search that lists the stored ids and payloads, up to a hundred."""
    return search(name, "what is stored", using=["dense"], limit=100, **fields)
