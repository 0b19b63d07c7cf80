"""The columns of vectors of a data set as lists, which Ray keeps as tensors where they come from numpy."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from embedder import Kind
from service.bulk.line import WrongFileError
from service.bulk.vector_files.columns import COLUMNS
from service.bulk.vector_files.file_layout import check_type
from service.bulk.vector_files.points import SPANS

DATA_SET: Final = "the data set"
"""Name of the input in messages."""

_NULLS: Final = {"sparse_indices": pa.uint32()}


def with_lists(table: pa.Table, kinds: tuple[Kind, ...], *, is_chunked: bool) -> pa.Table:
    """A table whose columns of vectors and spans are lists of numbers.

    Args:
        table: the table, with all these columns.
        kinds: kinds of vectors that are read.
        is_chunked: whether its rows are documents in chunks, whose columns are lists of the chunks.

    Raises:
        WrongFileError: a column has other values.
    """
    depths = {name: (2 if kind == "colbert" else 1) + is_chunked for kind in kinds for name in COLUMNS[kind]}
    if is_chunked:
        depths |= dict.fromkeys(SPANS, 1)
    for name, depth in depths.items():
        index = table.schema.get_field_index(name)
        column = _lists(table.column(index), depth, _NULLS.get(name, pa.int32() if name in SPANS else pa.float32()))
        check_type(column.type, depth, DATA_SET, name)
        if name in SPANS and not pa.types.is_integer(column.type.value_type):
            raise WrongFileError(DATA_SET, f"the column {name} must have lists of integers, got {column.type!s:.60}")
        table = table.set_column(index, name, column)
    return table


def _lists(column: pa.ChunkedArray, depth: int, number: pa.DataType) -> pa.ChunkedArray:
    """A column as lists, if it has tensors, or no number."""
    inner = column.type
    while hasattr(inner, "value_field"):
        inner = inner.value_type
    if pa.types.is_null(inner):  # a block in which each row is null or empty
        for _ in range(depth):
            number = pa.list_(number)
        return column.cast(number)
    if isinstance(column.type, pa.BaseExtensionType):
        return pa.chunked_array([_of_tensors(chunk, depth) for chunk in column.chunks])
    return column


def _of_tensors(chunk: Any, depth: int) -> Any:
    """Tensors as lists of lists. Tensors of another number of dimensions keep that."""
    given = [np.asarray(value.as_py()) if value.is_valid else None for value in chunk]
    tensors = [tensor for tensor in given if tensor is not None]
    depth = tensors[0].ndim if tensors else depth
    lists: Any = pa.array(np.concatenate([*(tensor.ravel() for tensor in tensors), np.empty(0, _dtype(tensors))]))
    for axis in reversed(range(1, depth)):
        counts = [np.full(int(np.prod(tensor.shape[:axis])), tensor.shape[axis]) for tensor in tensors]
        lists = pa.LargeListArray.from_arrays(_offsets(np.concatenate(counts or [np.empty(0)])), lists)
    rows = np.array([0 if tensor is None else len(tensor) for tensor in given])
    missing = pa.array([tensor is None for tensor in given], pa.bool_())
    return pa.LargeListArray.from_arrays(_offsets(rows), lists, mask=missing)


def _dtype(tensors: list[Any]) -> Any:
    return tensors[0].dtype if tensors else np.float32


def _offsets(counts: Any) -> Any:
    return pa.array(np.concatenate([np.zeros(1), np.cumsum(counts)]).astype(np.int64))
