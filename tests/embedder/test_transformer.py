"""Cutting a batch into pieces changes nothing but when others may pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder import transformer
from embedder.calibration import batch_of
from embedder.checkpoint import MINI
from embedder.encoder import PackedEngine
from embedder.engine import TokenBatch
from embedder.errors import Cancelled
from embedder.transformer import Packing
from embedder.vectors import Outputs
from tests.embedder.conftest import Bench
from tests.embedder.oracle import assert_same, embed
from tests.embedder.texts import TEXTS

ALL_TEXTS = list(TEXTS.values())


@given(st.lists(st.integers(2, 8192), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_token_is_in_one_piece(lengths: list[int]) -> None:
    """The pieces cover each token once, in order, and none is longer than what a query may have to wait for."""
    packing = Packing.of(np.array(sorted(lengths), dtype=np.int32), "cpu", flash=None)
    assert [row for rows in packing.rows for row in range(rows.start, rows.stop)] == list(range(sum(lengths)))
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
def test_pieces_do_not_change_vectors(bench: Bench, rows: int, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch in many small pieces has the float32 vectors of the batch in one."""
    texts = ALL_TEXTS if rows > 1 else ALL_TEXTS[:3]
    whole = embed(bench.packed, bench.tokenizer, texts, 200)
    monkeypatch.setattr(transformer, "_ROWS", rows)
    monkeypatch.setattr(transformer, "_SCORES", scores)
    assert_same(embed(bench.packed, bench.tokenizer, texts, 200), whole)


def test_a_query_in_the_middle_of_a_pass_disturbs_nothing(mini: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that run between the pieces of another, on the same weights, get their vectors and leave it its own."""
    monkeypatch.setattr(transformer, "_ROWS", 50)
    query = TokenBatch.of([mini.tokenizer.encode(["how do I copy files"], 64)[0].ids])
    passages = TokenBatch.of([one.ids for one in mini.tokenizer.encode(ALL_TEXTS, 128)])
    alone, undisturbed = mini.packed.encode(query, Outputs()), mini.packed.encode(passages, Outputs())
    between: list[np.ndarray] = []

    def give_way() -> None:
        found = mini.packed.encode(query, Outputs())
        assert found.dense is not None
        between.append(found.dense)

    disturbed = mini.packed.encode(passages, Outputs(), give_way)
    assert len(between) > mini.packed.config.layers * 3
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
    """What `give_way` raises ends the pass as it is, and the engine serves the next."""

    def give_way() -> None:
        raise Cancelled("nobody waits")

    batch = TokenBatch.of([mini.tokenizer.encode(["some words"], 64)[0].ids])
    with pytest.raises(Cancelled, match="nobody waits"):
        mini.packed.encode(batch, Outputs(), give_way)
    assert mini.packed.encode(batch, Outputs()).dense is not None


def test_what_torch_raises_stops_at_the_engine(packed_from: Callable[[Path], PackedEngine]) -> None:
    """Out of memory is a MemoryError wherever it happens."""

    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory: secret host")

    engine = packed_from(MINI)
    engine._layers[0] = exhausted  # type: ignore[call-overload]
    batch = batch_of([8])
    for work in (lambda: engine.encode(batch, Outputs()), lambda: engine.probe(batch)):
        with pytest.raises(MemoryError, match="does not fit into the memory of cpu"):
            work()
