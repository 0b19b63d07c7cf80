"""The limits that a faster type must keep beside float32, and the checks that apply them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from precision.comparison import Comparison


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Limits of a comparison with float32.

    Attributes:
        dense_cosine: every text's dense cosine must be above it.
        colbert_cosine: every ColBERT row's cosine must be above it.
        sparse_error: no weight may differ by more, as `closeness.sparse_difference` measures it.
        ndcg_loss: most that nDCG@10 of any kind may fall, as a share of float32's; where right answers are known.
            A rise is chance as much as a fall of its size, but no reason to refuse a type.
        overlap: least mean overlap@10 of any kind; where there are queries but right answers are not known.
    """

    dense_cosine: float
    colbert_cosine: float
    sparse_error: float
    ndcg_loss: float
    overlap: float


SIXTEEN_BIT = Thresholds(dense_cosine=0.9995, colbert_cosine=0.9995, sparse_error=0.02, ndcg_loss=0.005, overlap=0.95)
"""Limits for float32, float16 and bfloat16.

A cosine of 0.9995 is an error of 3.2 % of the vector's length, sqrt(2 (1 - cos)).
Overlap: on average at most one passage of every second query's top ten is another, as happens among near ties."""

INT8 = Thresholds(dense_cosine=0.98, colbert_cosine=0.95, sparse_error=0.1, ndcg_loss=0.02, overlap=0.85)
"""int8 rounds weights and activations to about 1/127 of the largest in their row: the further outliers stand out, the
coarser. Vectors move visibly (a cosine of 0.98 is an error of 20 % of the length), so the ranking decides, by nDCG@10
within 2 %; cosines and sparse error only catch an engine at fault. The worst of many thousand ColBERT rows is allowed
more than the worst dense vector, because MaxSim averages over rows. float8 has the same limits: it rounds every number
to 1/16 of itself, rather than of the largest in its row."""


def thresholds_for(dtype: str) -> Thresholds:
    """The defaults for `float32`, `float16`, `bfloat16`, `int8` or `float8`."""
    return INT8 if dtype in {"int8", "float8"} else SIXTEEN_BIT


def described(dtype: str, thresholds: Thresholds) -> str:
    """The origin of the thresholds and the overridden ones, for people."""
    defaults = thresholds_for(dtype)
    changed = [
        field.name for field in fields(Thresholds) if getattr(thresholds, field.name) != getattr(defaults, field.name)
    ]
    owner = dtype if defaults is INT8 else "16-bit types"
    return f"the defaults of {owner}" + (f", but for {', '.join(changed)}" if changed else "")


@dataclass(frozen=True, slots=True)
class Check:
    """One measured value against its limit.

    Attributes:
        name: what is measured.
        value: NaN if nothing could be measured, which fails.
        relation: how the value must stand to the limit.
        limit: in the value's unit: a cosine, or a share of 1.
    """

    name: str
    value: float
    relation: Literal[">", ">=", "<="]
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the value keeps the limit."""
        if self.relation == ">":
            return self.value > self.limit
        return self.value >= self.limit if self.relation == ">=" else self.value <= self.limit


def judge(comparison: Comparison, thresholds: Thresholds) -> list[Check]:
    """Every check that the comparison allows; it passes if all do."""
    return [
        Check("texts not embedded", comparison.failed, "<=", 0),
        Check("dense cosine, least", comparison.dense.least, ">", thresholds.dense_cosine),
        Check("ColBERT row cosine, least", comparison.colbert.least, ">", thresholds.colbert_cosine),
        Check("sparse weight error, largest", comparison.sparse.error.largest, "<=", thresholds.sparse_error),
        *(
            Check(f"overlap@10, {kind}", agreement.overlap, ">=", thresholds.overlap)
            if agreement.quality is None
            else Check(f"nDCG@10 loss, {kind}", max(0.0, -agreement.quality.change), "<=", thresholds.ndcg_loss)
            for kind, agreement in comparison.rankings.items()
        ),
    ]
