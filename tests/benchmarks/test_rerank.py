"""The documented quality of the weightings of a rerank holds, and the default is as good as any other."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rerank import WEIGHTINGS, RankingQuality, quality, rendered, time_ratio
from embedder import Embedder
from service.operations import Operations, Weights
from service.settings import Settings
from tests.service.client import ENVIRONMENT

PAGE = Path(__file__).parents[2] / "docs" / "rerank.md"
ONE_QUESTION = 0.02
"""Change of a mean by one question, since processors round differently."""


def test_quality_counts_the_rank_of_the_first_right_passage() -> None:
    """The reciprocal rank is 1 / rank, and 0 for a question without a right passage in its ranking."""
    relevant = np.array([[True, False, False], [False, True, True], [False, False, True]])
    ranking = np.array([[1, 0], [1, 2], [0, -1]])
    assert RankingQuality.of(ranking, relevant).mrr == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert RankingQuality.of(ranking[1:2], relevant[1:2]) == RankingQuality(1.0, 1.0)


@pytest.mark.slow
def test_the_documented_figures_hold() -> None:
    """The table of the page holds up to one question, and no weighting beats the default by more."""
    embedder = Embedder.load(Settings.from_environment(ENVIRONMENT).model_options)
    try:
        measured = quality(embedder)
    finally:
        embedder.close()
    shown = re.search(r"<!-- weights -->\n(.*)\n<!-- /weights -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown[1].splitlines()]
    head, _, *weightings = rows
    assert head == [cell.strip() for cell in rendered(measured).splitlines()[0].strip("|").split("|")]
    assert [name for name, *_ in weightings] == list(measured) == list(WEIGHTINGS)
    for name, *cells in weightings:
        figures = [figure for pair in measured[name] for figure in (pair.ndcg, pair.mrr)]
        assert figures == pytest.approx([float(cell) for cell in cells], abs=ONE_QUESTION), name
    assert WEIGHTINGS["1, 1, 1 (default)"] == Weights(*Settings.from_environment(ENVIRONMENT).rerank_weights)
    default = measured["1, 1, 1 (default)"]
    for pair in measured.values():
        for mine, other in zip(default, pair, strict=True):
            assert other.ndcg <= mine.ndcg + ONE_QUESTION
            assert other.mrr <= mine.mrr + ONE_QUESTION


@pytest.mark.slow
def test_the_time_is_compared_with_that_of_embedding() -> None:
    """The line names both times, their ratio and whether the goal is met."""
    settings = Settings.from_environment(ENVIRONMENT)
    embedder = Embedder.load(settings.model_options)
    try:
        line = time_ratio(Operations(settings, embedder), embedder, "a query", ["one", "two"], rounds=1)
    finally:
        embedder.close()
    assert re.fullmatch(r"rerank of 2 documents \d+ ms, .* \d+ ms: \d+\.\d\d x \(goal: at most 1\.1 x, \w+\)", line)
