"""Load files into a collection: `bge-m3-qdrant bulk`.

json_lines -> line_batches -> load -> report
"""

from __future__ import annotations

from service.bulk.load import BulkLoad, LoadOptions
from service.bulk.report import LoadReport

__all__ = ["BulkLoad", "LoadOptions", "LoadReport"]
