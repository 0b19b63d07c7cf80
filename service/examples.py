"""The examples of a search by stored points: read from the store, and made into one query."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from embedder.errors import InvalidRequest, NotFound
from embedder.vectors import Embedding, Kind
from qdrant_sink.examples import alike, without
from qdrant_sink.points import PointId, point_id
from qdrant_sink.search import Stored, Vectors
from qdrant_sink.store import Store
from service.requests import Like


def examples(
    store: Store, collection: str, like: Like, kinds: Collection[Kind], where: Mapping[str, Any] | None
) -> tuple[Embedding, dict[str, Any]]:
    """The vectors to search by, as a text would have them, and the filter that leaves out the examples themselves.

    Args:
        store: that has the points.
        collection: which one.
        like: ids as their callers gave them.
        kinds: vectors that the search needs.
        where: the caller's filter.

    Raises:
        NotFound: points that are not there, by their places and, in the details, their ids.
        InvalidRequest: a point is an example of both kinds; or as `qdrant_sink.examples.alike`.
    """
    named = [(f"like.positive[{n}]", raw) for n, raw in enumerate(like.positive)]
    named += [(f"like.negative[{n}]", raw) for n, raw in enumerate(like.negative)]
    ids = [point_id(raw, like.id_scope or collection, field=place) for place, raw in named]
    wanted, unwanted = ids[: len(like.positive)], ids[len(like.positive) :]
    for number, one in enumerate(unwanted):
        if one in wanted:
            raise InvalidRequest(f"like.negative[{number}]: is the same point as like.positive[{wanted.index(one)}]")
    stored = store.fetch(collection, list(dict.fromkeys(ids)), False, sorted(kinds))  # noqa: FBT003 - the seam's order
    absent = [(place, raw) for (place, raw), one in zip(named, ids, strict=True) if one not in stored]
    if absent:
        places = ", ".join(place for place, _ in absent[:10]) + (", …" if len(absent) > 10 else "")
        raise NotFound(
            f"{places}: not in collection {collection!r}",
            details={"collection": collection, "ids": [raw for _, raw in absent]},
        )
    vectors = alike(_vectors(stored, wanted), _vectors(stored, unwanted), kinds)
    embedding = Embedding(vectors.dense, vectors.sparse, vectors.colbert, tokens=0, truncated=False)
    return embedding, without(where, ids)


def _vectors(stored: Mapping[PointId, Stored], ids: Sequence[PointId]) -> list[Vectors]:
    return [stored[one].vectors or Vectors() for one in ids]
