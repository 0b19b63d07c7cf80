"""Stored vectors are told from those of another model, and doubtful texts are not held against a collection."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from embedder.vectors import KINDS, Kind, SparseVector
from qdrant_sink.model_check import ComparedText, ModelVerdict, compare_vectors, cosine_of
from qdrant_sink.points import Vectors
from tests.sink.samples import halved, sample_vectors

SIZE = 64
any_float = st.floats(width=32) | st.sampled_from([0.0, 1e-45, 3e38, float("nan"), float("inf")])
hostile_rows = arrays(np.float32, st.tuples(st.integers(0, 3), st.integers(0, 3)), elements=any_float)


def vectors(seed: int) -> Vectors:
    """Vectors of a text, which are unrelated to those of other seeds."""
    return sample_vectors(seed, size=SIZE)


def outcome(texts: list[ComparedText], kind: Kind = "dense") -> str:
    """The verdict on a kind."""
    return compare_vectors(texts, [kind])[kind].outcome


def same(seed: int) -> ComparedText:
    """A text whose stored vectors are those of the model."""
    return ComparedText(vectors(seed), [vectors(seed)])


def other(seed: int) -> ComparedText:
    """A text whose stored vectors are those of another model."""
    return ComparedText(vectors(seed + 1000), [vectors(seed)])


@given(st.integers(0, 999))
def test_storage_does_not_change_the_model(seed: int) -> None:
    """Vectors match in half precision, and scaled to another norm."""
    computed = vectors(seed)
    assert computed.dense is not None
    assert computed.sparse is not None
    assert computed.colbert is not None
    stored = Vectors(
        halved(computed.dense) * 3,
        SparseVector(computed.sparse.indices[::-1], halved(computed.sparse.values)[::-1]),
        halved(computed.colbert),
    )
    verdicts = compare_vectors([ComparedText(stored, [computed])], KINDS)
    assert {verdict.outcome for verdict in verdicts.values()} == {"match"}
    assert {verdict.texts for verdict in verdicts.values()} == {1}


@given(st.integers(0, 999), st.integers(1, 8))
def test_another_model_is_a_mismatch_in_every_kind(seed: int, count: int) -> None:
    """Vectors of another model disagree, however few texts there are, and the verdict has their median cosine."""
    verdicts = compare_vectors([other(seed + number) for number in range(count)], KINDS)
    for kind, verdict in verdicts.items():
        assert verdict.outcome == "mismatch"
        assert verdict.texts == count
        disagreement = verdict.disagreement(kind)
        assert disagreement is not None
        assert disagreement.cosine < 0.98


def test_weights_of_another_vocabulary_are_a_mismatch() -> None:
    """Sparse vectors without a common index, as BM25 has them, disagree with a cosine of 0; the dense ones match."""
    text = vectors(1)
    bm25 = SparseVector(np.array([10**9, 2 * 10**9], np.uint32), np.array([1.2, 0.7], np.float32))
    verdicts = compare_vectors([ComparedText(replace(text, sparse=bm25), [text])], KINDS)
    assert verdicts["sparse"] == ModelVerdict("mismatch", 0.0, 1)
    assert (verdicts["dense"].outcome, verdicts["colbert"].outcome) == ("match", "match")


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_the_median_decides_in_a_mixed_collection(flags: list[bool]) -> None:
    """A collection matches if more than half of its texts do."""
    texts = [(same if right else other)(number) for number, right in enumerate(flags)]
    expected = "match" if 2 * sum(flags) > len(flags) else "mismatch"
    assert outcome(texts) == expected


def test_the_best_of_the_embedded_forms_counts() -> None:
    """A text matches if one of the forms that a framework embeds gives the stored vectors."""
    assert outcome([ComparedText(vectors(1), [vectors(2), vectors(1)])]) == "match"
    assert outcome([ComparedText(vectors(1), [vectors(2), vectors(3)])]) == "mismatch"


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_was_cut_is_unknown(kind: Kind) -> None:
    """A stored vector that is that of a beginning of the text says that the text was cut, for all kinds."""
    cut = ComparedText(vectors(1), [vectors(2)], cut=[vectors(3), vectors(1)])
    assert outcome([cut], kind) == "unknown"
    assert outcome([cut, same(5)], kind) == "match"
    assert outcome([cut, other(5)], kind) == "mismatch"
    assert outcome([ComparedText(vectors(1), [vectors(2)], cut=[vectors(3)])], kind) == "mismatch"


def test_a_related_text_is_unknown_where_further_forms_are_possible() -> None:
    """Where a framework may have embedded other fields too, only unrelated vectors are those of another model."""
    computed = vectors(1)
    assert computed.dense is not None
    unrelated = vectors(2).dense
    assert unrelated is not None
    related = Vectors(dense=computed.dense + 0.7 * unrelated)
    assert 0.6 < (cosine_of("dense", computed, related) or 0) < 0.95
    assert outcome([ComparedText(related, [computed])]) == "mismatch"
    assert outcome([ComparedText(related, [computed], is_open=True)]) == "unknown"
    assert outcome([replace(other(1), is_open=True)]) == "mismatch"
    assert outcome([replace(same(1), is_open=True)]) == "match"


def test_pooled_rows_are_unknown() -> None:
    """ColBERT rows of another number than the text has tokens say nothing."""
    text = vectors(1)
    assert text.colbert is not None
    pooled = replace(text, colbert=text.colbert[:2])
    assert outcome([ComparedText(pooled, [text])], "colbert") == "unknown"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_compare_is_unknown(kind: Kind) -> None:
    """Without texts, or without vectors of a kind, nothing is said."""
    assert compare_vectors([], [kind]) == {kind: ModelVerdict("unknown")}
    assert outcome([ComparedText(Vectors(), [vectors(1)])], kind) == "unknown"
    assert ModelVerdict("unknown").disagreement(kind) is None


@given(hostile_rows, hostile_rows)
def test_any_stored_numbers_give_a_cosine_or_none(first: NDArray[np.float32], second: NDArray[np.float32]) -> None:
    """Stored vectors of any shape and with any numbers, zero and NaN included, give a cosine in its range or None."""
    for kind in ("dense", "colbert"):
        pair = [Vectors(dense=rows[0] if len(rows) else rows, colbert=rows) for rows in (first, second)]
        cosine = cosine_of(kind, *pair)
        assert cosine is None or abs(cosine) <= 1 + 1e-6
    count = min(first.size, second.size)
    indices = np.arange(count, dtype=np.uint32)
    sparse = [Vectors(sparse=SparseVector(indices, rows.ravel()[:count])) for rows in (first, second)]
    cosine = cosine_of("sparse", *sparse)
    assert cosine is None or abs(cosine) <= 1 + 1e-6
