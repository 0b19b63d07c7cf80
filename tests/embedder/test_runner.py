"""Each text of a batch receives its own vectors, copied only where views would waste memory."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from embedder import ColbertType, Embedding, ModelFailure, Outputs, Result
from embedder.engines import EncodedBatch, TokenBatch, YieldPoint
from embedder.scheduling.runner import Text, run
from tests.embedder.fakes import CountingEngine, text


def texts_of(owner: Hashable, count: int, outputs: Outputs | None = None, length: int = 4) -> list[Text]:
    """Return the texts of one job, numbered from 1."""
    return [Text(text(number + 1, length), outputs or Outputs(), owner) for number in range(count)]


def embeddings(results: Sequence[Result]) -> list[Embedding]:
    """Return the results after asserting that each is an embedding."""
    vectors = [result for result in results if isinstance(result, Embedding)]
    assert len(vectors) == len(results)
    return vectors


def arrays(embedding: Embedding) -> list[np.ndarray]:
    """Return every array of a result."""
    assert embedding.dense is not None
    assert embedding.sparse is not None
    assert embedding.colbert is not None
    return [embedding.dense, embedding.sparse.indices, embedding.sparse.values, embedding.colbert]


def test_a_job_that_fills_its_batch_is_not_copied() -> None:
    """The vectors of a large job are views of the engine's arrays, in float32 and in float16."""
    batches: list[EncodedBatch] = []

    class Remembering(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            batches.append(super().encode(batch, outputs, yield_point))
            return batches[-1]

    for outputs in (Outputs(), Outputs(colbert_type="float16")):
        results = embeddings(run(texts_of("job", 5, outputs), Remembering(), None))
        encoded = batches[-1]
        assert encoded.dense is not None
        assert encoded.colbert is not None
        for result in results:
            assert result.dense is not None
            assert result.colbert is not None
            assert np.shares_memory(result.dense, encoded.dense)
            assert np.shares_memory(result.colbert, encoded.colbert)
            assert result.colbert.dtype == outputs.colbert_type


def test_a_small_part_of_a_batch_does_not_keep_the_rest_in_memory() -> None:
    """A query among a hundred holds its own vectors only; a job with half a batch holds at most twice its own."""
    texts = [*texts_of("large", 6), *texts_of("small", 2), *texts_of("smaller", 1)]
    results = embeddings(run(texts, CountingEngine(), None))
    for result in results[:6]:
        assert all(array.base is not None for array in arrays(result))
    for result in results[6:]:
        assert all(array.base is None for array in arrays(result))


def test_the_share_of_a_batch_is_counted_in_tokens() -> None:
    """One long text beside five short ones has most of the batch."""
    texts = [*texts_of("long", 1, length=40), *texts_of("short", 5)]
    results = embeddings(run(texts, CountingEngine(), None))
    assert [result.dense is not None and result.dense.base is not None for result in results] == [True] + [False] * 5


@pytest.mark.parametrize("owners", [("a", "a"), ("a", "b")])
def test_rows_are_in_the_type_of_their_own_job(owners: tuple[str, str]) -> None:
    """In a batch of float16 and float32 jobs, each text has the wider type's numbers, rounded to its own."""
    half, full = Outputs(colbert_type="float16"), Outputs()
    mixed = [*texts_of(owners[0], 3, half), *texts_of(owners[1], 3, full)]
    rows = [result.colbert for result in embeddings(run(mixed, CountingEngine(), None))]
    for narrow, wide in zip(rows[:3], rows[3:], strict=True):
        assert narrow is not None
        assert wide is not None
        assert (str(narrow.dtype), str(wide.dtype)) == ("float16", "float32")
        np.testing.assert_array_equal(narrow, wide.astype(np.float16))


def test_rows_of_two_types_are_views_of_what_the_engine_made() -> None:
    """Where jobs of both types share a batch, neither has its rows converted or copied on the host."""
    batches: list[EncodedBatch] = []

    class TwoTypes(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            assert outputs.also_float16
            full = super().encode(batch, outputs, yield_point)
            assert full.colbert is not None
            batches.append(replace(full, colbert_float16=full.colbert.astype(np.float16)))
            return batches[-1]

    jobs = [*texts_of("half", 3, Outputs(colbert_type="float16")), *texts_of("full", 3)]
    rows = [result.colbert for result in embeddings(run(jobs, TwoTypes(), None))]
    [encoded] = batches
    for own, made in zip(rows, [encoded.colbert_float16] * 3 + [encoded.colbert] * 3, strict=True):
        assert own is not None
        assert made is not None
        assert np.shares_memory(own, made)
    for half, full in zip(rows[:3], rows[3:], strict=True):
        assert half is not None
        assert full is not None
        np.testing.assert_array_equal(half, full.astype(np.float16))


def test_rows_that_are_missing_in_one_of_two_types_are_an_error() -> None:
    """No text gets the rows of another one from an engine that gives too few in float16."""

    class Short(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            full = super().encode(batch, outputs, yield_point)
            assert full.colbert is not None
            return replace(full, colbert_float16=full.colbert[1:].astype(np.float16))

    results = run([*texts_of("half", 1, Outputs(colbert_type="float16")), *texts_of("full", 1)], Short(), None)
    assert all(isinstance(result, ModelFailure) and "float16" in result.message for result in results)


def test_a_text_gets_only_the_kinds_that_it_asked_for() -> None:
    """A batch computes every requested kind, and each text receives only the kinds that it requested."""
    texts = [*texts_of("a", 1, Outputs.of(("dense",))), *texts_of("b", 1, Outputs.of(("sparse", "colbert")))]
    first, second = embeddings(run(texts, CountingEngine(), None))
    assert (first.dense is None, first.sparse is None, first.colbert is None) == (False, True, True)
    assert (second.dense is None, second.sparse is None, second.colbert is None) == (True, False, False)


def test_a_lack_of_memory_is_not_called_a_wrong_shape() -> None:
    """A lack of memory while results are unpacked is reported as such."""

    class Rows(np.ndarray):
        def __getitem__(self, _: object) -> np.ndarray:
            raise MemoryError

    class Exhausting(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            full = super().encode(batch, outputs, yield_point)
            assert full.dense is not None
            return EncodedBatch(full.dense.view(Rows), full.sparse, full.colbert)

    [result] = run(texts_of("job", 1), Exhausting(), None)
    assert isinstance(result, ModelFailure)
    assert "MemoryError" in result.message
    assert "shape" not in result.message


@pytest.mark.parametrize("kind", ["dense", "sparse", "colbert"])
def test_an_engine_that_gives_too_little_is_named(kind: str) -> None:
    """If an engine returns too few vectors, every text fails with an error that says what is missing."""

    class Short(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            shorter = TokenBatch.of([batch.ids[: batch.lengths[0]]])
            short, full = super().encode(shorter, outputs), super().encode(batch, outputs)
            parts = {name: getattr(short if name == kind else full, name) for name in ("dense", "sparse", "colbert")}
            return EncodedBatch(**parts)

    for result in run(texts_of("job", 3), Short(), None):
        assert isinstance(result, ModelFailure)
        assert kind in result.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65504.0, -65504.0, 6e-8, 0.0])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_not_finite_is_found_in_either_type(dtype: ColbertType, value: float) -> None:
    """NaN and infinity fail their own text only; the largest and smallest float16 numbers are valid."""

    class Spoiling(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            full = super().encode(batch, outputs, yield_point)
            assert full.colbert is not None
            full.colbert[4, 2] = value
            return full

    results = run(texts_of("job", 3, Outputs(colbert_type=dtype)), Spoiling(), None)
    failed = [index for index, result in enumerate(results) if isinstance(result, ModelFailure)]
    assert failed == ([] if np.isfinite(value) else [1])
