"""The quality of hits: the bundled questions, asked of the service. `make quality`.

make quality                                     half a minute
make quality ARGS="--model /path --dtypes float32 int8"

The passages are ingested into Qdrant Edge and the questions searched by the operations of the worker, so that the
figures are those of its answers. Beside them stands BM25 over the same passages.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

import corpus
from benchmarks.report import kept_notes
from benchmarks.sections import table
from embedder import KINDS, Embedder
from precision.ranking import Ranking, ndcg, top
from qdrant_sink import PayloadKeys, SearchOptions
from qdrant_sink.edge import EdgeStore
from service.operations import IngestRequest, Operations, SearchRequest
from service.settings import Settings

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "retrieval.md"
DEPTH: Final = 10
COLLECTION = "corpus"
BM25 = "BM25"
_OPTIONS: Final = SearchOptions(limit=DEPTH, with_payload=PayloadKeys(("id",)))
WAYS: Final[Mapping[str, SearchOptions]] = {
    "dense": replace(_OPTIONS, using=("dense",)),
    "sparse": replace(_OPTIONS, using=("sparse",)),
    "ColBERT": replace(_OPTIONS, using=("colbert",)),
    "hybrid (dense + sparse, RRF)": _OPTIONS,
    "hybrid, reranked by ColBERT": replace(_OPTIONS, rerank="colbert"),
}
"""The search options of each kind of search."""
DENSE, HYBRID, RERANKED = "dense", "hybrid (dense + sparse, RRF)", "hybrid, reranked by ColBERT"
TYPES: Final = ("float32", "float16", "bfloat16")
"""Types of the model: float32, with which the others are compared, and what `DTYPE=auto` chooses between."""
GROUPS: Final = ("all questions", "English questions")


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over questions, each in [0, 1].

    Attributes:
        ndcg: nDCG@10.
        recall: the share of the right answers that are among the first ten.
    """

    ndcg: float
    recall: float

    @classmethod
    def of(cls, ranking: Ranking, questions: Sequence[corpus.Question], passages: Sequence[corpus.Passage]) -> Quality:
        """The quality of the rankings [Q, <= 10] of these questions."""
        relevant = np.array([[passage.id in question.answers for passage in passages] for question in questions])
        found = (np.take_along_axis(relevant, np.maximum(ranking, 0), axis=1) & (ranking >= 0)).sum(axis=1)
        return cls(float(ndcg(ranking, relevant).mean()), float((found / relevant.sum(axis=1)).mean()))


Measured = Mapping[str, Mapping[str, Quality]]
"""Quality by way of searching, then by group of questions."""


def measure(operations: Operations) -> dict[str, dict[str, Quality]]:
    """Ingest the bundled passages and search for the bundled questions in every way."""
    passages, questions = corpus.passages(), corpus.questions()
    place = {passage.id: number for number, passage in enumerate(passages)}

    async def run() -> dict[str, Ranking]:
        texts, ids = [passage.text for passage in passages], [passage.id for passage in passages]
        await operations.ingest(IngestRequest(texts, vectors=KINDS, collection=COLLECTION, ids=ids))
        queries = [question.query for question in questions]
        rankings = {}
        for way, options in WAYS.items():
            result = await operations.search(SearchRequest(queries, collection=COLLECTION, options=options))
            ranking = np.full((len(questions), DEPTH), -1, np.int64)
            for row, hits in zip(ranking, result.hits, strict=True):
                row[: len(hits)] = [place[(hit.payload or {})["id"]] for hit in hits]
            rankings[way] = ranking
        return rankings

    return {way: _by_group(ranking, questions, passages) for way, ranking in asyncio.run(run()).items()}


def baseline() -> dict[str, Quality]:
    """Okapi BM25 over lower-cased words, without stems and stop words: k1 = 1.2, b = 0.75, as Lucene counts."""
    import bm25s

    passages, questions = corpus.passages(), corpus.questions()
    index = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    index.index([_words(passage.text) for passage in passages], show_progress=False)
    scores = np.zeros((len(questions), len(passages)))
    for row, question in zip(scores, questions, strict=True):
        known_words = [word for word in _words(question.query) if word in index.vocab_dict]
        if known_words:
            row[:] = index.get_scores(known_words)
    return _by_group(top(scores, DEPTH, above=0.0), questions, passages)


def render(measured: Mapping[str, Measured], bm25: Mapping[str, Quality], *, model: str, date: str, notes: str) -> str:
    """The report as Markdown.

    Args:
        measured: by type of the model.
        bm25: by group of questions.
        model: its name.
        date: ISO 8601.
        notes: the section written by hand, markers included.
    """
    every, english = (len(questions) for questions in _grouped(corpus.questions()).values())
    intro = (
        f"Made by `make quality` on {date[:10]}. Model: {model}. {every} questions, {english} of them in English, among"
        f" the {len(corpus.passages())} passages of the [bundled corpus](../corpus/README.md), which says what so small"
        " numbers mean: one question is about .02. The searches are those of the worker over Qdrant Edge, with its"
        " defaults. BM25: lower-cased words, no stems, no stop words, k1 = 1.2, b = .75."
    )
    parts = ["# Retrieval quality", intro, notes]
    for group in GROUPS:
        head = ["", *(f"{metric}, {dtype}" for dtype in measured for metric in ("nDCG@10", "recall@10"))]
        rows = [(BM25, *_cells(bm25[group]), *[""] * (len(head) - 3))]
        rows += [(way, *(cell for ways in measured.values() for cell in _cells(ways[way][group]))) for way in WAYS]
        parts.append(f"## {group.capitalize()}\n\n{table(head, rows)}")
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="mini", help="as MODEL_ID")
    parser.add_argument("--dtypes", nargs="+", default=TYPES, help="as DTYPE, one after the other")
    parser.add_argument("--device", default="cpu", help="as GPU_DEVICE")
    parser.add_argument("--report", type=Path, default=REPORT)
    options = parser.parse_args()
    measured = {}
    for dtype in options.dtypes:
        environment = {"MODEL_ID": options.model, "GPU_DEVICE": options.device, "DTYPE": dtype}
        settings = Settings.from_environment(environment)
        with tempfile.TemporaryDirectory() as root:
            operations = Operations(settings, Embedder.load(settings.model_options), EdgeStore(root))
            try:
                measured[dtype] = measure(operations)
            finally:
                operations.close()
    model = Path(options.model).name if Path(options.model).is_dir() else options.model
    date = datetime.now(UTC).isoformat(timespec="seconds")
    text = render(measured, baseline(), model=model, date=date, notes=kept_notes(options.report))
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(text, encoding="utf-8")
    print(text)


def _by_group(
    ranking: Ranking, questions: Sequence[corpus.Question], passages: Sequence[corpus.Passage]
) -> dict[str, Quality]:
    return {
        group: Quality.of(ranking[rows], [questions[row] for row in rows], passages)
        for group, rows in _grouped(questions).items()
    }


def _grouped(questions: Sequence[corpus.Question]) -> dict[str, list[int]]:
    """The places of the questions of each group."""
    english = [row for row, question in enumerate(questions) if question.language == "en"]
    return dict(zip(GROUPS, (list(range(len(questions))), english), strict=True))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _cells(quality: Quality) -> tuple[str, str]:
    return f"{quality.ndcg:.3f}".lstrip("0"), f"{quality.recall:.3f}".lstrip("0")


if __name__ == "__main__":
    main()
