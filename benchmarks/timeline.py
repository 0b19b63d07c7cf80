"""The plot of the overlap: when the model computed and when the store wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib.figure import Figure

from benchmarks.ingest import Ingest
from benchmarks.plot import STYLE
from benchmarks.spans import Span, rows

_MODEL, _STORE = "#20639b", "#d99a2b"
_HEIGHT = 0.8


def draw(ingests: Sequence[Ingest], path: Path, *, title: str) -> None:
    """One pair of axes per store: passes of the model above, upserts below, concurrent ones in rows of their own."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 2.6 * len(ingests)), layout="constrained")
        every = figure.subplots(len(ingests), 1, squeeze=False, sharex=True)
        for (axes,), ingest in zip(every, ingests, strict=True):
            _timeline(axes, ingest)
        every[-1][0].set_xlabel("seconds")
        figure.suptitle(title, fontsize=9, color="#555555")
        figure.savefig(path, format="svg", metadata={"Date": None})


def _timeline(axes: Any, ingest: Ingest) -> None:
    timeline = ingest.timeline
    hidden = "" if timeline.hidden is None else f"; {100 * timeline.hidden:.0f} % of the store's time beside the model"
    axes.set_title(f"{ingest.store}: {ingest.texts} texts in {timeline.seconds:.2f} s{hidden}", fontsize=9)
    _bars(axes, timeline.model, [0] * len(timeline.model), _MODEL)
    levels = rows(timeline.store)
    _bars(axes, timeline.store, [1 + row for row in levels], _STORE)
    names = ["model", *(f"store {row + 1}" for row in range(max(levels, default=0) + 1))]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, timeline.seconds)
    axes.grid(visible=False, axis="y")


def _bars(axes: Any, spans: Sequence[Span], levels: Sequence[int], colour: str) -> None:
    for span, row in zip(spans, levels, strict=True):
        axes.broken_barh(
            [(span.start, span.end - span.start)],
            (row - _HEIGHT / 2, _HEIGHT),
            color=colour,
            edgecolor="white",
            linewidth=0.4,
        )
