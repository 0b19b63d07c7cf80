"""The Triton code of `rows`: one program per row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def normalised_rows(states: Tensor, rows: Tensor, dtype: torch.dtype, *, num_warps: int = 4) -> tuple[Tensor, Tensor]:
    """See `rows.normalised_rows`."""
    count, width = len(rows), states.shape[1]
    out = torch.empty(count, width, dtype=dtype, device=states.device)
    finite = torch.empty(count, dtype=torch.bool, device=states.device)
    if count:
        _normalised_rows[count,](
            states, rows, out, finite, WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=num_warps
        )
    return out, finite


def entry_maxima(
    states: Tensor, weight: Tensor, bias: Tensor, slots: Tensor, size: int, *, num_warps: int = 4
) -> Tensor:
    """See `rows.entry_maxima`."""
    count, width = states.shape
    maxima = torch.zeros(size, dtype=torch.float32, device=states.device)
    _entry_maxima[count,](
        states,
        weight,
        bias,
        slots,
        maxima.view(torch.int32),
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        num_warps=num_warps,
    )
    return maxima


@triton.jit(do_not_specialize_on_alignment=["rows", "finite"])
def _normalised_rows(states, rows, out, finite, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    number = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    row = tl.load(rows + number).to(tl.int64) * WIDTH
    v = tl.load(states + row + columns, mask=inside, other=0.0).to(tl.float32)
    v = v / tl.maximum(tl.sqrt_rn(tl.sum(v * v, 0)), 1e-12, propagate_nan=tl.PropagateNan.ALL)
    damaged = tl.sum(tl.where(tl.abs(v) < float("inf"), 0, 1), 0)  # NaN is not below infinity
    v = tl.where(damaged == 0, v, float("nan"))
    tl.store(out + number.to(tl.int64) * WIDTH + columns, v, mask=inside)
    tl.store(finite + number, damaged == 0)


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _entry_maxima(states, weight, bias, slots, maxima, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    slot = tl.load(slots + token)
    v = tl.load(states + token.to(tl.int64) * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + columns, mask=inside, other=0.0)
    x = tl.sum(v * w, 0) + tl.load(bias)
    # Floats that are not negative order as their bits do, and NaN without a sign is above them all.
    bits = tl.where(x > 0, x, 0.0).to(tl.int32, bitcast=True)
    bits = tl.where(x == x, bits, 0x7FC00000)
    tl.atomic_max(maxima + slot, bits, mask=slot >= 0, sem="relaxed")
