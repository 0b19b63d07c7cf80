"""The rows of an ingest: the id and the payload of each text, or the reason why the text cannot be stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from qdrant_sink import PointId, Refusal, conform_id, kind_of, text_id
from service.operations.ingest_values import IngestRequest


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """The id and the payload of one text.

    Attributes:
        id: id of the point or, with chunking, of the document. If the caller's id is invalid, it is the id that the
            text would have without one, and nothing is stored under it.
        caller_id: the id as the caller gave it; None if the id is derived from the text.
        payload: the caller's payload; empty if it is invalid.
        refusal: the reason why the text cannot be stored; None if it can.
    """

    id: PointId
    caller_id: int | str | None
    payload: Mapping[str, Any]
    refusal: Refusal | None

    @classmethod
    def of(cls, request: IngestRequest, index: int, scope: str) -> Row:
        """Parse a row. An id or payload of None is absent.

        Args:
            request: the request.
            index: index of the text.
            scope: name from which ids are derived.
        """
        raw_id = None if request.ids is None else request.ids[index]
        payload = None if request.payloads is None else request.payloads[index]
        payload = {} if payload is None else payload
        derived = text_id(request.texts[index], scope)
        identity = derived if raw_id is None else conform_id(raw_id, scope)
        if isinstance(identity, Refusal):
            return cls(derived, None, {}, identity)
        caller_id = cast("int | str | None", raw_id)  # `conform_id` accepts only these
        if not isinstance(payload, Mapping):
            message = f"payload: must be an object, got {kind_of(payload)}"
            return cls(identity, caller_id, {}, Refusal("invalid_payload", message))
        return cls(identity, caller_id, payload, None)

    @property
    def has_invalid_id(self) -> bool:
        """Whether the caller's id is invalid."""
        return self.refusal is not None and self.refusal.code == "invalid_id"
