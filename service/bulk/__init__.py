"""Load files into a collection: `bge-m3-qdrant bulk`.

sources -> reading -> line -> line_batches -> load -> report

`reading` opens a file (`stream_head`, `compression`, `text_encoding`), and parses it by its format (`json_lines`,
`json_array`, `delimited`); `field_mapping` says which fields are what.
"""

from __future__ import annotations

from service.bulk.load import BulkLoad, LoadOptions
from service.bulk.report import LoadReport

__all__ = ["BulkLoad", "LoadOptions", "LoadReport"]
