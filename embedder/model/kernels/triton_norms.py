"""The Triton code of `norms`: one program per row, everything in float32 between one read and one write."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    *,
    out: Tensor | None = None,
    num_warps: int = 4,
) -> Tensor:
    """See `norms.add_norm`."""
    rows, width = x.shape
    y = torch.empty_like(x) if out is None else out
    _add_norm[rows,](
        x, residual, weight, bias, y, epsilon, WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=num_warps
    )
    return y


def embed_norm(
    ids: Tensor,
    positions: Tensor,
    words: Tensor,
    position_table: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    *,
    num_warps: int = 4,
) -> Tensor:
    """See `norms.embed_norm`."""
    width = words.shape[1]
    y = torch.empty(len(ids), width, dtype=position_table.dtype, device=words.device)
    _embed_norm[len(ids),](
        ids,
        positions,
        words,
        position_table,
        weight,
        bias,
        y,
        epsilon,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        num_warps=num_warps,
    )
    return y


@triton.jit
def normalised(v, columns, inside, weight, bias, epsilon, WIDTH: tl.constexpr):
    """Layer norm of one float32 row, 0 outside its width."""
    centred = tl.where(inside, v - tl.sum(v, 0) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + epsilon)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    return centred * scale * w + b


@triton.jit
def _add_norm(x, residual, weight, bias, y, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * WIDTH
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    v = tl.load(x + row + columns, mask=inside, other=0.0).to(tl.float32)
    v += tl.load(residual + row + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row + columns, normalised(v, columns, inside, weight, bias, epsilon, WIDTH), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["ids", "positions"])
def _embed_norm(
    ids, positions, words, position_table, weight, bias, y, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    word = tl.load(ids + token).to(tl.int64) * WIDTH
    position = tl.load(positions + token).to(tl.int64) * WIDTH
    v = tl.load(words + word + columns, mask=inside, other=0.0).to(tl.float32)
    v += tl.load(position_table + position + columns, mask=inside, other=0.0).to(tl.float32)
    out = y + token.to(tl.int64) * WIDTH + columns
    tl.store(out, normalised(v, columns, inside, weight, bias, epsilon, WIDTH), mask=inside)
