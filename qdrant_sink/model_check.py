"""Whether stored vectors are those of a model: a comparison with the vectors that it computes for the stored texts.

The size of a vector says nothing about its model. Two models that differ give unrelated vectors for one text, with a
cosine near 0, and one model gives the same vector on every machine and in every data type, to a cosine above 0.99.

| kind | cosine of a stored and a computed vector |
|---|---|
| dense | of the two vectors |
| sparse | of the weights by token id: 0 for those of BM25, whose ids are hashes |
| colbert | mean of the rows in order; unknown if the numbers of rows differ, because rows may have been pooled |

Only texts are compared whose vectors must agree. A text that may have been cut before it was embedded is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from embedder.vectors import Kind, SparseVector
from qdrant_sink.errors import Disagreement
from qdrant_sink.points import Vectors

MODEL_COSINE_MIN: Final = 0.98
"""Minimum cosine of two vectors of one text and one model. Half precision, int8 and float8 stay above 0.99."""

RELATED_COSINE_MIN: Final = 0.5
"""Minimum cosine of two texts of which one contains the other, in one model."""

Outcome = Literal["match", "mismatch", "unknown"]


@dataclass(frozen=True, slots=True)
class ModelVerdict:
    """Whether the stored vectors of one kind are those of the model.

    Attributes:
        outcome: the verdict; `unknown` if no text could be compared.
        cosine: median cosine of the compared texts; None if there are none.
        texts: number of compared texts.
    """

    outcome: Outcome
    cosine: float | None = None
    texts: int = 0

    def disagreement(self, kind: Kind) -> Disagreement | None:
        """Return the disagreement of a mismatch; None for another outcome."""
        if self.outcome != "mismatch" or self.cosine is None:
            return None
        return Disagreement(kind, self.cosine, self.texts)


UNKNOWN: Final = ModelVerdict("unknown")


@dataclass(frozen=True, slots=True, eq=False)
class ComparedText:
    """The stored vectors of a text, and the computed ones.

    Attributes:
        stored: stored vectors.
        computed: vectors of each text that may have been embedded. The one that agrees best counts.
        cut: vectors of beginnings of these texts. If only they agree, the text was cut, and it is unknown.
        is_open: whether the text may have been embedded in further forms. A cosine from `RELATED_COSINE_MIN` is then
            that of a related text, and unknown.
    """

    stored: Vectors
    computed: Sequence[Vectors]
    cut: Sequence[Vectors] = ()
    is_open: bool = False

    def agrees(self, kinds: Sequence[Kind]) -> bool:
        """Whether no kind of stored vector disagrees with the computed ones."""
        cosines = [_best(kind, self.computed, self.stored) for kind in kinds]
        return all(cosine is None or cosine >= MODEL_COSINE_MIN for cosine in cosines)

    def was_cut(self, kinds: Sequence[Kind]) -> bool:
        """Whether a stored vector is that of a beginning of the text, and not that of the whole text."""
        for kind in kinds:
            whole, cut = (_best(kind, vectors, self.stored) for vectors in (self.computed, self.cut))
            if cut is not None and cut >= MODEL_COSINE_MIN and (whole is None or whole < MODEL_COSINE_MIN):
                return True
        return False


def compare_vectors(texts: Sequence[ComparedText], kinds: Sequence[Kind]) -> dict[Kind, ModelVerdict]:
    """Return the verdict of each kind, by the median cosine of the texts."""
    whole = [text for text in texts if not text.was_cut(kinds)]
    return {kind: _verdict([_known(kind, text) for text in whole]) for kind in kinds}


def cosine_of(kind: Kind, computed: Vectors, stored: Vectors) -> float | None:
    """Return the cosine of two vectors; None if it is unknown, because one is missing, zero or of another shape."""
    if kind == "sparse":
        if computed.sparse is None or stored.sparse is None:
            return None
        return _sparse_cosine(computed.sparse, stored.sparse)
    first, second = (computed.dense, stored.dense) if kind == "dense" else (computed.colbert, stored.colbert)
    if first is None or second is None or first.shape != second.shape:
        return None
    cosines = _row_cosines(np.atleast_2d(first), np.atleast_2d(second))
    return float(cosines.mean()) if cosines.size and np.isfinite(cosines).all() else None


def _best(kind: Kind, computed: Sequence[Vectors], stored: Vectors) -> float | None:
    cosines = (cosine_of(kind, vectors, stored) for vectors in computed)
    return max((cosine for cosine in cosines if cosine is not None), default=None)


def _known(kind: Kind, text: ComparedText) -> float | None:
    cosine = _best(kind, text.computed, text.stored)
    if cosine is not None and text.is_open and RELATED_COSINE_MIN <= cosine < MODEL_COSINE_MIN:
        return None
    return cosine


def _verdict(cosines: Sequence[float | None]) -> ModelVerdict:
    known = [cosine for cosine in cosines if cosine is not None]
    if not known:
        return UNKNOWN
    cosine = median(known)
    return ModelVerdict("match" if cosine >= MODEL_COSINE_MIN else "mismatch", cosine, len(known))


def _row_cosines(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows, NaN for a row without a direction."""
    with np.errstate(all="ignore"):
        rows = [array.astype(np.float64) for array in (first, second)]
        unit = [array / np.linalg.norm(array, axis=1, keepdims=True) for array in rows]
        cosines: NDArray[np.float64] = np.einsum("ij,ij->i", *unit)
    return cosines


def _sparse_cosine(first: SparseVector, second: SparseVector) -> float | None:
    weights: list[Mapping[int, float]] = [
        dict(zip(vector.indices.tolist(), vector.values.astype(np.float64).tolist(), strict=True))
        for vector in (first, second)
    ]
    norms = [float(np.linalg.norm(list(vector.values()))) for vector in weights]
    product = sum(weight * weights[1].get(index, 0.0) for index, weight in weights[0].items())
    cosine = product / (norms[0] * norms[1]) if all(norms) else float("nan")
    return cosine if np.isfinite(cosine) else None
