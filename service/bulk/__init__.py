"""Bulk loading of JSON Lines into a collection: `python -m service.bulk`.

json_lines -> line_batches -> load -> report
"""

from __future__ import annotations

from service.bulk.load import BulkLoad, LoadOptions
from service.bulk.report import LoadReport

__all__ = ["BulkLoad", "LoadOptions", "LoadReport"]
