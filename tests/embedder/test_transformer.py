"""Splitting a batch into pieces changes only the points at which it yields."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder import Cancelled, Outputs
from embedder.engines import TokenBatch
from embedder.engines.calibration import batch_of
from embedder.engines.packed import PackedEngine
from embedder.model import Packing, PieceSizes
from embedder.model.transformer import Layer
from tests.embedder.bench import Bench
from tests.embedder.oracle import assert_same, embed
from tests.embedder.texts import TEXTS

ALL_TEXTS = list(TEXTS.values())


@given(st.lists(st.integers(2, 8192), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_token_is_in_one_piece(lengths: list[int]) -> None:
    """The pieces cover each token once, in order, and each piece is short enough for a waiting query.

    On a CPU they go on for a few rows, so that there are few sizes of pieces.
    """
    packing = Packing.of(np.array(sorted(lengths), dtype=np.int32), "cpu", flash=None)
    rows = [row for rows in packing.rows for row in range(rows.start, rows.stop)]
    assert rows == list(range(len(rows)))
    assert sum(lengths) <= len(rows) < sum(lengths) + 16
    assert max(rows.stop - rows.start for rows in packing.rows) <= 512
    attended = [
        span.start + text * span.length + position
        for span in packing.spans
        for text in range(span.texts)
        for position in range(span.first, span.last)
    ]
    assert sorted(attended) == list(range(sum(lengths)))
    assert max(span.texts * (span.last - span.first) * span.length for span in packing.spans) <= 2**21


@pytest.mark.parametrize(("rows", "scores"), [(1, 1), (7, 50), (64, 5000)])
def test_pieces_do_not_change_vectors(bench: Bench, rows: int, scores: int) -> None:
    """A batch in many small pieces has the same float32 vectors as in one piece."""
    texts = ALL_TEXTS if rows > 1 else ALL_TEXTS[:3]
    whole = embed(bench.packed, bench.tokenizer, texts, 200)
    in_pieces = PackedEngine(bench.model, pieces=PieceSizes(rows, scores))
    assert_same(embed(in_pieces, bench.tokenizer, texts, 200), whole)


def test_a_query_in_the_middle_of_a_pass_disturbs_nothing(mini: Bench) -> None:
    """Batches that run between the pieces of another on the same weights do not affect each other."""
    engine = PackedEngine(mini.model, pieces=PieceSizes(rows=50))
    query = TokenBatch.of([mini.tokenizer.encode(["how do I copy files"], 64)[0].ids])
    passages = TokenBatch.of([encoded.ids for encoded in mini.tokenizer.encode(ALL_TEXTS, 128)])
    alone, undisturbed = engine.encode(query, Outputs()), engine.encode(passages, Outputs())
    between: list[np.ndarray] = []

    def yield_point() -> None:
        vectors = engine.encode(query, Outputs())
        assert vectors.dense is not None
        between.append(vectors.dense)

    disturbed = engine.encode(passages, Outputs(), yield_point)
    assert len(between) > mini.model.config.layers * 3
    assert alone.dense is not None
    for dense in between:
        np.testing.assert_array_equal(dense, alone.dense)
    assert disturbed.dense is not None
    assert undisturbed.dense is not None
    assert disturbed.colbert is not None
    assert undisturbed.colbert is not None
    np.testing.assert_array_equal(disturbed.dense, undisturbed.dense)
    np.testing.assert_array_equal(disturbed.colbert, undisturbed.colbert)


def test_a_pass_can_be_ended_between_pieces(mini: Bench) -> None:
    """An exception of `yield_point` ends the pass unchanged, and the engine serves the next one."""

    def yield_point() -> None:
        raise Cancelled("nobody waits")

    batch = TokenBatch.of([mini.tokenizer.encode(["some words"], 64)[0].ids])
    with pytest.raises(Cancelled, match="nobody waits"):
        mini.packed.encode(batch, Outputs(), yield_point)
    assert mini.packed.encode(batch, Outputs()).dense is not None


def test_what_torch_raises_stops_at_the_engine(mini: Bench) -> None:
    """Torch's out-of-memory error is a MemoryError wherever it occurs."""

    def exhausted(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory: secret host")

    whole = mini.model.layers[0]
    assert isinstance(whole, Layer)
    layer = replace(whole, qkv=exhausted)
    engine = PackedEngine(replace(mini.model, layers=(layer,)))
    batch = batch_of([8])
    for work in (lambda: engine.encode(batch, Outputs()), lambda: engine.probe(batch)):
        with pytest.raises(MemoryError, match="does not fit into the memory of cpu"):
            work()


def test_a_model_cannot_be_changed(mini: Bench) -> None:
    """A model is immutable, so that threads can share it."""
    with pytest.raises(AttributeError):
        mini.model.layers = ()  # type: ignore[misc]
    assert not hasattr(mini.model, "__dict__")
