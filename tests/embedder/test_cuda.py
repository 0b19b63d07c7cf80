"""The promises of parity, precision and isolation on a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from embedder.batching import Priority
from embedder.calibration import calibrate, warm
from embedder.pool import ModelPool
from embedder.vectors import Embedding, Outputs
from tests.embedder.conftest import Bench
from tests.embedder.fakes import PATIENCE
from tests.embedder.oracle import assert_same, assert_well_formed, cosines, embed
from tests.embedder.test_precision import LEAST_COSINE
from tests.embedder.texts import TEXTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda:0"
ALL_TEXTS = list(TEXTS.values())


def test_float32_equals_flagembedding(bench: Bench) -> None:
    """On a GPU as on a CPU, float32 vectors are FlagEmbedding's."""
    ours = embed(bench.packed_as("float32", DEVICE), bench.tokenizer, ALL_TEXTS, 512)
    assert_same(ours, bench.oracle.encode(ALL_TEXTS, 512))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_stay_near_float32(mini: Bench, dtype: str) -> None:
    """Half precision keeps the direction of every dense vector and ColBERT row."""
    exact = embed(mini.packed, mini.tokenizer, ALL_TEXTS, 512)
    for one, other in zip(embed(mini.packed_as(dtype, DEVICE), mini.tokenizer, ALL_TEXTS, 512), exact, strict=True):
        assert_well_formed(one)
        assert one.dense is not None
        assert other.dense is not None
        assert one.colbert is not None
        assert other.colbert is not None
        assert cosines(one.dense, other.dense).min() > LEAST_COSINE[dtype]
        assert cosines(one.colbert, other.colbert).min() > LEAST_COSINE[dtype]


def test_lanes_that_overlap_do_not_mix_results(mini: Bench) -> None:
    """Four lanes on one GPU give each of 32 requests what it gets alone."""
    engine = mini.packed_as("float32", DEVICE)
    requests = [[ALL_TEXTS[(n + k) % len(ALL_TEXTS)] for k in range(1 + n % 4)] for n in range(32)]
    pool = ModelPool([engine], lanes=4, token_budget=600, queue_tokens=100_000)
    with ThreadPoolExecutor(32) as threads:
        found = list(
            threads.map(
                lambda texts: pool.submit(mini.tokenizer.encode(texts, 512), Outputs(), Priority.QUERY).result(
                    PATIENCE
                ),
                requests,
            )
        )
    pool.close()
    for texts, results in zip(requests, found, strict=True):
        embeddings = [result for result in results if isinstance(result, Embedding)]
        assert_same(embeddings, [embed(engine, mini.tokenizer, [one], 512)[0] for one in texts])


def test_a_gpu_can_be_calibrated(mini: Bench) -> None:
    """Warming and measuring end with a budget in the range that is searched."""
    engine = mini.packed_as("float16", DEVICE)
    warm(engine)
    assert 512 <= calibrate(engine, seconds=1.0) <= 131_072
