"""The Triton code of `attention`: one program per tile and head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Launch:
    """The compile-time parameters of a kernel.

    Attributes:
        keys: keys of a step.
        num_warps: warps of a program.
        num_stages: steps whose keys and values are loaded ahead.
        registers: maximum per thread; None lets the compiler choose.
    """

    keys: int
    num_warps: int
    num_stages: int
    registers: int | None = None


LAUNCHES = {64: Launch(keys=32, num_warps=4, num_stages=2), 128: Launch(keys=64, num_warps=8, num_stages=3)}
"""Launch parameters by the number of queries of a tile."""


def packed_attention(
    qkv: Tensor, tiles: Tensor, text_spans: Tensor, heads: int, *, block: int, launch: Launch | None = None
) -> Tensor:
    """See `attention.packed_attention`."""
    launch = launch or LAUNCHES[block]
    tokens, width = qkv.shape
    hidden = width // 3
    head_width = hidden // heads
    out = torch.empty(tokens, hidden, dtype=qkv.dtype, device=qkv.device)
    # Heads vary fastest: the programs that run together read whole rows, and the most expensive tiles come first.
    _attend[heads, len(tiles)](
        qkv,
        out,
        tiles,
        text_spans,
        SCALE=math.log2(math.e) / math.sqrt(head_width),
        HIDDEN=hidden,
        WIDTH=head_width,
        BLOCK_D=max(16, triton.next_power_of_2(head_width)),
        BLOCK_M=block,
        BLOCK_N=launch.keys,
        PRECISION="ieee" if qkv.dtype == torch.float32 else "tf32",
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        maxnreg=launch.registers,
    )
    return out


@triton.jit(do_not_specialize_on_alignment=["tiles", "spans"])
def _attend(
    qkv,
    out,
    tiles,
    spans,
    SCALE: tl.constexpr,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile = tiles + 4 * tl.program_id(1)
    first, last = tl.load(tile), tl.load(tile + 1)
    if first >= last:
        return
    first_key, last_key = tl.load(tile + 2), tl.load(tile + 3)
    stride: tl.constexpr = 3 * HIDDEN
    columns = tl.arange(0, BLOCK_D)[None, :]
    rows = tl.arange(0, BLOCK_M)
    keys = tl.arange(0, BLOCK_N)
    within = (first + rows < last)[:, None] & (columns < WIDTH)
    head = tl.program_id(0) * WIDTH

    q = tl.load(qkv + head + first.to(tl.int64) * stride + rows[:, None] * stride + columns, mask=within, other=0.0)
    k_pointers = qkv + HIDDEN + head + first_key.to(tl.int64) * stride + keys[:, None] * stride + columns
    v_pointers = k_pointers + HIDDEN
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    context = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    # If the last query is of the text that the keys begin with, all keys are of this text, and whole steps need no
    # mask.
    count = last_key - first_key
    single = tl.load(spans + 2 * (last - 1)) <= first_key
    whole = tl.where(single, count // BLOCK_N * BLOCK_N, 0)
    for step in tl.range(0, whole, BLOCK_N):
        k = tl.load(k_pointers + step * stride, mask=columns < WIDTH, other=0.0)
        v = tl.load(v_pointers + step * stride, mask=columns < WIDTH, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        raised = tl.maximum(highest, tl.max(scores, 1) * SCALE)
        p = tl.exp2(scores * SCALE - raised[:, None])
        kept = tl.exp2(highest - raised)
        total = total * kept + tl.sum(p, 1)
        context = tl.dot(p.to(v.dtype), v, context * kept[:, None], input_precision=PRECISION)
        highest = raised

    if whole < count:
        starts = tl.load(spans + 2 * (first + rows), mask=first + rows < last, other=0) - first_key
        ends = tl.load(spans + 2 * (first + rows) + 1, mask=first + rows < last, other=0) - first_key
        for step in tl.range(whole, count, BLOCK_N, num_stages=1):
            loaded = (step + keys < count)[:, None] & (columns < WIDTH)
            k = tl.load(k_pointers + step * stride, mask=loaded, other=0.0)
            v = tl.load(v_pointers + step * stride, mask=loaded, other=0.0)
            # 0 times infinity or NaN is NaN: a damaged value must reach the rows of its own text, and no other.
            finite = tl.abs(v) < float("inf")
            damaged = tl.max(tl.where(finite, 0.0, 1.0), 1)
            v = tl.where(finite, v, 0.0)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            scores = tl.where(damaged[None, :] > 0.0, float("nan"), scores)
            key = (step + keys)[None, :]
            scores = tl.where((key >= starts[:, None]) & (key < ends[:, None]), scores, float("-inf"))
            raised = tl.maximum(highest, tl.max(scores, 1) * SCALE)
            safe = tl.where(raised == float("-inf"), 0.0, raised)  # no key of these rows so far
            p = tl.exp2(scores * SCALE - safe[:, None])
            kept = tl.exp2(highest - safe)
            total = total * kept + tl.sum(p, 1)
            context = tl.dot(p.to(v.dtype), v, context * kept[:, None], input_precision=PRECISION)
            highest = raised

    context = context / tl.where(total == 0.0, 1.0, total)[:, None]
    target = out + head + first.to(tl.int64) * HIDDEN + rows[:, None] * HIDDEN + columns
    tl.store(target, context.to(out.dtype.element_ty), mask=within)
