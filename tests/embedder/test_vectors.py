"""The value types that the stages exchange."""

from __future__ import annotations

import dataclasses
import itertools
from functools import reduce
from operator import or_

import numpy as np
import pytest

from embedder.engines import SparseBatch, TokenBatch
from embedder.vectors import KINDS, Embedding, Outputs, SparseVector


def test_outputs_name_their_kinds_in_the_order_of_the_wire() -> None:
    """Every choice of kinds is listed in the order dense, sparse, colbert."""
    for n in range(1, 4):
        for kinds in itertools.combinations(KINDS, n):
            assert Outputs.of(kinds[::-1]).kinds == kinds


def test_no_output_is_refused() -> None:
    """A request for no kind of vector is refused as the caller's mistake."""
    with pytest.raises(ValueError, match="at least one"):
        Outputs.of(())


def test_outputs_of_two_jobs_serve_both() -> None:
    """A shared batch computes every kind that either job requests."""
    assert (Outputs.of(("dense",)) | Outputs.of(("colbert",))).kinds == ("dense", "colbert")


def test_a_batch_gives_rows_in_each_type_that_a_job_wants() -> None:
    """Jobs with float32 and float16 rows share a batch in any order; a job without rows wants neither type."""
    half, full, none = Outputs(colbert_type="float16"), Outputs(), Outputs(colbert=False)
    for jobs in itertools.permutations((half, full, none)):
        batch = reduce(or_, jobs)
        assert (batch.colbert_type, batch.also_float16) == ("float32", True)
    assert half | none == half
    assert full | none == full


def test_a_batch_knows_where_its_texts_are() -> None:
    """Texts are concatenated, and the offsets give the start of each and the end of the last."""
    batch = TokenBatch.of([np.array(ids, dtype=np.int32) for ids in ([0, 2], [0, 7, 8, 2], [0, 9, 2])])
    assert batch.ids.tolist() == [0, 2, 0, 7, 8, 2, 0, 9, 2]
    assert batch.offsets.tolist() == [0, 2, 6, 9]
    assert len(batch) == 3


def test_a_sparse_batch_gives_each_text_its_own() -> None:
    """Weights of neighbouring texts do not mix, and a text may have none."""
    batch = SparseBatch(
        np.array([0, 2, 2, 3]), np.array([4, 9, 4], dtype=np.uint32), np.array([0.5, 0.25, 1.0], dtype=np.float32)
    )
    assert [batch[text].indices.tolist() for text in range(3)] == [[4, 9], [], [4]]
    assert [batch[text].values.tolist() for text in range(3)] == [[0.5, 0.25], [], [1.0]]


@pytest.mark.parametrize(
    "value",
    [
        Outputs(),
        SparseVector(np.zeros(0, dtype=np.uint32), np.zeros(0, dtype=np.float32)),
        Embedding(None, None, None, tokens=2, truncated=False),
    ],
)
def test_a_result_cannot_be_changed_by_who_receives_it(value: Outputs | SparseVector | Embedding) -> None:
    """The attributes of results are read-only, and no attribute can be added."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)
    assert not hasattr(value, "__dict__")
