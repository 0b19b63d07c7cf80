"""The report of a comparison, as a table for people and as one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from precision.closeness import NOTICEABLE, Spread
from precision.comparison import SPARSE_FLOOR, Agreement, Comparison, Lengths
from precision.verdict import Check, Thresholds

_SHOWN_FAILURES = 3


@dataclass(frozen=True, slots=True)
class Report:
    """A comparison, what it was made of, and the verdict.

    Attributes:
        model: as the user named it.
        engine: `packed`.
        device: the devices as resolved, a comma list.
        dtype: the type as resolved, never `auto`.
        texts: where the texts come from, for people.
        lengths: tokens at which they were cut.
        limits: whose thresholds were applied, for people.
        thresholds: their values.
        comparison: what was measured.
        checks: what was judged.
    """

    model: str
    engine: str
    device: str
    dtype: str
    texts: str
    lengths: Lengths
    limits: str
    thresholds: Thresholds
    comparison: Comparison
    checks: Sequence[Check]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def as_json(self) -> str:
        """One JSON object; shares are of 1, and what could not be measured is null."""
        found = {
            "model": self.model,
            "engine": self.engine,
            "device": self.device,
            "dtype": self.dtype,
            "reference": "float32",
            "texts": self.texts,
            "max_length": asdict(self.lengths),
            "sparse_floor": SPARSE_FLOOR,
            **asdict(self.comparison),
            "thresholds": asdict(self.thresholds),
            "checks": [{**asdict(check), "passed": check.passed} for check in self.checks],
            "verdict": _word(passed=self.passed),
        }
        return json.dumps(_finite(found), ensure_ascii=False, allow_nan=False)

    def as_text(self) -> str:
        """Aligned tables, the verdict last."""
        measured = self.comparison
        parts = [
            _aligned(self._made_of()),
            _aligned(
                [
                    ("cosine with float32", "number", "least", "1st pct", "median"),
                    _cosine_row("dense vectors", measured.dense),
                    _cosine_row("ColBERT rows", measured.colbert),
                ]
            ),
            _aligned(_sparse_rows(measured)),
        ]
        if measured.rankings:
            parts.append(_aligned(_ranking_rows(measured.rankings, self.dtype)))
        parts.extend(_failure_lines(name, said) for name, said in measured.failures.items() if said)
        parts.append(_aligned([_check_row(check) for check in self.checks]))
        parts.append(f"{_word(passed=self.passed)}: {self.dtype} against float32, on {self.texts}")
        return "\n\n".join(parts)

    def _made_of(self) -> list[tuple[str, ...]]:
        measured = self.comparison
        return [
            ("model", self.model),
            ("engine", self.engine),
            ("device", self.device),
            ("types", f"{self.dtype} against float32"),
            ("texts", f"{measured.passages} passages and {measured.queries} queries of {self.texts}"),
            (
                "tokens",
                f"{measured.tokens}; {measured.truncated} texts were cut, at {_cuts(self.lengths)}",
            ),
            ("limits", self.limits),
        ]


def _cuts(lengths: Lengths) -> str:
    if lengths.passage == lengths.query:
        return f"{lengths.passage} tokens"
    return f"{lengths.passage} tokens a passage and {lengths.query} a query"


def _cosine_row(name: str, spread: Spread) -> tuple[str, ...]:
    return (
        name,
        str(spread.count),
        f"{spread.least:.6f}",
        f"{spread.percentile_1:.6f}",
        f"{spread.median:.6f}",
    )


def _sparse_rows(measured: Comparison) -> list[tuple[str, ...]]:
    sparse = measured.sparse
    least = f"of weights >= {NOTICEABLE:.0%} of the text's largest"
    return [
        ("sparse weights", "number", "largest", "99th pct", "median"),
        _error_row(f"error, of max(weight, {SPARSE_FLOOR:.0%} of the text's largest)", sparse.error),
        _error_row(f"error, of the weight itself, {least}", sparse.own_error),
        ("sparse ids", "number", "least", "1st pct", "median"),
        _share_row("Jaccard index of a text's ids", sparse.jaccard),
        _share_row("the same, weighted", sparse.weighted_jaccard),
        (
            "ids in one type only; their largest weight, of its text's largest",
            str(sparse.one_sided),
            f"{sparse.one_sided_largest:.2%}",
        ),
    ]


def _error_row(name: str, spread: Spread) -> tuple[str, ...]:
    return (
        name,
        str(spread.count),
        f"{spread.largest:.2%}",
        f"{spread.percentile_99:.2%}",
        f"{spread.median:.2%}",
    )


def _share_row(name: str, spread: Spread) -> tuple[str, ...]:
    return (name, str(spread.count), f"{spread.least:.2%}", f"{spread.percentile_1:.2%}", f"{spread.median:.2%}")


def _ranking_rows(rankings: dict[str, Agreement], dtype: str) -> list[tuple[str, ...]]:
    judged = any(agreement.quality for agreement in rankings.values())
    head = ("ranking", "overlap@10", "same first")
    rows: list[tuple[str, ...]] = [(*head, "nDCG@10 float32", dtype, "change") if judged else head]
    for kind, agreement in rankings.items():
        row: tuple[str, ...] = (kind, f"{agreement.overlap:.2%}", f"{agreement.same_first:.2%}")
        if agreement.quality is not None:
            quality = agreement.quality
            row = (*row, f"{quality.reference:.4f}", f"{quality.other:.4f}", f"{quality.change:+.2%}")
        rows.append(row)
    return rows


def _check_row(check: Check) -> tuple[str, ...]:
    return (f"{_word(passed=check.passed)}  {check.name}", f"{check.value:.6g}", f"{check.relation} {check.limit:g}")


def _failure_lines(dtype: str, said: dict[str, int]) -> str:
    lines = [f"not embedded in {dtype}: {sum(said.values())} texts"]
    lines.extend(f"  {count} x {message}" for message, count in list(said.items())[:_SHOWN_FAILURES])
    if len(said) > _SHOWN_FAILURES:
        lines.append("  ...")
    return "\n".join(lines)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns two spaces apart: the first and a lone second to the left, numbers to the right."""
    columns = max(len(row) for row in rows)
    widths = [max((len(row[c]) for row in rows if c < len(row)), default=0) for c in range(columns)]
    number = str.rjust if columns > 2 else str.ljust
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(number(cell, width) for cell, width in zip(row[1:], widths[1:], strict=False))]
        ).rstrip()
        for row in rows
    )


def _word(*, passed: bool) -> str:
    return "PASS" if passed else "FAIL"


def _finite(value: Any) -> Any:
    """The value with null for every number that JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
