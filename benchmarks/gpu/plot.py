"""The plots of the page, as one SVG: before, now and the goal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib.figure import Figure

from benchmarks.gpu import baseline
from benchmarks.gpu.baseline import BASELINE
from benchmarks.gpu.goals import ceiling, ratio
from benchmarks.gpu.results import Results
from benchmarks.plot import STYLE

_BEFORE, _BEFORE_2, _NOW, _OTHER, _GOAL = "#c9a39b", "#b0413e", "#20639b", "#999999", "black"
_BATCHES = ("64 x 128", "128 x 256", "512 x 128", "64 x 512", "1024 mixed", "1 x 8192")
_SHARE_GOAL, _QUERIES_GOAL, _BESIDE_GOAL_MS = 75, 8000, 8
_CLIENTS = (1, 8, 128, 512)
_KINDS = ("dense", "dense + sparse", "all, float16 rows", "all, float32 rows")

Series = tuple[str, str, Sequence[float | None]]
"""Label, colour and a value per group; None where it was not measured."""


def draw(results: Results, path: Path) -> None:
    """Share of the ceiling, passages through the embedder, queries by clients, a query beside passages."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": "benchmarks-gpu"}):
        figure = Figure(figsize=(12, 9), layout="constrained")
        axes = figure.subplots(2, 2)
        _shares(axes[0][0], results)
        _passages(axes[0][1], results)
        _clients(axes[1][0], results)
        _beside(axes[1][1], results)
        gpu = results.fact("GPU") or results.fact("device")
        now = f"now: {gpu}, {results.fact('date')}" if gpu else "now: not measured yet"
        title = f"before: {baseline.GPU}, {baseline.DATE}; {now}; black lines: goals"
        figure.suptitle(title, fontsize=9, color="#555555")
        figure.savefig(path, format="svg", metadata={"Date": None})


def _shares(axes: Any, results: Results) -> None:
    axes.set_title("The engine: share of the card's fp16 ceiling, all outputs")

    def shares(source: Results, outputs: str, product: str) -> list[float | None]:
        rates = (source.value("engine", "flops_s", batch=batch, outputs=outputs) for batch in _BATCHES)
        return [_scaled(ratio(rate, ceiling(source, "float16", product)), 100) for rate in rates]

    bars = [
        ("before, at the clock of an instant", _BEFORE, shares(BASELINE, "all, float32 rows", "model")),
        ("now, at the clock of an instant", "#9ecae1", shares(results, "all, float16 rows", "model")),
        ("now, at the clock that the card sustains", _NOW, shares(results, "all, float16 rows", "sustained")),
    ]
    _grouped(axes, _BATCHES, bars, lambda value: f"{value:.0f}")
    for batch in ("128 x 256", "64 x 512"):
        group = _BATCHES.index(batch)
        axes.plot([group - 0.45, group + 0.45], [_SHARE_GOAL] * 2, color=_GOAL, linewidth=1.8)
        axes.annotate(f"goal: {_SHARE_GOAL}", (group - 0.45, _SHARE_GOAL), va="bottom", fontsize=7)
    axes.set_ylim(0, 100)
    axes.set_ylabel("% of the ceiling")
    axes.set_xlabel("texts x tokens")


def _passages(axes: Any, results: Results) -> None:
    axes.set_title("Mixed passages, from text to vectors")

    def rates(source: Results, figure: str) -> list[float | None]:
        return [_scaled(source.value("embedder", figure, step="embed", outputs=kind), 1e-3) for kind in _KINDS]

    def library(batch_size: int) -> list[float | None]:
        found = [
            next(
                (
                    rate
                    for source in (results, BASELINE)
                    if (rate := source.value("flagembedding", "tokens_s", batch_size=batch_size, outputs=kind))
                ),
                None,
            )
            for kind in ("dense", "dense + sparse", "all")
        ]
        return [_scaled(rate, 1e-3) for rate in (*found, None)]

    bars = [
        ("FlagEmbedding, batch 32", "#d9d9d9", library(32)),
        ("FlagEmbedding, batch 256", _OTHER, library(256)),
        ("before", _BEFORE, rates(BASELINE, "tokens_s")),
        ("now", _NOW, rates(results, "tokens_s")),
        ("the engine alone", "#9ecae1", rates(results, "engine_tokens_s")),
    ]
    _grouped(axes, _KINDS, bars, lambda value: f"{value:.0f}")
    axes.set_ylabel("thousand tokens/s")


