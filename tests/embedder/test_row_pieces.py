"""A CPU computes pieces of few distinct sizes, so that its memory does not grow with every new number of tokens."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.engines.engine import TokenBatch
from embedder.engines.packed import PackedEngine
from embedder.model import linear
from embedder.model.row_pieces import row_pieces
from embedder.vectors import Outputs
from tests.embedder.bench import Bench


def test_all_batches_have_pieces_of_few_sizes() -> None:
    """Whatever numbers of tokens come, a product is compiled for 112 of them."""
    sizes = {piece.stop - piece.start for rows in range(1, 6000) for piece in row_pieces(rows, 512)}
    assert len(sizes) <= 112
    assert max(sizes) == 512


@pytest.mark.slow
@given(st.integers(1, 40_000), st.integers(1, 600))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_pieces_cover_every_row_and_few_more(rows: int, most: int) -> None:
    """No row is left out or in two pieces, none is too large, and hardly any row is computed for nothing."""
    pieces = row_pieces(rows, most)
    assert pieces[0].start == 0
    assert all(one.stop == other.start for one, other in pairwise(pieces))
    assert all(0 < piece.stop - piece.start <= most for piece in pieces)
    assert 0 <= pieces[-1].stop - rows <= (min(rows // 16, 15) if rows > 64 else 0)


@pytest.mark.slow
def test_an_engine_multiplies_few_numbers_of_rows(mini: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 255 different numbers of tokens need products of at most 112 sizes, those of the heads included."""
    sizes: set[int] = set()
    prepare = linear.prepare

    def counted(*args: object, **options: object) -> linear.Linear:
        apply = prepare(*args, **options)  # type: ignore[arg-type]

        def call(x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
            sizes.add(len(x))
            return apply(x, out=out)

        return call

    monkeypatch.setattr("embedder.model.model.prepare", counted)
    engine = PackedEngine.load(mini.checkpoint, device="cpu", dtype="float32", dropped_ids=frozenset([0, 1, 2, 3]))
    for tokens in range(2, 512, 2):
        engine.encode(TokenBatch.of([np.full(tokens, 7, dtype=np.int32)]), Outputs())
    assert len(sizes) <= 112


def test_rows_of_no_text_change_no_vector(mini: Bench) -> None:
    """A text has the same vectors whether its number of tokens is that of a piece or one less."""
    engine = PackedEngine(mini.model)
    ids = np.random.default_rng(1).integers(5, 900, 64).astype(np.int32)
    whole = engine.encode(TokenBatch.of([ids, ids[:32]]), Outputs())  # 96 rows, all of them tokens
    alone = engine.encode(TokenBatch.of([ids[:31]]), Outputs())  # 31 of 32
    beside = engine.encode(TokenBatch.of([ids[:31], ids]), Outputs())  # 95 of 96
    assert whole.dense is not None
    assert beside.dense is not None
    np.testing.assert_allclose(whole.dense[0], beside.dense[1], atol=2e-5)
    assert alone.dense is not None
    np.testing.assert_allclose(alone.dense[0], beside.dense[0], atol=2e-5)
    assert alone.colbert is not None
    assert alone.colbert.shape[0] == 30
