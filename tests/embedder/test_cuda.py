"""The promises of parity, precision and isolation on a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from embedder import Priority
from embedder.engines import TokenBatch
from embedder.engines.calibration import batch_of, calibrate, warm
from embedder.engines.packed import PackedEngine
from embedder.model import Packing
from embedder.model.kernels import text_spans_of, tile_count_max, tiles_of
from embedder.scheduling.pool import ModelPool
from embedder.vectors import Embedding, Outputs
from tests.embedder.bench import Bench
from tests.embedder.fakes import PATIENCE
from tests.embedder.oracle import LEAST_COSINE, assert_same, assert_well_formed, cosines, embed
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
    for one, other in zip(embed(mini.packed_as(dtype, DEVICE), mini.tokenizer, ALL_TEXTS, 512), exact, strict=True):
        assert_well_formed(one)
        assert one.dense is not None
        assert other.dense is not None
        assert one.colbert is not None
        assert other.colbert is not None
        assert cosines(one.dense, other.dense).min() > LEAST_COSINE[dtype]
        assert cosines(one.colbert, other.colbert).min() > LEAST_COSINE[dtype]


def test_threads_that_overlap_do_not_mix_results(mini: Bench) -> None:
    """Four worker threads on one GPU give each of 32 requests what it gets alone."""
    engine = mini.packed_as("float32", DEVICE)
    requests = [[ALL_TEXTS[(n + k) % len(ALL_TEXTS)] for k in range(1 + n % 4)] for n in range(32)]
    pool = ModelPool([engine], threads_per_gpu=4, token_budget=600, queue_tokens=100_000)
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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_attention_gives_the_same_direction(mini: Bench, dtype: str) -> None:
    """Our kernel by tiles, torch's over all texts at once, and SDPA per length give vectors of one direction."""
    model = mini.model_as(dtype, DEVICE)
    assert model.tiled
    assert model.flash is not None
    grouped = embed(PackedEngine(replace(model, flash=None, tiled=False)), mini.tokenizer, ALL_TEXTS, 512)
    for other in (model, replace(model, tiled=False)):
        for one, exact in zip(embed(PackedEngine(other), mini.tokenizer, ALL_TEXTS, 512), grouped, strict=True):
            assert one.colbert is not None
            assert exact.colbert is not None
            assert cosines(one.colbert, exact.colbert).min() > LEAST_COSINE[dtype]


@pytest.mark.parametrize("dtype", ["float16", FLOAT8])
def test_a_pass_can_be_captured_in_a_graph(mini: Bench, dtype: str) -> None:
    """After it has run once, a pass waits for nothing and compiles nothing: a graph of it gives the same vectors."""
    model, batch = mini.model_as(dtype, DEVICE), batch_of([3, 9, 70, 130])
    ids = torch.from_numpy(batch.ids).to(DEVICE)
    positions = (torch.cat([torch.arange(length) for length in batch.lengths.tolist()]) + 2).int().to(DEVICE)
    tiles = np.zeros((tile_count_max(len(ids)), 4), np.int32)
    cut = tiles_of(batch.lengths)
    tiles[: len(cut)] = cut
    packing = Packing.of_tiles(
        len(ids),
        torch.from_numpy(tiles).to(DEVICE),
        torch.from_numpy(text_spans_of(batch.lengths)).to(DEVICE),
        block=64,
    )

    def vectors() -> list[torch.Tensor]:
        states = model.states(ids, positions, packing, lambda: None)
        entries = torch.arange(len(ids), dtype=torch.int32, device=DEVICE)
        colbert, finite = model.heads.colbert(states, entries, torch.float16)
        return [model.heads.dense(states, entries), model.heads.sparse(states, entries, len(ids)), colbert, finite]

    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        eager = vectors()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            captured = vectors()
        graph.replay()
        torch.cuda.synchronize()
    for one, other in zip(captured, eager, strict=True):
        assert torch.equal(one, other)


def test_a_batch_that_yields_has_the_same_vectors(mini: Bench) -> None:
    """The stream of lower priority computes what the urgent one does."""
    engine = mini.packed_as("float32", DEVICE)
    batch = TokenBatch.of([one.ids for one in mini.tokenizer.encode(ALL_TEXTS, 512)])
    urgent, patient = engine.encode(batch, Outputs()), engine.encode(batch, Outputs(), pytest.fail)
    assert urgent.colbert is not None
    assert patient.colbert is not None
    np.testing.assert_allclose(urgent.colbert, patient.colbert, atol=1e-6)


def test_float16_rows_leave_the_device_as_such(mini: Bench) -> None:
    """ColBERT rows asked for in float16 are the float32 ones, rounded."""
    engine = mini.packed_as("float16", DEVICE)
    batch = TokenBatch.of([one.ids for one in mini.tokenizer.encode(ALL_TEXTS, 512)])
    half, full = engine.encode(batch, Outputs(colbert_type="float16")).colbert, engine.encode(batch, Outputs()).colbert
    assert half is not None
    assert full is not None
    assert half.dtype == np.float16
    np.testing.assert_allclose(half.astype(np.float32), full, atol=2e-3)


def test_the_memory_of_a_batch_is_a_share_of_what_is_free(mini: Bench) -> None:
    """A larger batch takes a larger share, and a small one far from all."""
    engine = mini.packed_as("float16", DEVICE)
    small, large = (engine.memory_share(batch_of([128] * texts)) for texts in (64, 1024))
    assert 0 < small < large < 1


def test_results_are_not_in_page_locked_memory(mini: Bench) -> None:
    """Results live as long as a request, so they are in ordinary memory and keep no buffer of the device's copies."""
    encoded = mini.packed_as("float16", DEVICE).encode(batch_of([128] * 8), Outputs())
    assert encoded.colbert is not None
    assert not torch.from_numpy(encoded.colbert).is_pinned()
    assert encoded.colbert.base is None
