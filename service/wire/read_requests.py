"""The JSON of requests that read without the model: collections and stored points."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from embedder import Kind
from qdrant_sink import OrderPosition, PointOrder, WithPayload, canonical_path
from service import operations
from service.wire.fields import (
    PATH_CHARACTERS_MAX,
    Collection,
    Filter,
    Ids,
    Wire,
    check_dtype,
    payload_selection,
    vector_selection,
)
from service.wire.positions import Bound, Position

POINTS_MAX = 10_000
"""Maximum points, or ids, of a request that reads points."""


class CollectionsRequest(Wire):
    """List the collections, or describe one."""

    operation: Literal["collections"]
    collection: Collection | None = None

    def value(self) -> operations.CollectionsRequest:
        """Convert to the request value."""
        return operations.CollectionsRequest(self.collection)


class OrderBy(Wire):
    """Order of points by a payload key with an index of integers, floats or datetimes."""

    key: Annotated[str, Field(max_length=PATH_CHARACTERS_MAX), AfterValidator(canonical_path)]
    direction: Literal["asc", "desc"] = "asc"
    start_from: Bound | None = None

    def value(self) -> PointOrder:
        """Convert to the value."""
        return PointOrder(self.key, self.direction == "desc", self.start_from)


class ReadPointsRequest(Wire):
    """Read stored points by their ids, or page by page."""

    operation: Literal["points"]
    collection: Collection | None = None
    ids: Annotated[Ids, Field(min_length=1, max_length=POINTS_MAX)] | None = None
    id_scope: Collection | None = None
    filter: Filter | None = None
    limit: Annotated[int, Field(ge=1, le=POINTS_MAX)] = 10
    after: Position | None = None
    order_by: OrderBy | None = None
    with_payload: Annotated[WithPayload, PlainValidator(payload_selection)] = True
    with_vectors: Annotated[tuple[Kind, ...], PlainValidator(vector_selection)] = ()
    encoding: Literal["list", "base64"] = "list"
    dtype: Literal["float32", "float16"] = "float32"

    @model_validator(mode="after")
    def _fits_together(self) -> ReadPointsRequest:
        check_dtype(self.encoding, self.dtype)
        if self.ids is not None:
            of_pages = {"filter": "filter", "limit": "limit", "after": "after", "order_by": "orderBy"}
            for name, wire in of_pages.items():
                if name in self.model_fields_set:
                    raise ValueError(f"{wire}: must not be given together with ids; leave out ids to read pages")
        if self.after is not None and isinstance(self.after, OrderPosition) != (self.order_by is not None):
            wanted = "an id without orderBy" if self.order_by is None else "an object of value and id with orderBy"
            raise ValueError(f"after: must be {wanted}; send the next of the last page with the same orderBy")
        return self

    def value(self) -> operations.PointsRequest:
        """Convert to the request value."""
        return operations.PointsRequest(
            collection=self.collection,
            ids=self.ids,
            id_scope=self.id_scope,
            filter=self.filter,
            limit=self.limit,
            after=self.after,
            order=None if self.order_by is None else self.order_by.value(),
            with_payload=self.with_payload,
            with_vectors=self.with_vectors,
        )
