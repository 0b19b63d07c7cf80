"""The plot of the search: how long it takes as a collection grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib.figure import Figure

from benchmarks.latencies import Case
from benchmarks.plot import STYLE

_COLOURS = ("#20639b", "#3caea3", "#d99a2b", "#8a6fb0", "#b0413e", "#999999")


def draw(cases: Sequence[Case], path: Path, *, title: str) -> None:
    """Medians by the number of points: without the graph on the left, with it on the right."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        for axes, graph in zip(figure.subplots(1, 2, sharey=True), (False, True), strict=True):
            _growth(axes, [case for case in cases if case.graph == graph], graph=graph)
        figure.suptitle(title, fontsize=9, color="#555555")
        figure.savefig(path, format="svg", metadata={"Date": None})


def _growth(axes: Any, cases: Sequence[Case], *, graph: bool) -> None:
    axes.set_title("With the HNSW graph" if graph else "Without a graph")
    ways = list(cases[0].latencies) if cases else []
    for way, colour in zip(ways, _COLOURS, strict=False):
        medians = [case.latencies[way].p50 for case in cases]
        axes.plot([case.shape.points for case in cases], medians, "o-", color=colour, label=way)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("points")
    axes.set_ylabel("milliseconds, median")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)
