"""`score` returns the scores of FlagEmbedding's `compute_score` on the same checkpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder import Embedder
from service.operations import Operations
from service.operations.pair_scores import groups
from service.settings import Settings
from tests.embedder.oracle import TOLERANCE, Oracle
from tests.embedder.texts import TEXTS
from tests.service.client import ENVIRONMENT, Client, Json, until
from tests.service.conftest import Serve
from tests.service.doubles import Watched
from tests.service.wrappers import embedder_over
from training.random_checkpoint import build

SCORE_KINDS = ("dense", "sparse", "colbert", "sparse+dense", "colbert+sparse+dense")
QUERIES = ("send only what changed", "", "data data data", "THE <mask> of \u5411\u91cf")
PASSAGES = ("rsync copies only what changed.", "", "data data, data!", TEXTS["emoji"], TEXTS["many words"])
LENGTHS = {"maxQueryLength": 512, "maxPassageLength": 512}
PAIRS = [list(pair) for pair in product(QUERIES, PASSAGES)]


@pytest.fixture(scope="module", params=["mini", "random"])
def compared(
    request: pytest.FixtureRequest, embedder: Embedder, oracle: Oracle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Client, Oracle]]:
    """A worker and FlagEmbedding on one checkpoint: the miniature, and one of random weights."""
    if request.param == "mini":
        yield Client(Operations(Settings.from_environment(ENVIRONMENT), embedder)), oracle
        return
    path = build(tmp_path_factory.mktemp("score") / "random", hidden=48, layers=2, heads=4, intermediate=64, seed=5)
    environment = {**ENVIRONMENT, "MODEL_ID": str(path)}
    worker = Client(Operations.build(Settings.from_environment(environment)))
    yield worker, Oracle(path)
    worker.operations.close()


def theirs(oracle: Oracle, pairs: list[list[str]], **fields: Any) -> dict[str, list[float]]:
    """FlagEmbedding's scores in batches of one pair, thus without padding."""
    lengths = {"max_query_length": 512, "max_passage_length": 512}
    scores: dict[str, list[float]] = oracle._model.compute_score(pairs, batch_size=1, **{**lengths, **fields})
    return scores


def assert_equal(answer: Json, expected: dict[str, list[float]]) -> None:
    """Check the scores of all five kinds."""
    assert answer["errors"] == []
    assert set(answer["scores"]) == set(SCORE_KINDS) == set(expected)
    for kind in SCORE_KINDS:
        assert np.abs(np.array(answer["scores"][kind]) - np.array(expected[kind])).max() <= TOLERANCE, kind


def test_scores_are_those_of_flagembedding(compared: tuple[Client, Oracle]) -> None:
    """All five kinds of scores agree for empty, repetitive, foreign and long texts."""
    worker, oracle = compared
    assert_equal(worker.good({"operation": "score", "pairs": PAIRS, **LENGTHS}), theirs(oracle, PAIRS))


@pytest.mark.parametrize("weights", [[0.4, 0.2, 0.4], [0, 1, 0], [1.0, 0.0, 3.0], [1_000_000, 2, 7]])
def test_weights_are_those_of_flagembedding(compared: tuple[Client, Oracle], weights: list[float]) -> None:
    """Weights are those of dense, sparse and colbert in this order, and need not add up to 1."""
    worker, oracle = compared
    answer = worker.good({"operation": "score", "pairs": PAIRS[:7], "weights": weights, **LENGTHS})
    assert_equal(answer, theirs(oracle, PAIRS[:7], weights_for_different_modes=weights))


def test_lengths_cut_as_in_flagembedding(compared: tuple[Client, Oracle]) -> None:
    """`maxQueryLength` and `maxPassageLength` truncate queries and passages independently."""
    worker, oracle = compared
    pairs = [[TEXTS["many words"], TEXTS["many words"]], [TEXTS["a sentence"], TEXTS["repeats"]]]
    raw = {"operation": "score", "pairs": pairs, "maxQueryLength": 5, "maxPassageLength": 17}
    assert_equal(worker.good(raw), theirs(oracle, pairs, max_query_length=5, max_passage_length=17))


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True)
@given(pairs=st.lists(st.lists(words, min_size=2, max_size=2), min_size=1, max_size=4))
def test_any_unicode_is_scored_as_flagembedding_does(compared: tuple[Client, Oracle], pairs: list[list[str]]) -> None:
    """The scores agree for any valid Unicode."""
    worker, oracle = compared
    assert_equal(worker.good({"operation": "score", "pairs": pairs}), theirs(oracle, pairs))


