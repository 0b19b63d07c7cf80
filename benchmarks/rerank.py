"""What a rerank costs beside the embedding of the same texts, and how well each weighting ranks.

python -m benchmarks.rerank                                       the time, with `mini`: half a minute
python -m benchmarks.rerank --model BAAI/bge-m3 --device cuda:0   with another model
python -m benchmarks.rerank --quality                             the quality on the bundled questions, per weighting

A rerank of N documents and `Embedder.embed` of the query and the same documents, with the same kinds of vectors, take
turns in one process. The ratio is the median of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

import corpus
from benchmarks.sections import table
from benchmarks.texts import Writer
from embedder import KINDS, Embedder, Embedding, Outputs, Priority
from precision.ranking import Ranking, ndcg, top
from service.operations import Operations, RerankRequest, Weights
from service.operations.pair_scores import kind_score
from service.settings import Settings

MINI: Final = Path(__file__).parents[1] / "embedder" / "checkpoint" / "mini"
GOAL: Final = 1.1
"""Maximum time of a rerank beside the embedding of its texts."""

DEPTH: Final = 10
CANDIDATES: Final = 20
WEIGHTINGS: Final[Mapping[str, Weights]] = {
    "1, 1, 1 (default)": Weights(1, 1, 1),
    "0.4, 0.2, 0.4": Weights(0.4, 0.2, 0.4),
    "1, 0.3, 1": Weights(1, 0.3, 1),
    "0.2, 0.2, 0.6": Weights(0.2, 0.2, 0.6),
    "1, 1, 0": Weights(1, 1, 0),
    "1, 0, 0": Weights(1, 0, 0),
    "0, 1, 0": Weights(0, 1, 0),
    "0, 0, 1": Weights(0, 0, 1),
}
"""The weightings that are compared: dense, sparse, colbert."""


@dataclass(frozen=True, slots=True)
class RankingQuality:
    """Means over the bundled questions, each in [0, 1].

    Attributes:
        ndcg: nDCG@10.
        mrr: the mean of 1 / rank of the first right passage, or of 0 beyond rank 10.
    """

    ndcg: float
    mrr: float

    @classmethod
    def of(cls, ranking: Ranking, relevant: NDArray[np.bool_]) -> RankingQuality:
        """The quality of rankings [Q, 10], where `relevant` [Q, P] tells the right passages of each question."""
        right = np.take_along_axis(relevant, np.maximum(ranking, 0), axis=1) & (ranking >= 0)
        reciprocal = np.where(right.any(axis=1), 1 / (right.argmax(axis=1) + 1), 0)
        return cls(float(ndcg(ranking, relevant).mean()), float(reciprocal.mean()))


def quality(embedder: Embedder) -> dict[str, tuple[RankingQuality, RankingQuality]]:
    """The quality of each weighting: over all passages, and over the 20 that dense vectors find."""
    passages, questions = corpus.passages(), corpus.questions()
    relevant = np.array([[passage.id in question.answers for passage in passages] for question in questions])
    texts = [question.query for question in questions] + [passage.text for passage in passages]
    embedded = asyncio.run(embedder.embed(texts, Outputs(), max_length=embedder.max_length, priority=Priority.PASSAGE))
    vectors = [result for result in embedded if isinstance(result, Embedding)]
    queries, documents = vectors[: len(questions)], vectors[len(questions) :]
    scores = {
        kind: np.array([[kind_score(kind, query, document) for document in documents] for query in queries])
        for kind in KINDS
    }
    found = np.zeros_like(relevant)
    np.put_along_axis(found, top(scores["dense"], CANDIDATES), True, axis=1)  # noqa: FBT003 - numpy's
    qualities = {}
    for name, weights in WEIGHTINGS.items():
        total = weights.dense + weights.sparse + weights.colbert
        means = sum(getattr(weights, kind) * scores[kind] for kind in KINDS) / total
        over_all, over_found = top(means, DEPTH), top(np.where(found, means, -np.inf), DEPTH)
        qualities[name] = (RankingQuality.of(over_all, relevant), RankingQuality.of(over_found, relevant))
    return qualities


def rendered(qualities: Mapping[str, tuple[RankingQuality, RankingQuality]]) -> str:
    """The qualities as a table."""
    columns = ("all passages", f"the {CANDIDATES} that dense vectors find")
    head = ["weights", *(f"{metric}, {column}" for column in columns for metric in ("nDCG@10", "MRR@10"))]
    rows = [
        (name, *(f"{figure:.3f}".lstrip("0") for quality in pair for figure in (quality.ndcg, quality.mrr)))
        for name, pair in qualities.items()
    ]
    return table(head, rows)


def time_ratio(operations: Operations, embedder: Embedder, query: str, documents: list[str], rounds: int) -> str:
    """Measure both sides in turn, and describe the ratio."""
    limit = operations.limits.passage
    outputs = Outputs()

    async def measure() -> list[tuple[float, float]]:
        seconds = []
        for _ in range(rounds + 1):
            rerank = await _seconds(operations.rerank(RerankRequest(query, documents, Weights())))
            texts = [query, *documents]
            embed = await _seconds(embedder.embed(texts, outputs, max_length=limit, priority=Priority.PASSAGE))
            seconds.append((rerank, embed))
        return seconds[1:]  # the first round warms both

    seconds = asyncio.run(measure())
    ratio = statistics.median(rerank / embed for rerank, embed in seconds)
    rerank, embed = (statistics.median(side) for side in zip(*seconds, strict=True))
    verdict = "met" if ratio <= GOAL else "missed"
    return (
        f"rerank of {len(documents)} documents {1e3 * rerank:.0f} ms, their embedding {1e3 * embed:.0f} ms: "
        f"{ratio:.2f} x (goal: at most {GOAL} x, {verdict})"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rerank", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="mini", help="as MODEL_ID")
    parser.add_argument("--device", default="cpu", help="as GPU_DEVICE")
    parser.add_argument("--dtype", default="auto", help="as DTYPE")
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a document")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quality", action="store_true", help="measure the quality instead of the time")
    options = parser.parse_args()
    environment = {"MODEL_ID": options.model, "GPU_DEVICE": options.device, "DTYPE": options.dtype}
    settings = Settings.from_environment(environment)
    embedder = Embedder.load(settings.model_options)
    try:
        if options.quality:
            print(rendered(quality(embedder)))
            return
        writer = Writer(MINI / "tokenizer.json", seed=0)
        documents = [writer.text(options.tokens) for _ in range(options.documents)]
        operations = Operations(settings, embedder)
        print(time_ratio(operations, embedder, writer.text(12), documents, options.rounds))
    finally:
        embedder.close()


async def _seconds(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
