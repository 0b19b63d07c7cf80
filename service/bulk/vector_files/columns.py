"""The vectors in the columns of a record batch: numbers of each row, or the reason why a row has none that are valid.

The vectors of BGE-M3 have rows of norm 1, and token ids that ascend. A row with others was changed, or is of another
kind, so it is refused even where a collection would take it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedder import Kind, SparseVector
from qdrant_sink import Vectors
from service.bulk.line import BadLineError

NORM_TOLERANCE: Final = 0.01
"""Maximum difference of a norm from 1. Rounding to float16 or bfloat16 changes it by less than 0.004."""

COLUMNS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "dense": ("dense",),
    "sparse": ("sparse_indices", "sparse_values"),
    "colbert": ("colbert",),
}
"""Columns of each kind of vector."""


class BatchVectors:
    """The vectors of the rows of a record batch.

    Args:
        batch: the record batch, whose columns are those of `COLUMNS`.
        kinds: kinds of vectors that are read.
        sizes: numbers of a dense vector and of a ColBERT row.
    """

    def __init__(self, batch: Any, kinds: Sequence[Kind], sizes: Mapping[Kind, int]) -> None:
        names = [name for kind in kinds for name in COLUMNS[kind]]
        self._columns = {name: _Lists(batch.column(name)) for name in names}
        self._kinds = kinds
        self._sizes = sizes

    def row(self, index: int) -> Vectors:
        """The vectors of a row.

        Raises:
            BadLineError: one is missing, or is none that the model computes.
        """
        kinds = self._kinds
        return Vectors(
            dense=self._dense(index) if "dense" in kinds else None,
            sparse=self._sparse(index) if "sparse" in kinds else None,
            colbert=self._colbert(index) if "colbert" in kinds else None,
        )

    def nbytes(self, index: int) -> int:
        """Size of the vectors of a row in bytes."""
        return sum(column.nbytes(index) for column in self._columns.values())

    def _dense(self, index: int) -> NDArray[np.float32]:
        vector = _finite("dense", _given("dense", self._columns["dense"].of_row(index)))
        if vector.shape != (self._sizes["dense"],):
            raise BadLineError(f"dense must have {self._sizes['dense']} numbers, got {vector.size}")
        wide = vector.astype(np.float32, copy=False)
        _check_norms("dense", wide[np.newaxis])
        return wide

    def _sparse(self, index: int) -> SparseVector:
        ids = _given("sparse_indices", self._columns["sparse_indices"].of_row(index))
        weights = _finite("sparse_values", _given("sparse_values", self._columns["sparse_values"].of_row(index)))
        if ids.size != weights.size:
            raise BadLineError(
                f"sparse_indices and sparse_values must have as many numbers, got {ids.size} and {weights.size}"
            )
        if ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() > np.iinfo(np.uint32).max):
            raise BadLineError("sparse_indices must be token ids, integers from 0 to 4294967295")
        if not (ids[1:] > ids[:-1]).all():
            raise BadLineError("sparse_indices must ascend, and none may be there twice")
        return SparseVector(ids.astype(np.uint32, copy=False), weights.astype(np.float32, copy=False))

    def _colbert(self, index: int) -> NDArray[Any]:
        rows = self._columns["colbert"].rows(index, self._sizes["colbert"])
        matrix = _finite("colbert", _given("colbert", rows))
        if not len(matrix):
            raise BadLineError("colbert must have at least 1 row, got 0")
        _check_norms("colbert", matrix.astype(np.float32, copy=False))
        return matrix if matrix.dtype == np.float16 else matrix.astype(np.float32, copy=False)


class _Lists:
    """A column of lists of numbers, or of lists of them.

    Args:
        column: the column.

    Attributes:
        offsets: int64 [rows + 1], where the items of each row begin.
        numbers: the numbers of all rows.
    """

    def __init__(self, column: Any) -> None:
        self._column = column
        self.offsets, self._items = _flat(column)
        self._inner: _Lists | None = _Lists(self._items) if _is_list(self._items.type) else None
        self.numbers: NDArray[Any] = _numbers(self._items) if self._inner is None else self._inner.numbers

    def of_row(self, index: int) -> NDArray[Any] | None:
        """The numbers of a row; None if it is null."""
        if not self._column[index].is_valid:
            return None
        start, end = self.offsets[index : index + 2]
        return self.numbers[start:end]

    def rows(self, index: int, size: int) -> NDArray[Any] | None:
        """The rows of a matrix; None if it is null.

        Raises:
            BadLineError: a row is null or has another size.
        """
        if not self._column[index].is_valid or self._inner is None:
            return None
        start, end = self.offsets[index : index + 2]
        offsets = self._inner.offsets[start : end + 1]
        if self._items.slice(start, end - start).null_count or (np.diff(offsets) != size).any():
            raise BadLineError(f"colbert must have rows of {size} numbers")
        return self.numbers[offsets[0] : offsets[-1]].reshape(-1, size) if end > start else np.empty((0, size))

    def nbytes(self, index: int) -> int:
        start, end = self.offsets[index : index + 2]
        offsets = self.offsets if self._inner is None else self._inner.offsets
        first, last = (start, end) if self._inner is None else (offsets[start], offsets[end])
        return int(last - first) * self.numbers.itemsize


def _flat(column: Any) -> tuple[NDArray[np.int64], Any]:
    """The offsets of the rows of a list column, and its items."""
    if hasattr(column.type, "list_size"):
        size = column.type.list_size
        return (np.arange(len(column) + 1, dtype=np.int64) + column.offset) * size, column.values
    return np.asarray(column.offsets).astype(np.int64), column.values


def _is_list(kind: Any) -> bool:
    return hasattr(kind, "value_field")


def _numbers(items: Any) -> NDArray[Any]:
    """Numbers of a column; a null is NaN."""
    if items.null_count:
        items = items.cast("float64").fill_null(float("nan"))
    return np.asarray(items.to_numpy(zero_copy_only=False))


def _given(name: str, numbers: NDArray[Any] | None) -> NDArray[Any]:
    if numbers is None:
        raise BadLineError(f"{name} is required")
    return numbers


def _finite(name: str, numbers: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(numbers.astype(np.float32, copy=False))
    if not finite.all():
        raise BadLineError(f"{name} must have finite numbers, got {int((~finite).sum())} that are not")
    return numbers


def _check_norms(name: str, rows: NDArray[np.float32]) -> None:
    with np.errstate(over="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    wrong = ~(np.abs(norms - 1) <= NORM_TOLERANCE)
    if wrong.any():
        norm = float(norms[int(np.argmax(wrong))])
        of = name if len(rows) == 1 and name == "dense" else f"a row of {name}"
        raise BadLineError(f"{of} must have the norm 1 (within {NORM_TOLERANCE:g}), got {norm:.3g}")