def test_a_pair_is_scored_as_it_is_alone(compared: tuple[Client, Oracle]) -> None:
    """Other pairs of a job change a score by rounding at most."""
    worker, _ = compared
    together = worker.good({"operation": "score", "pairs": PAIRS})["scores"]
    for index in (0, 9, 19):
        alone = worker.good({"operation": "score", "pairs": [PAIRS[index]]})["scores"]
        for kind in SCORE_KINDS:
            assert alone[kind] == pytest.approx([together[kind][index]], abs=1e-5)


def test_equal_texts_are_embedded_once(watched: Watched) -> None:
    """A query with many passages is embedded once, and `usage` counts the embedded tokens."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder))
    watched.engine.batches.clear()
    pairs = [["one query", f"passage {n}"] for n in (1, 2, 1)]
    answer = worker.good({"operation": "score", "pairs": pairs})
    assert sum(len(batch) for batch in watched.engine.batches) == 3
    assert answer["usage"] == {"tokens": sum(map(sum, watched.engine.batches))}
    assert answer["model"] == "mini"
    assert answer["scores"]["dense"][0] == answer["scores"]["dense"][2]


def test_a_failed_text_fails_only_its_pairs(watched: Watched) -> None:
    """Pairs of a failed text are null, and their errors name the query or the passage, without the text."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder))
    pairs = [["one", "two"], ["zebra", "two"], ["one", "the zebra"]]
    answer = worker.good({"operation": "score", "pairs": pairs})
    for kind in SCORE_KINDS:
        assert isinstance(answer["scores"][kind][0], float)
        assert answer["scores"][kind][1:] == [None, None]
    assert [(error["index"], error["error_code"], error["error"].split(":")[0]) for error in answer["errors"]] == [
        (1, "model_failure", "query"),
        (2, "model_failure", "passage"),
    ]
    assert "zebra" not in json.dumps(answer)


def test_a_job_of_any_size_holds_few_vectors_at_a_time(watched: Watched) -> None:
    """Pairs are embedded in groups of about 32 768 tokens, one group after the other."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder))
    pairs = [["one query", f"{n} " + TEXTS["many words"]] for n in range(100)]
    watched.engine.batches.clear()

    async def body() -> int:
        watched.engine.gate.clear()
        job = asyncio.create_task(worker.answer({"operation": "score", "pairs": pairs}))
        await until(lambda: bool(watched.engine.batches))
        held = watched.pool.waiting_tokens + sum(watched.engine.batches[0])
        job.cancel()
        watched.engine.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await job
        return held

    assert 30_000 <= asyncio.run(body()) <= 32_768
    assert watched.pool.waiting_tokens == 0, "cancelled texts are not computed"


def test_a_job_may_be_longer_than_the_queue(watched: Watched) -> None:
    """Each pair must fit into `QUEUE_TOKENS`, but not all pairs together."""
    pairs = [["one query", f"{n} " + TEXTS["a sentence"]] for n in range(20)]
    with embedder_over(watched.engine, token_budget=64, queue_tokens=100) as embedder:
        worker = Client(Operations(Settings.from_environment(ENVIRONMENT), embedder))
        assert len(worker.good({"operation": "score", "pairs": pairs})["scores"]["dense"]) == 20
        refusal = worker.error({"operation": "score", "pairs": [["a", TEXTS["many words"]]]}, "invalid_request")
    assert refusal["error"].startswith("pairs: ")
    assert "QUEUE_TOKENS=100" in refusal["error"]


@given(pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=30), window=st.integers(1, 40))
def test_groups_hold_every_pair_once_and_stay_within_the_window(pairs: list[tuple[int, int]], window: int) -> None:
    """Groups are consecutive, and exceed the window only with a single pair."""
    texts = [[(f"q{query}", query), (f"p{passage}", passage)] for query, passage in pairs]
    grouped = list(groups(len(pairs), texts.__getitem__, window))
    assert [pair for group in grouped for pair in group] == list(range(len(pairs)))
    for group in grouped:
        distinct = dict(text for pair in group for text in texts[pair])
        assert len(group) == 1 or sum(distinct.values()) <= window
    for group, following in pairwise(grouped):
        distinct = dict(text for pair in [*group, following[0]] for text in texts[pair])
        assert sum(distinct.values()) > window, "no group ends early"


def test_too_many_pairs_are_refused(serve: Serve) -> None:
    """`MAX_TEXTS` also limits the pairs."""
    worker = serve(MAX_TEXTS="2")
    assert "got 3" in worker.error({"operation": "score", "pairs": [["a", "b"]] * 3}, "invalid_request")["error"]
