"""Checksums of the columns of a row group, which are those of the values that a reader gets.

A checksum is the CRC-32 of the type, the lengths and the numbers of a column. So it covers whatever a reader of Parquet
depends on: pages and their headers, encodings, offsets, the schema. It does not depend on how the values are stored.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from service.bulk.extras import library


def column_checksums(table: Any, columns: Iterable[str]) -> dict[str, int]:
    """The checksums of columns of an Arrow table."""
    return {name: _checksum(table.column(name).combine_chunks(), 0) for name in columns}


def wrong_column(table: Any, checksums: Mapping[str, int]) -> str | None:
    """The first column of an Arrow table whose checksum is another one; None if there is none.

    Args:
        table: the table. Columns without a checksum are not compared.
        checksums: the checksums of columns by their names.
    """
    names = [name for name in table.column_names if name in checksums]
    actual = column_checksums(table, names)
    return next((name for name in names if actual[name] != checksums[name]), None)


def _checksum(column: Any, before: int) -> int:
    """The checksum of an array of Arrow, continued from that of what precedes it."""
    arrow = library("pyarrow", "vectors in files")
    kind = column.type
    checksum = zlib.crc32(f"{len(column)} {column.null_count}".encode(), before)
    if column.null_count:
        checksum = zlib.crc32(np.packbits(column.is_valid().to_numpy(zero_copy_only=False)).data, checksum)
        column = column.drop_null()
    if arrow.types.is_string(kind):
        texts = column.cast(arrow.binary()).to_pylist()
        checksum = zlib.crc32(np.array([len(text) for text in texts], np.int64).data, checksum)
        return zlib.crc32(b"".join(texts), checksum)
    if hasattr(kind, "value_field"):
        lengths = column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        return _checksum(column.flatten(), zlib.crc32(lengths.data, checksum))
    numbers = column.to_numpy(zero_copy_only=False)
    return zlib.crc32(np.ascontiguousarray(numbers).data, zlib.crc32(str(kind).encode(), checksum))
