"""The Triton code of `float8`: one program per row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from embedder.model.kernels.triton_norms import normalised


def quantise(x: Tensor, *, gelu: bool, num_warps: int = 4) -> tuple[Tensor, Tensor]:
    """See `float8.quantise` and `float8.gelu_quantise`: values and scales."""
    rows, width = x.shape
    values, scales = _buffers(rows, width, x.device)
    _quantise[rows,](
        x, values, scales, WIDTH=width, BLOCK=triton.next_power_of_2(width), GELU=gelu, num_warps=num_warps
    )
    return values, scales


def add_norm_quantise(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    *,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
    num_warps: int = 4,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `float8.add_norm_quantise`: states, values and scales."""
    rows, width = x.shape
    y, values, scales = out or (torch.empty_like(x), *_buffers(rows, width, x.device))
    _add_norm_quantise[rows,](
        x,
        residual,
        weight,
        bias,
        y,
        values,
        scales,
        epsilon,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        num_warps=num_warps,
    )
    return y, values, scales


def embed_norm_quantise(
    ids: Tensor,
    positions: Tensor,
    words: Tensor,
    position_table: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    *,
    num_warps: int = 4,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `float8.embed_norm_quantise`: states, values and scales."""
    rows, width = len(ids), words.shape[1]
    y = torch.empty(rows, width, dtype=position_table.dtype, device=words.device)
    values, scales = _buffers(rows, width, words.device)
    _embed_norm_quantise[rows,](
        ids,
        positions,
        words,
        position_table,
        weight,
        bias,
        y,
        values,
        scales,
        epsilon,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        num_warps=num_warps,
    )
    return y, values, scales


def _buffers(rows: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    values = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=device)
    return values, torch.empty(rows, 1, dtype=torch.float32, device=device)


@triton.jit
def _store_quantised(v, values, scales, row, columns, inside, WIDTH: tl.constexpr):
    """Write one float32 row, 0 outside its width, as values and a scale."""
    scale = tl.maximum(tl.max(tl.abs(v), 0) / 448.0, 1e-12)
    tl.store(scales + row, scale)
    tl.store(values + row * WIDTH + columns, (v * (1.0 / scale)).to(tl.float8e4nv), mask=inside)


@triton.jit
def _normal_probability(v):
    """(1 + erf(v / sqrt 2)) / 2 within 1e-7, in fewer steps than erf: Abramowitz and Stegun 7.1.26."""
    z = tl.abs(v) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * z)
    tail = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    tail = 0.5 * tail * tl.exp2(z * z * -1.4426950408889634)
    return tl.where(v < 0, tail, 1.0 - tail)


@triton.jit
def _quantise(x, values, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    v = tl.load(x + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        v = v * _normal_probability(v)
    _store_quantised(v, values, scales, row, columns, inside, WIDTH)


@triton.jit
def _add_norm_quantise(x, residual, weight, bias, y, values, scales, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    v = tl.load(x + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    v += tl.load(residual + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    v = normalised(v, columns, inside, weight, bias, epsilon, WIDTH)
    tl.store(y + row * WIDTH + columns, v, mask=inside)
    _store_quantised(v, values, scales, row, columns, inside, WIDTH)


@triton.jit(do_not_specialize_on_alignment=["ids", "positions"])
def _embed_norm_quantise(
    ids,
    positions,
    words,
    position_table,
    weight,
    bias,
    y,
    values,
    scales,
    epsilon,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    word = tl.load(ids + row).to(tl.int64) * WIDTH
    position = tl.load(positions + row).to(tl.int64) * WIDTH
    v = tl.load(words + word + columns, mask=inside, other=0.0).to(tl.float32)
    v += tl.load(position_table + position + columns, mask=inside, other=0.0).to(tl.float32)
    v = normalised(v, columns, inside, weight, bias, epsilon, WIDTH)
    tl.store(y + row * WIDTH + columns, v, mask=inside)
    _store_quantised(v, values, scales, row, columns, inside, WIDTH)
