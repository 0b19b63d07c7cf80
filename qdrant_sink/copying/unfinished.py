"""Points that a run over a collection could not finish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from embedder.errors import WorkerError
from qdrant_sink.conformance import Refusal
from qdrant_sink.points import PointId

NAMED_MAX: Final = 100
"""Maximum number of points that a report names; all are counted."""


@dataclass(frozen=True, slots=True)
class UnfinishedPoint:
    """A point that a run could not complete or copy, and the reason.

    Attributes:
        id: id of the point.
        cause: refusal by conformance, or error of the model or the store.
    """

    id: PointId
    cause: Refusal | WorkerError
