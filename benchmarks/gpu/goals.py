"""The goals of the GPU path, and whether a run reached them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu.results import Results

_ALL = "all, float16 rows"
_SHARE_BATCHES = ("64 x 512", "128 x 256")


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure to reach.

    Attributes:
        figure: what is measured.
        unit: of the figure; `%`, `x`, `ms` or `/s`.
        before: what the baseline reached, as it was noted.
        goal: limit on the figure.
        measure: the figure of a run; None if it was not measured.
        at_most: whether the goal is an upper bound.
    """

    figure: str
    unit: str
    before: str
    goal: float
    measure: Callable[[Results], float | None]
    at_most: bool = False

    def verdict(self, results: Results) -> str:
        """`met`, `missed` or `not measured yet`."""
        value = self.measure(results)
        if value is None:
            return "not measured yet"
        return "met" if (value <= self.goal if self.at_most else value >= self.goal) else "missed"


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """The quotient; None if a part is unknown."""
    return numerator / denominator if numerator is not None and denominator else None


def ceiling(results: Results, dtype: str, product: str = "model") -> float | None:
    """FLOP/s of the model's products in a type: `model` for an instant, `sustained` at the clock under load."""
    return results.value("ceilings", "flops_s", product=product, dtype=dtype)


def share(results: Results, batch: str, outputs: str, dtype: str = "float16", product: str = "model") -> float | None:
    """The engine's FLOP/s in linear layers as a share of a ceiling."""
    return ratio(results.value("engine", "flops_s", batch=batch, outputs=outputs), ceiling(results, dtype, product))


def _least_share(product: str) -> Callable[[Results], float | None]:
    def measure(results: Results) -> float | None:
        shares = [share(results, batch, _ALL, product=product) for batch in _SHARE_BATCHES]
        known = [each for each in shares if each is not None]
        return 100 * min(known) if len(known) == len(shares) else None

    return measure


def _embed_share(results: Results) -> float | None:
    rows = results.rows("embedder", step="embed", outputs=_ALL)
    quotient = ratio(rows[0]["tokens_s"], rows[0].get("engine_tokens_s")) if rows else None
    return None if quotient is None else 100 * quotient


def _library(batch_size: int) -> Callable[[Results], float | None]:
    def measure(results: Results) -> float | None:
        ours = results.value("embedder", "tokens_s", step="embed", outputs=_ALL)
        return ratio(ours, results.value("flagembedding", "tokens_s", batch_size=batch_size, outputs="all"))

    return measure


def _float8(results: Results) -> float | None:
    names = {"batch": "128 x 256", "outputs": "dense + sparse"}
    exact, quantised = (results.value("float8", "tokens_s", dtype=dtype, **names) for dtype in ("float16", "float8"))
    return ratio(quantised, exact)


def _query_ms(results: Results) -> float | None:
    return _ms(results.value("queries", "p50_s", clients=1, beside=None))


def _beside_ms(results: Results) -> float | None:
    rows = [row for row in results.rows("queries") if row.get("beside")]
    return _ms(max((float(row["p95_s"]) for row in rows), default=None))


def _handler(results: Results) -> float | None:
    return ratio(results.value("handler", "handler_s"), results.value("handler", "engine_s"))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


GOALS = (
    Goal(
        "engine, 64 x 512 and 128 x 256, all outputs: share of the fp16 ceiling at the clock that the card sustains",
        "%",
        "",
        75,
        _least_share("sustained"),
    ),
    Goal("the same, of the ceiling at the clock of an instant", "%", "51-57 %", 75, _least_share("model")),
    Goal(
        "`Embedder.embed`, mixed passages, all outputs, float16 rows: share of the engine",
        "%",
        "41 %",
        90,
        _embed_share,
    ),
    Goal("the same beside FlagEmbedding fp16, batch 256", "x", "2.2 x", 6, _library(256)),
    Goal("the same beside FlagEmbedding fp16, batch 32", "x", "5.4 x", 14, _library(32)),
    Goal("float8, 128 x 256, dense + sparse, beside fp16", "x", "(prototype)", 1.6, _float8),
    Goal("one query through the pool, p50", "ms", "8-12 ms", 2.5, _query_ms, at_most=True),
    Goal(
        "512 clients, one query each",
        "/s",
        "1800-2900 /s",
        8000,
        lambda results: results.value("queries", "queries_s", clients=512),
    ),
    Goal("a query beside bulk passages, p95", "ms", "19-27 ms (335 with one lane)", 8, _beside_ms, at_most=True),
    Goal("handler, 512 passages as base64 float16, beside the engine's time", "x", "10 x", 2, _handler, at_most=True),
)
