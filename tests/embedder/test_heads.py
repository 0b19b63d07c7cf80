"""The heads group the tokens that share a sparse weight, and run through the kernels of a GPU."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.engines import TokenBatch
from embedder.engines.inputs import Inputs
from embedder.engines.packed import PackedEngine
from embedder.model import Packing
from embedder.model.attention import WIDE_TILES_MIN_TOKENS, attends_by_tiles, tile_block
from embedder.model.heads import sparse_slots
from embedder.model.kernels import attention, norms, rows, text_spans_of, tiles_of
from embedder.model.transformer import Embedding as EmbeddingLayer
from embedder.vectors import Outputs
from tests.embedder.bench import Bench
from tests.embedder.texts import TEXTS

DROPPED = np.array([0, 2])


@given(st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=5))
@settings(max_examples=200, derandomize=True)
def test_every_text_and_id_is_one_entry(texts: list[list[int]]) -> None:
    """Tokens of one text and id share an entry, dropped ids are absent, and entries ascend by text and id."""
    ids = np.array([token for text in texts for token in text], dtype=np.int32)
    owners = np.repeat(np.arange(len(texts))[::-1], [len(text) for text in texts])
    slots = sparse_slots(ids, owners, DROPPED)
    expected = sorted({(o, i) for o, i in zip(owners.tolist(), ids.tolist(), strict=True) if i not in DROPPED})
    assert list(zip(slots.texts.tolist(), slots.ids.tolist(), strict=True)) == expected
    assert slots.slots.dtype == np.int32
    for slot, pair in zip(slots.slots.tolist(), zip(owners.tolist(), ids.tolist(), strict=True), strict=True):
        assert (pair[1] in DROPPED) if slot < 0 else expected[slot] == pair


def test_the_largest_ids_and_batches_fit_one_integer() -> None:
    """The text, id and token of a full batch with a large vocabulary stay distinct."""
    tokens = 131_072
    slots = sparse_slots(np.full(tokens, 250_001, np.int32), np.arange(tokens), DROPPED)
    assert (slots.slots == np.arange(tokens)).all()
    assert (slots.texts == np.arange(tokens)).all()
    assert (slots.ids == 250_001).all()


def test_what_attends_depends_on_the_mean_length() -> None:
    """Short texts use small attention tiles and longer texts wide ones; a CPU uses no tiles."""
    assert tile_block(2) == 64
    assert tile_block(WIDE_TILES_MIN_TOKENS) == 128
    assert not attends_by_tiles("cpu", torch.float16)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, test_cuda compares the kernels themselves")
def test_the_kernels_of_a_gpu_give_the_vectors_of_a_cpu(mini: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter the GPU kernels give the miniature model's CPU vectors."""
    pytest.importorskip("triton")
    encoded = sorted((text.ids for text in mini.tokenizer.encode(list(TEXTS.values())[:6], 80)), key=len)
    batch = TokenBatch.of(encoded)
    packing = Packing.of_tiles(
        len(batch.ids),
        torch.from_numpy(tiles_of(batch.lengths)),
        torch.from_numpy(text_spans_of(batch.lengths)),
        block=64,
    )
    ids, positions = torch.from_numpy(batch.ids), torch.from_numpy(Inputs.of(batch, mini.model.config.pad_id).positions)
    slots = sparse_slots(batch.ids, np.repeat(np.arange(len(batch)), batch.lengths), mini.model.heads.dropped_ids)

    def vectors(packing: Packing) -> list[torch.Tensor]:
        heads, first = mini.model.heads, torch.from_numpy(batch.offsets[:-1])
        states = mini.model.states(ids, positions, packing, lambda: None)
        dense, sparse = heads.dense(states, first), heads.sparse(states, torch.from_numpy(slots.slots), len(slots))
        return [dense, sparse, heads.colbert(states, torch.arange(len(ids)), torch.float32)[0]]

    with torch.inference_mode():
        plain = vectors(Packing.of(batch.lengths, "cpu", flash=None))
        for module in (attention, norms, rows):
            monkeypatch.setattr(module, "has_triton", lambda _: True)
        for ours, other in zip(vectors(packing), plain, strict=True):
            assert torch.allclose(ours, other, atol=1e-5)


def test_a_row_that_is_not_finite_is_found(mini: Bench) -> None:
    """ColBERT rows come with a flag per row that says whether it is finite."""
    states = torch.randn(4, 192)
    states[2, 7] = math.nan
    with torch.inference_mode():
        rows, finite = mini.model.heads.colbert(states, torch.tensor([3, 2, 0]), torch.float16)
    assert finite.tolist() == [True, False, True]
    assert rows.isfinite().all(dim=1).tolist() == [True, False, True]


def test_an_engine_says_which_kinds_are_finite(mini: Bench) -> None:
    """What the engine found to be finite is told with the batch; one damaged text takes both kinds back."""
    batch = TokenBatch.of([text.ids for text in mini.tokenizer.encode(["tool", "library", "data"], 16)])
    assert mini.packed.encode(batch, Outputs()).finite == {"dense", "colbert"}
    embedding = mini.model.embedding
    assert isinstance(embedding, EmbeddingLayer)
    words = embedding.words.clone()
    words[int(batch.ids[batch.offsets[1] + 1])] = math.inf
    damaged = PackedEngine(replace(mini.model, embedding=replace(embedding, words=words)))
    assert damaged.encode(batch, Outputs()).finite == frozenset()


def test_rows_leave_an_engine_in_both_types(mini: Bench) -> None:
    """A batch that wants both types has the float32 rows as they are, and the same rounded to float16."""
    batch = TokenBatch.of([text.ids for text in mini.tokenizer.encode(list(TEXTS.values())[:4], 64)])
    alone = mini.packed.encode(batch, Outputs())
    both = mini.packed.encode(batch, Outputs(also_float16=True))
    assert alone.colbert_float16 is None
    assert alone.colbert is not None
    assert both.colbert is not None
    np.testing.assert_array_equal(both.colbert, alone.colbert)
    assert both.colbert_float16 is not None
    np.testing.assert_array_equal(both.colbert_float16, alone.colbert.astype(np.float16))
