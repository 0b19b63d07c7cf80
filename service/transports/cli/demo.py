"""The main job on the bundled corpus: embed, store, ask. Run with `bge-m3-qdrant demo`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import corpus
from qdrant_sink import Hit, SearchOptions
from service.operations import IngestRequest, Operations, SearchRequest
from service.settings import Settings

COLLECTION = "demo"
QUESTIONS_SHOWN = ("q01", "q10", "q19", "q36", "q42", "q50", "q56")
"""Questions whose hits are shown; all of them are scored."""
HITS_SHOWN = 3
HITS_SCORED = 10
INGEST_PASSAGES = 16
"""Passages per ingest: enough to fill a batch, few enough for the bar to move."""


class Demo:
    """Runs the steps and keeps how long each took."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self._settings = settings
        self._console = console
        self._seconds: dict[str, float] = {}
        self.figures: dict[str, Any] = {}
        """What `--json` prints, when `run` has returned."""

    def run(self) -> None:
        """All steps, in the order in which a user would take them."""
        with self._step("load the model"), self._console.status("loading the model"):
            operations = Operations.build(self._settings)
        try:
            self.figures |= {"model": operations.model_label, "store": operations.store_label, "collection": COLLECTION}
            self._console.print(f"Model  [bold]{operations.model_label}[/]")
            self._console.print(f"Store  [bold]{operations.store_label}[/], collection '{COLLECTION}'\n")
            asyncio.run(self._ingest_and_ask(operations))
        finally:
            operations.close()
        self._report()

    async def _ingest_and_ask(self, operations: Operations) -> None:
        passages, questions = corpus.passages(), corpus.questions()
        with self._step(f"ingest {len(passages)} passages"):
            await self._ingest(operations, passages)
        kinds = (await operations.collections.recognised(COLLECTION)).schema.kinds
        rerank: Literal["colbert"] | None = "colbert" if "colbert" in kinds else None
        with self._step(f"answer {len(questions)} questions"):
            result = await operations.search(
                SearchRequest(
                    queries=[question.query for question in questions],
                    collection=COLLECTION,
                    options=SearchOptions(rerank=rerank, limit=HITS_SCORED),
                )
            )
        for question, hits in zip(questions, result.hits, strict=True):
            if question.id in QUESTIONS_SHOWN:
                self._show(question, hits)
        self._score(questions, result.hits)

    async def _ingest(self, operations: Operations, passages: Sequence[corpus.Passage]) -> None:
        columns = (TextColumn("Ingesting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task("", total=len(passages))
            for start in range(0, len(passages), INGEST_PASSAGES):
                part = passages[start : start + INGEST_PASSAGES]
                result = await operations.ingest(
                    IngestRequest(
                        texts=[passage.text for passage in part],
                        collection=COLLECTION,
                        ids=[passage.id for passage in part],
                        payloads=[
                            {"title": passage.title, "topic": passage.topic, "language": passage.language}
                            for passage in part
                        ],
                    )
                )
                for point in result.report.rejected:
                    raise RuntimeError(f"a passage was refused: {point.cause.message}")
                progress.advance(bar, len(part))

    def _show(self, question: corpus.Question, hits: Sequence[Hit]) -> None:
        table = Table(box=None, show_header=False, padding=(0, 1), expand=True)
        table.add_column(justify="right", width=2)
        table.add_column(justify="right", width=6)
        table.add_column(ratio=1)
        for rank, hit in enumerate(hits[:HITS_SHOWN], start=1):
            payload = hit.payload or {}
            right = payload["id"] in question.answers
            title = Text(payload["title"], style="bold green" if right else "bold")
            title.append("  ✓ right answer" if right else "", style="green")
            title.append(f"\n{_shortened(payload['text'])}", style="not bold default")
            table.add_row(f"{rank}", f"{hit.known_score:.2f}", title)
        self._console.print(Text(f"? {question.query}", style="bold cyan"), Text(f"  ({question.kind})", style="dim"))
        self._console.print(table)
        best = _rank(question, hits)
        if best is None or best > HITS_SHOWN:
            where = f"at rank {best}" if best else f"not in the top {HITS_SCORED}"
            self._console.print(Text(f"   right answer {where}", style="yellow"))
        self._console.print()

    def _score(self, questions: Sequence[corpus.Question], hits: Sequence[Sequence[Hit]]) -> None:
        ranks = [_rank(question, one) for question, one in zip(questions, hits, strict=True)]
        within = {top: sum(rank is not None and rank <= top for rank in ranks) for top in (1, HITS_SHOWN, HITS_SCORED)}
        self.figures |= {"questions": len(ranks), "right_answers": {f"top_{top}": n for top, n in within.items()}}
        self._console.print(
            f"Right answer first: [bold]{within[1]}[/] of {len(ranks)} questions, "
            f"in the top {HITS_SHOWN}: [bold]{within[HITS_SHOWN]}[/], "
            f"in the top {HITS_SCORED}: [bold]{within[HITS_SCORED]}[/].\n"
            "Scores are MaxSim: the sum, over the query's tokens, of the best match in the passage.\n"
        )

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds[name] = time.perf_counter() - started

    def _report(self) -> None:
        self.figures["seconds"] = {name: round(seconds, 2) for name, seconds in self._seconds.items()}
        table = Table("step", "seconds", title="Time", title_justify="left", title_style="bold")
        table.columns[1].justify = "right"
        for name, seconds in self._seconds.items():
            table.add_row(name, f"{seconds:.2f}")
        self._console.print(table)


def _rank(question: corpus.Question, hits: Sequence[Hit]) -> int | None:
    """Where the first right answer stands, from 1; None if it is not among the hits."""
    right = (rank for rank, hit in enumerate(hits, start=1) if (hit.payload or {})["id"] in question.answers)
    return next(right, None)


def _shortened(text: str, width: int = 110) -> str:
    return text if len(text) <= width else text[: width - 1].rsplit(" ", 1)[0] + "…"


def run(*, as_json: bool = False) -> None:
    """Run the demo on the settings of the environment.

    Args:
        as_json: print the figures as one line of JSON rather than what a person reads.

    Raises:
        ConfigurationError: the settings are invalid.
        WorkerError: a step failed.
        RuntimeError: a passage was rejected.
    """
    demo = Demo(Settings.from_environment(), Console(highlight=False, quiet=as_json))
    demo.run()
    if as_json:
        click.echo(json.dumps(demo.figures, ensure_ascii=False))
