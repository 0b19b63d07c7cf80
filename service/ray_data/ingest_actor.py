"""The actor that embeds rows and stores them: one worker with its model."""

from __future__ import annotations

from typing import Any

from service.bulk.columnar import table_lines
from service.bulk.field_mapping import FieldOptions
from service.bulk.line_ingest import line_ingest
from service.operations import IngestRequest, Operations
from service.ray_data.batch_ingest import BatchIngest
from service.settings import Settings


class IngestActor:
    """Embeds the rows of batches and stores them. Several batches are under way, so that the model is busy.

    Args:
        settings: the settings.
        request: the request of every batch, without its texts, ids and payloads.
        fields: the columns that the user names.
    """

    def __init__(self, settings: Settings, request: IngestRequest, fields: FieldOptions) -> None:
        self._fields = fields
        self._store = BatchIngest(line_ingest(Operations.build(settings)), request)

    async def __call__(self, batch: Any) -> Any:
        """Store the rows of a batch; returns their outcome as a table."""
        return (await self._store(table_lines(batch, self._fields))).table()
