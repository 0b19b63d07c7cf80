"""The faster types stay near float32, and a text's vectors hardly depend on the other texts of its batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from embedder import Outputs
from embedder.engines import TokenBatch
from embedder.engines.packed import PackedEngine
from tests.embedder.bench import Bench
from tests.embedder.oracle import COSINE_MIN, TOLERANCE, assert_same, assert_well_formed, cosines, embed, weights_of
from tests.embedder.texts import TEXTS

COSINE_ALONE_MIN = {"float32": 1 - 1e-6, "bfloat16": 0.9995, "float16": 0.9999, "int8": 1 - 1e-4, "float8": 1 - 1e-4}
"""Minimum cosine of a text alone to itself in a batch. int8 and float8 quantise row by row, so little differs."""
WEIGHT_SHARE = {"float8": 0.05}
"""Maximum relative error of a sparse weight; 0.02 for the other types. float8 rounds numbers to 1/16 of their value."""
WEIGHT_FLOOR = 2e-3

DTYPES = tuple(COSINE_MIN)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_faster_type_stays_near_float32(mini: Bench, dtype: str) -> None:
    """Whatever `DTYPE`, dense vectors and ColBERT rows keep their direction and sparse weights their size."""
    texts = list(TEXTS.values())
    exact = embed(mini.packed, mini.tokenizer, texts, 512)
    for embedding, other in zip(embed(mini.packed_as(dtype), mini.tokenizer, texts, 512), exact, strict=True):
        assert_well_formed(embedding)
        assert embedding.dense is not None
        assert embedding.sparse is not None
        assert embedding.colbert is not None
        assert other.dense is not None
        assert other.sparse is not None
        assert other.colbert is not None
        assert cosines(embedding.dense, other.dense).min() > COSINE_MIN[dtype]
        assert cosines(embedding.colbert, other.colbert).min() > COSINE_MIN[dtype]
        ours, theirs = weights_of(embedding.sparse), weights_of(other.sparse)
        for token_id in ours.keys() | theirs.keys():
            weight = theirs.get(token_id, 0.0)
            assert abs(ours.get(token_id, 0.0) - weight) <= WEIGHT_SHARE.get(dtype, 0.02) * weight + WEIGHT_FLOOR


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_attention_by_products_stays_near_float32(mini: Bench, dtype: str) -> None:
    """Where products attend faster than the kernel, vectors keep their cosines, alone and among others."""
    engine = PackedEngine(replace(mini.model_as(dtype), by_products=True))
    texts = list(TEXTS.values())
    exact = embed(mini.packed, mini.tokenizer, texts, 512)
    for text, embedding, other in zip(texts, embed(engine, mini.tokenizer, texts, 512), exact, strict=True):
        (alone,) = embed(engine, mini.tokenizer, [text], 512)
        assert embedding.dense is not None
        assert embedding.colbert is not None
        assert other.dense is not None
        assert other.colbert is not None
        assert alone.dense is not None
        assert cosines(embedding.dense, other.dense).min() > COSINE_MIN[dtype]
        assert cosines(embedding.colbert, other.colbert).min() > COSINE_MIN[dtype]
        assert cosines(alone.dense, embedding.dense).min() > COSINE_ALONE_MIN["bfloat16"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_concurrent_passes_have_the_vectors_of_single_ones(mini: Bench, dtype: str) -> None:
    """Threads that compute with one model at the same time each get exactly what they get alone."""
    model = mini.model_as(dtype)
    engine = PackedEngine(replace(model, by_products=dtype != "float16"))
    texts = list(TEXTS.values())
    batches = [TokenBatch.of([ids.ids for ids in mini.tokenizer.encode(texts[n::4], 256)]) for n in range(4)]
    alone = [engine.encode(batch, Outputs()) for batch in batches]
    with ThreadPoolExecutor(len(batches)) as threads:
        together = list(threads.map(lambda batch: engine.encode(batch, Outputs()), batches * 3))
    for one, other in zip(alone * 3, together, strict=True):
        assert one.dense is not None
        assert other.dense is not None
        assert one.colbert is not None
        assert other.colbert is not None
        np.testing.assert_array_equal(one.dense, other.dense)
        np.testing.assert_array_equal(one.colbert, other.colbert)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_text_hardly_depends_on_its_company(mini: Bench, dtype: str) -> None:
    """A text has the same direction alone and among other texts, long and short."""
    engine = mini.packed_as(dtype)
    texts = list(TEXTS.values())
    for text, among in zip(texts, embed(engine, mini.tokenizer, texts, 512), strict=True):
        (alone,) = embed(engine, mini.tokenizer, [text], 512)
        assert alone.dense is not None
        assert alone.colbert is not None
        assert among.dense is not None
        assert among.colbert is not None
        assert cosines(alone.dense, among.dense).min() > COSINE_ALONE_MIN[dtype]
        assert cosines(alone.colbert, among.colbert).min() > COSINE_ALONE_MIN[dtype]


def test_in_float32_company_and_order_do_not_matter(bench: Bench) -> None:
    """A batch, the batch in another order, and each text alone give the same float32 vectors."""
    texts = list(TEXTS.values())
    together = embed(bench.packed, bench.tokenizer, texts, 512)
    turned = embed(bench.packed, bench.tokenizer, texts[::-1], 512)
    alone = [embed(bench.packed, bench.tokenizer, [text], 512)[0] for text in texts]
    assert_same(together, turned[::-1], TOLERANCE)
    assert_same(together, alone, TOLERANCE)
