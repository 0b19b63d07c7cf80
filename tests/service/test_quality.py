"""Retrieval quality on the bundled questions: what each way of searching is worth, and that 16 bits lose none of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import corpus
from benchmarks.quality import BM25, DENSE, GROUPS, HYBRID, RERANKED, WAYS, Quality, baseline, measure, render
from embedder.embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT

ALL = GROUPS[0]
LOSS = 0.005
"""Of nDCG@10 and recall@10 by 16 bits, as a share."""

Measured = dict[str, dict[str, Quality]]


def _measured(embedder: Embedder, root: Path) -> Measured:
    operations = Operations(Settings.from_environment(ENVIRONMENT), embedder, EdgeStore(root))
    try:
        return measure(operations)
    finally:
        operations._calls.opened().close()  # the model is the session's


@pytest.fixture(scope="module")
def float32(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Every way of searching, in float32."""
    return _measured(embedder, tmp_path_factory.mktemp("float32"))


@pytest.fixture(scope="module")
def bm25() -> dict[str, Quality]:
    """The baseline."""
    return baseline()


def test_every_way_beats_words(float32: Measured, bm25: dict[str, Quality]) -> None:
    """Each kind of vector, and each combination, finds more than BM25, and finds it earlier."""
    for group in GROUPS:
        for way in WAYS:
            assert float32[way][group].ndcg > bm25[group].ndcg, (way, group)
            assert float32[way][group].recall > bm25[group].recall, (way, group)


def test_reranking_is_worth_its_time(float32: Measured) -> None:
    """Reranked hybrid search is at least as good as any kind of vector alone, and better than its fusion."""
    for group in GROUPS:
        reranked = float32[RERANKED][group]
        for way in (DENSE, "sparse", HYBRID):
            assert reranked.ndcg >= float32[way][group].ndcg + 0.02, (way, group)
            assert reranked.recall >= float32[way][group].recall + 0.02, (way, group)
    assert float32[RERANKED][ALL].ndcg > 0.7
    assert float32[RERANKED][ALL].recall > 0.85


def test_sixteen_bits_lose_nothing(float32: Measured, tmp_path: Path) -> None:
    """In float16 the service finds as much as in float32, to half a per cent."""
    settings = Settings.from_environment({**ENVIRONMENT, "DTYPE": "float16"})
    embedder = Embedder.load(settings.model_options)
    try:
        halves = _measured(embedder, tmp_path)
    finally:
        embedder.close()
    for way in WAYS:
        for group in GROUPS:
            assert halves[way][group].ndcg >= float32[way][group].ndcg * (1 - LOSS), (way, group)
            assert halves[way][group].recall >= float32[way][group].recall * (1 - LOSS), (way, group)


def test_quality_counts_right_answers_and_their_ranks() -> None:
    """All answers first is 1; the right one at rank 3: 1 / log2(4); one of two found: half the recall."""
    passages = corpus.passages()[:5]
    ids = [passage.id for passage in passages]
    first, second = corpus.questions()[:2]
    one = corpus.Question(first.id, first.query, "en", [ids[2]], first.kind)
    two = corpus.Question(second.id, second.query, "en", [ids[0], ids[4]], second.kind)
    assert Quality.of(np.array([[0, 1, 2]]), [one], passages) == Quality(0.5, 1.0)
    assert Quality.of(np.array([[0, 1, -1]]), [two], passages).recall == 0.5
    assert Quality.of(np.array([[4, 0, -1]]), [two], passages) == Quality(1.0, 1.0)
    assert Quality.of(np.array([[2, -1, -1], [1, 2, 3]]), [one, two], passages) == Quality(0.5, 0.5)


def test_the_table_stands_in_the_docs(bm25: dict[str, Quality]) -> None:
    """The report names the model, the type and the baseline, and the docs hold one."""
    made = {way: {group: Quality(0.5, 0.25) for group in GROUPS} for way in WAYS}
    text = render({"float32": made}, bm25, model="some", date="2020-01-02T00:00", notes="by hand")
    assert "Model: some." in text
    assert "by hand" in text
    assert "| dense | .500 | .250 |" in text
    written = (Path(__file__).parents[2] / "docs" / "retrieval.md").read_text(encoding="utf-8")
    assert f"| {BM25} | {bm25[ALL].ndcg:.3f} |".replace("0.", ".") in written
