"""Every Triton kernel equals its plain form, compiled on a GPU and in Triton's interpreter elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from embedder.model.kernels import attention, norms, rows, text_spans_of, tile_count_max, tiles_of

pytest.importorskip("triton")

from embedder.model.kernels import triton_attention, triton_norms, triton_rows

# Triton's interpreter computes in numpy, which warns about NaN.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero|All-NaN slice):RuntimeWarning")

DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
EPSILON = 1e-5
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Maximum difference of numbers near 1; the plain form rounds intermediate values that the kernel does not."""
TYPES = sorted(TOLERANCE, key=str)
PRODUCT_TYPES = TYPES if DEVICE != "cpu" else [torch.float16, torch.float32]
"""Triton's interpreter takes the bits of a bfloat16 operand of a product for integers."""


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Return normally distributed numbers on the device under test."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def close(ours: Tensor, plain: Tensor, dtype: torch.dtype) -> bool:
    """Return whether both have one type and shape and are nearly equal, with NaN equal to NaN."""
    assert ours.dtype == plain.dtype
    return torch.allclose(ours.float(), plain.float(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype], equal_nan=True)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("width", [1024, 192, 60])
def test_the_norm_of_a_sum_is_that_of_torch(width: int, dtype: torch.dtype) -> None:
    """The fused residual and layer norm equals torch's for any width."""
    x, residual = draw(5, width, dtype=dtype, seed=1) * 3 + 1, draw(5, width, dtype=dtype, seed=2)
    weight, bias = draw(width, dtype=dtype, seed=3), draw(width, dtype=dtype, seed=4)
    ours = triton_norms.add_norm(x, residual, weight, bias, EPSILON)
    exact = functional.layer_norm(x.float() + residual.float(), (width,), weight.float(), bias.float(), EPSILON).to(
        dtype
    )
    assert close(ours, exact, dtype)
    if DEVICE == "cpu":
        assert close(norms.add_norm(x, residual, weight, bias, EPSILON), ours, dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_embeddings_are_gathered_added_and_normalised(dtype: torch.dtype) -> None:
    """The initial states are computed from ids, positions and embedding tables."""
    words, table = draw(11, 60, dtype=dtype, seed=1), draw(7, 60, dtype=dtype, seed=2)
    weight, bias = draw(60, dtype=dtype, seed=3), draw(60, dtype=dtype, seed=4)
    ids = torch.tensor([10, 0, 3, 3], dtype=torch.int32, device=DEVICE)
    positions = torch.tensor([6, 2, 0, 1], dtype=torch.int32, device=DEVICE)
    ours = triton_norms.embed_norm(ids, positions, words, table, weight, bias, EPSILON)
    x = words[ids.long()].float() + table[positions.long()].float()
    exact = functional.layer_norm(x, (60,), weight.float(), bias.float(), EPSILON).to(dtype)
    assert close(ours, exact, dtype)
    if DEVICE == "cpu":
        assert close(norms.embed_norm(ids, positions, words, table, weight, bias, EPSILON), ours, dtype)


# Attention

any_lengths = st.lists(st.integers(1, 200), min_size=1, max_size=40)


@given(any_lengths, st.sampled_from([16, 64, 128]))
@settings(max_examples=200, derandomize=True)
def test_tiles_hold_every_query_once_with_all_its_keys(lengths: list[int], block: int) -> None:
    """Each token is a query of one tile with all keys of its text, and the most expensive tiles come first."""
    tiles, spans = tiles_of(np.array(lengths), block), text_spans_of(np.array(lengths))
    assert tiles.dtype == spans.dtype == np.int32
    assert spans.shape == (sum(lengths), 2)
    queries = [token for first, last, _, _ in tiles for token in range(first, last)]
    assert sorted(queries) == list(range(sum(lengths)))
    for first, last, first_key, last_key in tiles:
        assert 0 < last - first <= block
        assert first_key == spans[first:last, 0].min()
        assert last_key == spans[first:last, 1].max()
        assert last_key - first_key <= block or len(np.unique(spans[first:last, 0])) == 1
    assert (np.diff(tiles[:, 3] - tiles[:, 2]) <= 0).all()


@given(any_lengths, st.sampled_from([1, 2, 16, 64, 128]))
@settings(max_examples=300, derandomize=True)
def test_tiles_are_never_more_than_the_bound(lengths: list[int], block: int) -> None:
    """A buffer of `tile_count_max` rows holds the tiles of any texts with this many tokens."""
    assert len(tiles_of(np.array(lengths), block)) <= tile_count_max(sum(lengths), block)


@pytest.mark.parametrize("block", [2, 16, 64])
@pytest.mark.parametrize("pairs", [1, 2, 7])
def test_the_bound_of_tiles_is_reached(block: int, pairs: int) -> None:
    """Texts one token over a tile, each before a text of one token, take three tiles per pair."""
    lengths = np.array([block + 1, 1] * pairs)
    assert len(tiles_of(lengths, block)) == 3 * pairs
    assert tile_count_max(int(lengths.sum()), block) in {3 * pairs, 3 * pairs + 1}


def inputs(lengths: list[int], heads: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [T, 3 H] of several sizes, tiles of 64 with padding, and spans."""
    qkv = (draw(sum(lengths), 3 * heads * width) * 1.5).to(dtype)
    tiles = torch.from_numpy(np.vstack([tiles_of(np.array(lengths)), np.zeros((2, 4), np.int32)]))
    return qkv, tiles.to(DEVICE), torch.from_numpy(text_spans_of(np.array(lengths))).to(DEVICE)


@pytest.mark.parametrize("dtype", PRODUCT_TYPES, ids=str)
@pytest.mark.parametrize("width", [64, 32, 20])
@pytest.mark.parametrize(
    "lengths", [[2], [3, 5, 9, 40], [64], [65], [130], [30, 64, 2, 150, 70, 3]], ids=lambda lengths: str(len(lengths))
)
def test_attention_by_tiles_is_that_of_each_text(lengths: list[int], width: int, dtype: torch.dtype) -> None:
    """Short texts that share a tile and long texts over several tiles attend to all of their own tokens only."""
    qkv, tiles, spans = inputs(lengths, 2, width, dtype)
    ours = triton_attention.packed_attention(qkv, tiles, spans, 2, block=64)
    exact, start = [], 0
    for length in lengths:
        q, k, v = qkv[start : start + length].float().view(length, 3, 2, width).permute(1, 2, 0, 3)
        exact.append(functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(length, -1))
        start += length
    assert close(ours, torch.cat(exact).to(dtype), dtype)
    if DEVICE == "cpu":
        assert close(attention.packed_attention(qkv, tiles, spans, 2), torch.cat(exact).to(dtype), dtype)


@pytest.mark.slow
def test_attention_takes_tiles_of_128_and_any_step() -> None:
    """Tuned tile and step sizes change the speed and not the result."""
    lengths = [40, 60, 20, 128, 300]
    qkv, tiles, spans = inputs(lengths, 2, 32, torch.float16)
    expected = triton_attention.packed_attention(qkv, tiles, spans, 2, block=64)
    wide = torch.from_numpy(tiles_of(np.array(lengths), 128)).to(DEVICE)
    for keys in (32, 128):
        launch = triton_attention.Launch(keys=keys, num_warps=8, num_stages=2)
        ours = triton_attention.packed_attention(qkv, wide, spans, 2, block=128, launch=launch)
        assert close(ours, expected, torch.float16)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("lengths", [[5, 9, 7], [5, 70, 7]], ids=["in a shared tile", "in its own"])
def test_a_damaged_text_spoils_itself_and_no_neighbour(lengths: list[int], part: int, value: float) -> None:
    """A number that is not finite affects the rows of its own text only."""
    qkv, tiles, spans = inputs(lengths, 1, 32, torch.float16)
    sound = triton_attention.packed_attention(qkv, tiles, spans, 1, block=64)
    qkv.view(-1, 3, 32)[7, part, 3] = value
    ours = triton_attention.packed_attention(qkv, tiles, spans, 1, block=64)
    start, end = lengths[0], lengths[0] + lengths[1]
    assert torch.equal(ours[:start], sound[:start])
    assert torch.equal(ours[end:], sound[end:])
    assert not ours[start:end].isfinite().all()


# Heads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [1024, 48])
def test_rows_are_gathered_and_normalised(width: int, dtype: torch.dtype) -> None:
    """The requested rows have norm 1 in the requested type, or are NaN and flagged; zeros stay zero."""
    states = draw(6, width, dtype=torch.float16)
    states[1] = 0
    states[2, 3] = math.nan
    states[4, 5] = math.inf
    chosen = torch.tensor([5, 0, 1, 2, 2, 4, 0], dtype=torch.int32, device=DEVICE)
    ours, finite = triton_rows.normalised_rows(states, chosen, dtype)
    exact = functional.normalize(states[chosen.long()].float(), dim=-1).to(dtype)
    assert close(ours[finite], exact[finite], torch.float32 if dtype == torch.float32 else torch.float16)
    assert finite.tolist() == [True, True, True, False, False, False, True]
    assert ours[~finite].isnan().all()
    if DEVICE == "cpu":
        plain, plain_finite = rows.normalised_rows(states, chosen, dtype)
        assert torch.equal(plain_finite, finite)
        assert close(plain[finite], ours[finite], torch.float16)
        assert plain[~finite].isnan().all()
        assert rows.normalised_rows(states, chosen[:2], dtype)[1].tolist() == [True, True]


def test_texts_without_rows_have_no_rows() -> None:
    """Texts of a single token have no ColBERT rows."""
    nothing = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    for normalised in (triton_rows.normalised_rows, rows.normalised_rows):
        unit_rows, finite = normalised(draw(2, 16), nothing, torch.float32)
        assert (unit_rows.shape, finite.shape) == ((0, 16), (0,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_weight_of_an_entry_is_the_largest_of_its_tokens(dtype: torch.dtype) -> None:
    """An entry has its tokens' maximum, tokens without an entry are skipped, and NaN of either sign remains."""
    states, weight, bias = draw(9, 192, dtype=dtype), draw(192, seed=1), torch.tensor(0.3, device=DEVICE)
    states[6, 0] = math.nan
    states[7, 1] = -math.nan
    states[8, 1] = math.nan
    slots = torch.tensor([0, 1, 0, 1, -1, 2, 4, 4, -1], dtype=torch.int32, device=DEVICE)
    weights = torch.relu(states.float() @ weight + bias)
    weights[5] = 0.0
    states[5] = -10 * weight.to(dtype)
    expected = torch.stack([weights[[0, 2]].max(), weights[[1, 3]].max(), weights[5], weights[5], weights[6]])
    ours = triton_rows.entry_maxima(states, weight, bias, slots, 5)
    assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    if DEVICE == "cpu":
        plain = rows.entry_maxima(states, weight, bias, slots, 5)
        assert torch.allclose(plain, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