def _clients(axes: Any, results: Results) -> None:
    axes.set_title("Short queries per second, by concurrent clients")
    lines = [
        ("before, 1 lane", _BEFORE, BASELINE, {"lanes": 1}),
        ("before, 4 lanes", _BEFORE_2, BASELINE, {"lanes": 4}),
        ("now", _NOW, results, {}),
    ]
    for label, colour, source, names in lines:
        rates = {
            clients: source.value("queries", "queries_s", clients=clients, beside=None, **names) for clients in _CLIENTS
        }
        points = {clients: rate for clients, rate in rates.items() if rate}
        if points:
            axes.plot(points.keys(), points.values(), "o-", color=colour, label=label)
    axes.plot([512], [_QUERIES_GOAL], "_", color=_GOAL, markersize=22, markeredgewidth=2)
    axes.annotate(f"goal: {_QUERIES_GOAL}    ", (512, _QUERIES_GOAL), ha="right", va="center", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(_CLIENTS, [str(clients) for clients in _CLIENTS])
    axes.set_xlabel("clients")
    axes.set_ylabel("queries/s")
    _legend(axes)


def _beside(axes: Any, results: Results) -> None:
    axes.set_title("How long one query takes, alone and beside passages")
    cases: list[tuple[str, str, Results, dict[str, Any]]] = [
        ("before, 1 lane, alone", _BEFORE, BASELINE, {"lanes": 1, "beside": None}),
        ("before, 1 lane, beside 64 x 512", _BEFORE, BASELINE, {"lanes": 1, "beside": "64 x 512"}),
        ("before, 4 lanes, alone", _BEFORE_2, BASELINE, {"lanes": 4, "beside": None}),
        ("before, 4 lanes, beside 64 x 512", _BEFORE_2, BASELINE, {"lanes": 4, "beside": "64 x 512"}),
        ("now, alone", _NOW, results, {"beside": None}),
        ("now, beside 64 x 512", _NOW, results, {"beside": "64 x 512"}),
        ("now, beside mixed", _NOW, results, {"beside": "mixed"}),
    ]
    cases.reverse()
    for index, (_, colour, source, names) in enumerate(cases):
        p50, p95 = (_scaled(source.value("queries", key, clients=1, **names), 1e3) for key in ("p50_s", "p95_s"))
        if p50 is None:
            axes.annotate(" not measured yet", (1.0, index), va="center", fontsize=8, color="#555555")
            continue
        if p95 is not None:
            axes.barh(index, p95, color=colour, alpha=0.45)
        axes.barh(index, p50, color=colour)
        shown = f" {p50:.3g} ms" + (f", p95 {p95:.3g}" if p95 is not None else "")
        end = max(p50, p95 or 0, 1.05 * _BESIDE_GOAL_MS if source is results else 0)  # beside the line of the goal
        axes.annotate(shown, (end, index), va="center", fontsize=8)
    axes.plot([_BESIDE_GOAL_MS] * 2, [-0.5, 1.5], color=_GOAL, linewidth=1.8)
    axes.set_yticks(range(len(cases)), [label for label, *_ in cases], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(1, 2000)
    axes.set_ylim(-0.6, len(cases) - 0.4)
    axes.set_xlabel("milliseconds: median in full colour, p95 pale")
    axes.grid(visible=False, axis="y")


def _grouped(axes: Any, groups: Sequence[str], series: Sequence[Series], shown: Callable[[float], str]) -> None:
    """Bars side by side, a value above each."""
    width = 0.8 / len(series)
    for index, (label, colour, values) in enumerate(series):
        for group, value in enumerate(values):
            place = group + (index - (len(series) - 1) / 2) * width
            if value is not None:
                axes.bar(place, value, width, color=colour)
                axes.annotate(shown(value), (place, value), ha="center", va="bottom", fontsize=7)
        axes.bar(
            0, 0, color=colour, label=label if any(value is not None for value in values) else f"{label}: not measured"
        )
    axes.set_xticks(range(len(groups)), [group.replace(", ", ",\n") for group in groups], fontsize=7)
    axes.grid(visible=False, axis="x")
    _legend(axes)


def _legend(axes: Any) -> None:
    """Below the axes, where it hides nothing."""
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
