"""Write points to a collection: the writer of a job, its report, and the chunks of documents."""

from __future__ import annotations

from qdrant_sink.writing.batches import BATCH_MAX_BYTES, BATCH_MAX_POINTS
from qdrant_sink.writing.comparison import differing_points
from qdrant_sink.writing.confirmation import Acknowledged, missing_indices
from qdrant_sink.writing.document_locks import DocumentLocks
from qdrant_sink.writing.existing import existing_ids
from qdrant_sink.writing.pooling import pooled
from qdrant_sink.writing.replacement import Replacement
from qdrant_sink.writing.reports import Rejection, WriteReport
from qdrant_sink.writing.stored_chunks import VersionedCollections
from qdrant_sink.writing.writer import IN_FLIGHT_MAX, Destination, Writer

__all__ = [
    "BATCH_MAX_BYTES",
    "BATCH_MAX_POINTS",
    "IN_FLIGHT_MAX",
    "Acknowledged",
    "Destination",
    "DocumentLocks",
    "Rejection",
    "Replacement",
    "VersionedCollections",
    "WriteReport",
    "Writer",
    "differing_points",
    "existing_ids",
    "missing_indices",
    "pooled",
]
