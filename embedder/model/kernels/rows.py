"""Row operations of the heads after their products: normalise rows, and take the maximum of each entry."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from embedder.model.kernels.launch import has_triton


def normalised_rows(states: Tensor, rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Some rows, gathered, divided by their L2 norm in float32 (at least 1e-12), and cast.

    Args:
        states: [T, C], contiguous.
        rows: int [R], indices of rows; unchecked on a GPU.
        dtype: of the result.

    Returns:
        [R, C] of `dtype`, and bool [R], whether a row of it is finite. A row that is not is NaN throughout, so that its
        first number tells it as well as its flag.
    """
    if has_triton(states.device):
        from embedder.model.kernels import triton_rows

        return triton_rows.normalised_rows(states, rows, dtype)
    return unit_rows(states[rows], dtype)


def unit_rows(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """All rows [R, C], normalised and cast as by `normalised_rows`, and bool [R], whether a row of it is finite."""
    unit = functional.normalize(rows.float(), dim=-1).to(dtype)
    if not unit.is_cuda and bool(unit.sum(dtype=torch.float32).isfinite()):  # one sum, if all are, as is the rule
        return unit, torch.ones(len(unit), dtype=torch.bool)
    finite = unit.isfinite().all(dim=1)
    return unit.masked_fill_(~finite[:, None], torch.nan), finite


def entry_maxima(states: Tensor, weight: Tensor, bias: Tensor, slots: Tensor, size: int) -> Tensor:
    """The largest `relu(weight . state + bias)` among the tokens of each entry; NaN if one of them is NaN.

    Args:
        states: [T, H], contiguous.
        weight: float32 [H].
        bias: float32 scalar.
        slots: int32 [T], the entry of each token, -1 for none; unchecked on a GPU.
        size: U, number of entries.

    Returns:
        float32 [U], 0 for entries without tokens.
    """
    if has_triton(states.device):
        from embedder.model.kernels import triton_rows

        return triton_rows.entry_maxima(states, weight, bias, slots, size)
    weights = torch.relu(states.float() @ weight + bias)
    maxima = torch.zeros(size + 1, device=states.device)  # the last collects tokens without an entry
    return maxima.scatter_reduce_(0, torch.where(slots < 0, size, slots).long(), weights, "amax")[:size]
