"""Retrieval quality on the bundled questions equals the documented figures, also with 16-bit types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import corpus
from benchmarks.quality import BM25, DENSE, GROUPS, HYBRID, RERANKED, TYPES, WAYS, Quality, baseline, measure, render
from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT

LOSS = {"float16": 0.005, "bfloat16": 0.03}
"""Maximum relative loss of nDCG@10 and recall@10 with a 16-bit type."""

ONE_QUESTION = 0.02
"""Change of a mean by one question, since processors round differently."""

DOCS = Path(__file__).parents[2] / "docs" / "retrieval.md"

Measured = dict[str, dict[str, Quality]]


def _measured(embedder: Embedder, root: Path) -> Measured:
    store = EdgeStore(root)
    try:
        return measure(Operations(Settings.from_environment(ENVIRONMENT), embedder, store))
    finally:
        store.close()  # not the operations, since the model belongs to the session


@pytest.fixture(scope="module")
def float32(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Every way of searching, in float32."""
    return _measured(embedder, tmp_path_factory.mktemp("float32"))


@pytest.fixture(scope="module")
def bm25() -> dict[str, Quality]:
    """The baseline."""
    return baseline()


@pytest.mark.slow
def test_every_way_beats_words(float32: Measured, bm25: dict[str, Quality]) -> None:
    """Each kind of vector, and each combination, finds more than BM25, and finds it earlier."""
    for group in GROUPS:
        for way in WAYS:
            assert float32[way][group].ndcg > bm25[group].ndcg, (way, group)
            assert float32[way][group].recall > bm25[group].recall, (way, group)


def test_reranking_improves_the_quality(float32: Measured) -> None:
    """Reranked hybrid search is at least as good as any kind of vector alone, and better than its fusion."""
    for group in GROUPS:
        reranked = float32[RERANKED][group]
        for way in (DENSE, "sparse", HYBRID):
            assert reranked.ndcg >= float32[way][group].ndcg + 0.02, (way, group)
            assert reranked.recall >= float32[way][group].recall + 0.02, (way, group)


def documented() -> dict[str, dict[str, list[Quality]]]:
    """The documented figures by group and way of searching, for each type in the order of `TYPES`."""
    tables: dict[str, dict[str, list[Quality]]] = {}
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            [group] = [group for group in GROUPS if group.capitalize() == line[3:]]
            tables[group] = {}
        elif line.startswith("|") and tables:
            way, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            if way and cells[0].startswith("."):
                figures = [float(cell) for cell in cells if cell]
                tables[list(tables)[-1]][way] = [
                    Quality(*pair) for pair in zip(figures[::2], figures[1::2], strict=True)
                ]
    return tables


def assert_documented(measured: Measured, dtype: str) -> None:
    """Check that the documented figures agree up to one question."""
    tables = documented()
    assert set(tables) == set(GROUPS)
    for group in GROUPS:
        assert set(tables[group]) == {BM25, *WAYS}
        for way in WAYS:
            written, actual = tables[group][way][TYPES.index(dtype)], measured[way][group]
            assert actual.ndcg == pytest.approx(written.ndcg, abs=ONE_QUESTION), (way, group)
            assert actual.recall == pytest.approx(written.recall, abs=ONE_QUESTION), (way, group)


def test_the_documented_figures_hold(float32: Measured, bm25: dict[str, Quality]) -> None:
    """The documented figures hold up to one question, and those of the baseline exactly."""
    assert_documented(float32, "float32")
    for group in GROUPS:
        exact = Quality(round(bm25[group].ndcg, 3), round(bm25[group].recall, 3))
        assert documented()[group][BM25] == [exact]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_lose_nothing(float32: Measured, tmp_path: Path, dtype: str) -> None:
    """Both 16-bit types, which `DTYPE=auto` may choose, keep the quality of float32 and the documented figures."""
    settings = Settings.from_environment({**ENVIRONMENT, "DTYPE": dtype})
    embedder = Embedder.load(settings.model_options)
    try:
        halves = _measured(embedder, tmp_path)
    finally:
        embedder.close()
    assert_documented(halves, dtype)
    kept = 1 - LOSS[dtype]
    for way in WAYS:
        for group in GROUPS:
            assert halves[way][group].ndcg >= float32[way][group].ndcg * kept, (way, group)
            assert halves[way][group].recall >= float32[way][group].recall * kept, (way, group)


def test_quality_counts_right_answers_and_their_ranks() -> None:
    """The nDCG is 1 with all answers first and 1 / log2(4) with the answer at rank 3; recall counts the answers."""
    passages = corpus.passages()[:5]
    ids = [passage.id for passage in passages]
    first, second = corpus.questions()[:2]
    one = corpus.Question(first.id, first.query, "en", [ids[2]], first.kind)
    two = corpus.Question(second.id, second.query, "en", [ids[0], ids[4]], second.kind)
    assert Quality.of(np.array([[0, 1, 2]]), [one], passages) == Quality(0.5, 1.0)
    assert Quality.of(np.array([[0, 1, -1]]), [two], passages).recall == 0.5
    assert Quality.of(np.array([[4, 0, -1]]), [two], passages) == Quality(1.0, 1.0)
    assert Quality.of(np.array([[2, -1, -1], [1, 2, 3]]), [one, two], passages) == Quality(0.5, 0.5)


def test_the_report_names_what_was_measured(bm25: dict[str, Quality]) -> None:
    """The report has the model, the notes and a row for each way of searching."""
    measured = {way: {group: Quality(0.5, 0.25) for group in GROUPS} for way in WAYS}
    text = render({"float32": measured}, bm25, model="some", date="2020-01-02T00:00", notes="by hand")
    assert "Model: some." in text
    assert "by hand" in text
    assert "| dense | .500 | .250 |" in text
