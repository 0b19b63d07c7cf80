"""Parity, precision and isolation hold on a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from embedder import Priority
from embedder.engines import TokenBatch
from embedder.engines.calibration import batch_of, calibrate
from embedder.engines.packed import PackedEngine
from embedder.model.transformer import Embedding as EmbeddingLayer
from embedder.scheduling.pool import ModelPool
from embedder.vectors import Embedding, Outputs
from tests.embedder.bench import Bench
from tests.embedder.fakes import WAIT_MAX_S
from tests.embedder.oracle import COSINE_MIN, assert_same, assert_well_formed, cosines, embed
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


FLOAT8 = pytest.param(
    "float8",
    marks=pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs products in float8"
    ),
)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", FLOAT8])
def test_a_faster_type_stays_near_float32(mini: Bench, dtype: str) -> None:
    """Half precision and float8 keep the direction of every dense vector and ColBERT row."""
    exact = embed(mini.packed, mini.tokenizer, ALL_TEXTS, 512)
    for embedding, other in zip(
        embed(mini.packed_as(dtype, DEVICE), mini.tokenizer, ALL_TEXTS, 512), exact, strict=True
    ):
        assert_well_formed(embedding)
        assert embedding.dense is not None
        assert other.dense is not None
        assert embedding.colbert is not None
        assert other.colbert is not None
        assert cosines(embedding.dense, other.dense).min() > COSINE_MIN[dtype]
        assert cosines(embedding.colbert, other.colbert).min() > COSINE_MIN[dtype]


def test_threads_that_overlap_do_not_mix_results(mini: Bench) -> None:
    """With four batches in flight on one GPU, each of 32 requests gets the same vectors as alone."""
    engine = mini.packed_as("float32", DEVICE)
    requests = [[ALL_TEXTS[(n + k) % len(ALL_TEXTS)] for k in range(1 + n % 4)] for n in range(32)]
    pool = ModelPool([engine], batches_per_gpu=4, token_budget=600, queue_tokens=100_000)
    with ThreadPoolExecutor(32) as threads:
        answers = list(
            threads.map(
                lambda texts: pool.submit(mini.tokenizer.encode(texts, 512), Outputs(), Priority.QUERY).result(
                    WAIT_MAX_S
                ),
                requests,
            )
        )
    pool.close()
    for texts, results in zip(requests, answers, strict=True):
        embeddings = [result for result in results if isinstance(result, Embedding)]
        assert_same(embeddings, [embed(engine, mini.tokenizer, [text], 512)[0] for text in texts])


def test_a_gpu_can_be_calibrated(mini: Bench) -> None:
    """Calibration warms the GPU and chooses a budget within the searched range."""
    engine = mini.packed_as("float16", DEVICE)
    engine.warm()
    assert 512 <= calibrate(engine, seconds=1.0) <= 32_768


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_attention_gives_the_same_direction(mini: Bench, dtype: str) -> None:
    """The project's kernel, torch's kernel and SDPA per length give vectors of one direction."""
    model = mini.model_as(dtype, DEVICE)
    assert model.tiled
    assert model.flash is not None
    grouped = embed(PackedEngine(replace(model, flash=None, tiled=False)), mini.tokenizer, ALL_TEXTS, 512)
    for other in (model, replace(model, tiled=False)):
        for embedding, exact in zip(embed(PackedEngine(other), mini.tokenizer, ALL_TEXTS, 512), grouped, strict=True):
            assert embedding.colbert is not None
            assert exact.colbert is not None
            assert cosines(embedding.colbert, exact.colbert).min() > COSINE_MIN[dtype]


def test_a_batch_that_yields_has_the_same_vectors(mini: Bench) -> None:
    """The low-priority stream computes the same vectors as the urgent one and yields while it is launched."""
    engine = PackedEngine(mini.model_as("float32", DEVICE))
    batch = TokenBatch.of([encoded.ids for encoded in mini.tokenizer.encode(ALL_TEXTS, 512)])
    yielded: list[int] = []
    urgent = engine.encode(batch, Outputs())
    patient = engine.encode(batch, Outputs(), lambda: yielded.append(1))
    assert urgent.colbert is not None
    assert patient.colbert is not None
    assert yielded
    np.testing.assert_allclose(urgent.colbert, patient.colbert, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", FLOAT8])
def test_graphs_change_nothing(mini: Bench, dtype: str) -> None:
    """A batch that is replayed from a CUDA graph has the vectors of its eager pass."""
    model = mini.model_as(dtype, DEVICE)
    replayed, eager = PackedEngine(model), PackedEngine(model, graphs=False)
    replayed.prepare(4096)
    texts = [one.ids for one in mini.tokenizer.encode(ALL_TEXTS, 512)]
    for batch in ([texts[0]], texts[1:4], texts[4:5], texts[:12], texts[3:9]):
        one, other = (engine.encode(TokenBatch.of(batch), Outputs()) for engine in (replayed, eager))
        assert one.dense is not None
        assert other.dense is not None
        assert one.colbert is not None
        assert other.colbert is not None
        assert one.sparse is not None
        assert other.sparse is not None
        assert cosines(one.colbert, other.colbert).min() > COSINE_MIN[dtype]
        if dtype == "float8":  # a number rounded the other way differs by 6 %
            continue
        # a product with other rows in the batch may sum in another order
        np.testing.assert_allclose(one.dense, other.dense, atol=2e-3)
        np.testing.assert_allclose(one.colbert, other.colbert, atol=2e-3)
        np.testing.assert_array_equal(one.sparse.offsets, other.sparse.offsets)
        np.testing.assert_array_equal(one.sparse.indices, other.sparse.indices)
        np.testing.assert_allclose(one.sparse.values, other.sparse.values, atol=5e-3, rtol=2e-2)


def test_a_replayed_pass_equals_itself(mini: Bench) -> None:
    """The same small batch has bitwise equal vectors, whatever was computed in between."""
    engine = mini.packed_as("float16", DEVICE)
    engine.prepare(4096)
    texts = [encoded.ids for encoded in mini.tokenizer.encode(ALL_TEXTS, 512)]
    first = engine.encode(TokenBatch.of(texts[:3]), Outputs())
    for count in (1, 5, 9, 2):
        engine.encode(TokenBatch.of(texts[-count:]), Outputs())
    again = engine.encode(TokenBatch.of(texts[:3]), Outputs())
    assert first.colbert is not None
    assert again.colbert is not None
    np.testing.assert_array_equal(first.colbert, again.colbert)


def test_batches_that_are_under_way_together_do_not_mix(mini: Bench) -> None:
    """Batches of any size and priority that are in flight together get the same vectors as alone."""
    engine = mini.packed_as("float16", DEVICE)
    engine.prepare(8192)
    texts = [encoded.ids for encoded in mini.tokenizer.encode(ALL_TEXTS, 512)]
    large = [text for text in texts for _ in range(40)]
    batches = [TokenBatch.of(part) for part in (texts[:2], large, texts[2:7], large[::-1], texts[7:8], texts)]
    alone = [engine.encode(batch, Outputs()) for batch in batches]
    pending = [
        engine.launch(batch, Outputs(), None if number % 2 else lambda: None) for number, batch in enumerate(batches)
    ]
    for launched, expected in zip(pending, alone, strict=True):
        vectors = launched.wait()
        assert vectors.colbert is not None
        assert expected.colbert is not None
        np.testing.assert_array_equal(vectors.colbert, expected.colbert)
        assert vectors.finite >= {"dense", "colbert"}


def test_what_is_not_finite_is_found_on_the_device(mini: Bench) -> None:
    """A model that computes NaN reports it for its batch."""
    model = mini.model_as("float16", DEVICE)
    assert isinstance(model.embedding, EmbeddingLayer)
    broken = replace(model.embedding, words=torch.full_like(model.embedding.words, torch.nan))
    encoded = PackedEngine(replace(model, embedding=broken)).encode(batch_of([8, 9]), Outputs())
    assert not encoded.finite
    assert encoded.colbert is not None
    assert np.isnan(encoded.colbert).all()


def test_float16_rows_leave_the_device_as_such(mini: Bench) -> None:
    """ColBERT rows in float16 are the float32 rows, rounded."""
    engine = mini.packed_as("float16", DEVICE)
    batch = TokenBatch.of([encoded.ids for encoded in mini.tokenizer.encode(ALL_TEXTS, 512)])
    half, full = engine.encode(batch, Outputs(colbert_type="float16")).colbert, engine.encode(batch, Outputs()).colbert
    assert half is not None
    assert full is not None
    assert half.dtype == np.float16
    np.testing.assert_allclose(half.astype(np.float32), full, atol=2e-3)


def test_the_memory_of_a_batch_is_a_share_of_what_is_free(mini: Bench) -> None:
    """A larger batch takes a larger share of the free memory, and a small batch takes little."""
    engine = mini.packed_as("float16", DEVICE)
    small, large = (engine.memory_share(batch_of([128] * texts)) for texts in (64, 1024))
    assert 0 < small < large < 1


def test_results_are_views_of_page_locked_memory(mini: Bench) -> None:
    """Results are views of the page-locked buffer that the device wrote, until the last view is gone."""
    encoded = mini.packed_as("float16", DEVICE).encode(batch_of([128] * 8), Outputs())
    assert encoded.colbert is not None
    assert torch.from_numpy(encoded.colbert).is_pinned()
