"""The figures that the project holds itself to, as ratios against the other contenders of the same run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.goals import Goals
from benchmarks.plan import COMMON, ENTRIES
from benchmarks.results import Outcome, Result

Results = Mapping[str, Result]
PEAK = f"peak after {COMMON[-1]}"
"""The memory figure that compares: everyone has done the same by then."""
_QUERY = "one short query, p50"
_CONCURRENT = "32 concurrent short queries, queries/s"
_MIXED = "mixed-length passages, all outputs"
_PLAIN = ("packed", "packed-int8", "packed-16bit", "packed-float32")
"""This engine as it is meant to run, the defaults first."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure and what was promised of it.

    Attributes:
        figure: what is measured.
        contender: of this engine, with its type.
        against: what it is compared with.
        value: the ratio; None if it was not measured.
        goal: the promise; None without one.
        at_least: whether more is better.
        unit: `x` or `%`.
        reason: why there is no value.
    """

    figure: str
    contender: str
    against: str
    value: float | None
    goal: float | None
    at_least: bool
    unit: str = "x"
    reason: str = ""

    @property
    def verdict(self) -> str:
        """Whether the promise is kept."""
        if self.value is None or self.goal is None:
            return ""
        kept = self.value >= self.goal if self.at_least else self.value <= self.goal
        return "met" if kept else "missed"


def ratios(results: Results, linear: int, goals: Goals) -> list[Ratio]:
    """All of them, in the order of the report.

    Args:
        results: of one run, by name.
        linear: weights of the model's linear layers.
        goals: of the machine of that run.
    """
    default, int8 = _of(results, "packed"), _typed(results, "int8")
    sixteen, single = _typed(results, "bfloat16", "float16"), _typed(results, "float32")
    found = [
        *_quicker(_QUERY, "query", default, results, {"original": goals.query, "m3serve": 5}),
        *_quicker(_QUERY, "query", int8, results, {"original": goals.query, "m3serve": 5}),
        _int8_query(int8, (default, sixteen, single), goals.int8),
        *_more(_CONCURRENT, default, results, {"original": goals.concurrent, "m3serve": 3.5}),
        *_more(_CONCURRENT, int8, results, {"original": goals.concurrent, "m3serve": 3.5}),
        *_quicker(_MIXED, "mixed", sixteen, results, {"original": goals.passages, "m3serve": 5}),
        *_quicker(_MIXED, "mixed", single, results, {}),
        *_quicker(_MIXED, "mixed", int8, results, {"original": goals.passages, "m3serve": 5}),
        *(_share(result, linear, goals.share_percent) for result in (single, sixteen, int8)),
        _memory("peak memory, 4 lanes", default, _of(results, "packed-1-lane"), 1.05),
        _memory("peak memory", default, _of(results, "original"), 0.5),
        _startup(default, _of(results, "original"), 1 / 3),
        _startup(default, _of(results, "m3serve"), 0.5),
        *(_beside(result, 512, 4) for result in (default, int8)),
        *(_beside(result, 8192, 8) for result in (default, int8)),
        *_growth(default),
    ]
    return list({(ratio.figure, ratio.contender, ratio.against): ratio for ratio in found}.values())


def share_of_ceiling(result: Result, linear: int) -> float | None:
    """The share of the best matrix product of its type that 512-token passages reach; attention not counted."""
    outcome = result.good("passages-512")
    rates = [] if outcome is None else [rate for key, rate in outcome.figures.items() if key.startswith("ceiling, ")]
    return 2 * linear * outcome.tokens_per_second / max(rates) if outcome and rates else None


def _quicker(figure: str, workload: str, ours: Result, results: Results, goals: Mapping[str, float]) -> list[Ratio]:
    def value(mine: Outcome, theirs: Outcome) -> float:
        return theirs.p50 / mine.p50

    return [
        _ratio(figure, ours, other, workload, value=value, goal=goals.get(other.name))
        for other in (_of(results, "original"), _of(results, "m3serve"))
    ]


def _more(figure: str, ours: Result, results: Results, goals: Mapping[str, float]) -> list[Ratio]:
    def value(mine: Outcome, theirs: Outcome) -> float:
        return mine.calls_per_second / theirs.calls_per_second

    return [
        _ratio(figure, ours, other, "concurrent-32", value=value, goal=goals.get(other.name))
        for other in (_of(results, "original"), _of(results, "m3serve"))
    ]


def _ratio(
    figure: str,
    ours: Result,
    other: Result,
    workload: str,
    *,
    value: Callable[[Outcome, Outcome], float],
    goal: float | None,
) -> Ratio:
    mine, theirs = ours.good(workload), other.good(workload)
    if mine is None or theirs is None:
        lacking = ours if mine is None else other
        return Ratio(figure, name(ours), other.name, None, goal, at_least=True, reason=why(lacking, workload))
    return Ratio(figure, name(ours), other.name, value(mine, theirs), goal, at_least=True)


def _int8_query(ours: Result, others: Sequence[Result], goal: float) -> Ratio:
    """Against the quickest other type of this engine."""
    outcome = ours.good("query")
    times = {name(other): found.p50 for other in others if (found := other.good("query")) and other.dtype != "int8"}
    if outcome is None or not times:
        lacking = others[0] if outcome else ours
        return Ratio(_QUERY, name(ours), "next best type", None, goal, at_least=True, reason=why(lacking, "query"))
    quickest = min(times, key=lambda key: times[key])
    return Ratio(_QUERY, name(ours), quickest, times[quickest] / outcome.p50, goal, at_least=True)


def _share(result: Result, linear: int, goal: float) -> Ratio:
    share = share_of_ceiling(result, linear)
    reason = why(result, "passages-512") if share is None else ""
    value = None if share is None else 100 * share
    return Ratio(
        "512-token passages, share of the matrix-product ceiling",
        name(result),
        "its type's product",
        value,
        goal,
        at_least=True,
        unit="%",
        reason=reason,
    )


def _memory(figure: str, ours: Result, other: Result, goal: float) -> Ratio:
    mine, theirs = ours.memory.get(PEAK), other.memory.get(PEAK)
    value = mine / theirs if mine and theirs else None
    reason = "" if value else why(other if mine else ours, COMMON[-1])
    return Ratio(figure, name(ours), other.name, value, goal, at_least=False, reason=reason)


def _startup(ours: Result, other: Result, goal: float) -> Ratio:
    mine, theirs = ours.startup.get("answered"), other.startup.get("answered")
    value = mine / theirs if mine and theirs else None
    reason = "" if value else why(other if mine else ours, "")
    figure = "process start to first answer"
    return Ratio(figure, name(ours), other.name, value, goal, at_least=False, reason=reason)


def _beside(result: Result, tokens: int, goal: float) -> Ratio:
    outcome = result.good(f"beside-{tokens}")
    value = outcome.p95 / outcome.figures["idle p50"] if outcome else None
    reason = "" if outcome else why(result, f"beside-{tokens}")
    figure = f"query p95 beside {tokens}-token passages"
    return Ratio(figure, name(result), "its idle p50", value, goal, at_least=False, reason=reason)


def _growth(result: Result) -> list[Ratio]:
    outcome = result.good("growth")
    if outcome is None:
        reason = why(result, "growth")
        return [Ratio("time against number of texts", name(result), "linear", None, 10, at_least=False, reason=reason)]
    sizes = growth_sizes(outcome)
    each = {size: outcome.figures[f"seconds of {size}"] / size for size in sizes}
    most = outcome.figures[f"peak rss of {sizes[-1]}"] / outcome.figures[f"peak rss of {sizes[0]}"]
    times = [
        Ratio(
            f"time of {size} texts over {size // before} x that of {before}, difference",
            name(result),
            "linear",
            100 * abs(each[size] / each[before] - 1),
            10,
            at_least=False,
            unit="%",
        )
        for before, size in itertools.pairwise(sizes)
    ]
    figure = f"peak memory of {sizes[-1]} texts, their vectors included"
    return [*times, Ratio(figure, name(result), f"{sizes[0]} texts", most, None, at_least=False)]


def growth_sizes(outcome: Outcome) -> list[int]:
    """The numbers of texts that were run."""
    prefix = "seconds of "
    return sorted(int(key.removeprefix(prefix)) for key in outcome.figures if key.startswith(prefix))


def name(result: Result) -> str:
    """A contender and its type, for a table."""
    title = ENTRIES[result.name].title if result.name in ENTRIES else result.name
    return f"{title} ({result.dtype})" if result.dtype and not title.endswith(result.dtype) else title


def why(result: Result, workload: str) -> str:
    """Why a contender has no figure of a workload."""
    if result.status != "ok":
        return f"{result.name}: {result.status}"
    outcome = result.outcomes.get(workload)
    return f"{result.name}: {outcome.status}" if outcome else f"{result.name}: not run"


def _of(results: Results, key: str) -> Result:
    return results.get(key) or Result(key, "not run")


def _typed(results: Results, *dtypes: str) -> Result:
    """This engine in one of these types, the default one if it runs in it."""
    for result in map(partial(_of, results), _PLAIN):
        if result.dtype in dtypes:
            return result
    return _of(results, {"int8": "packed-int8", "float32": "packed-float32"}.get(dtypes[0], "packed-16bit"))
