"""The variable-length flash kernel: softmax attention over all texts of a batch at once, on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor

Flash = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""(q, k, v, bounds, longest) -> context: [T, heads, D] each; bounds int32 [B + 1], where the texts begin and end."""

_WIDEST = 256
"""Widest head of the flash kernels; narrower ones must be multiples of 8."""


def flash_kernel(device: str, dtype: torch.dtype, head: int) -> Flash | None:
    """The kernel for heads of this width and type on this device; None where there is none.

    Args:
        device: `cpu` or `cuda:N`.
        dtype: of the states.
        head: width of a head, D.
    """
    fits = dtype in (torch.float16, torch.bfloat16) and head % 8 == 0 and head <= _WIDEST
    if device == "cpu" or not fits or not torch.backends.cuda.is_flash_attention_available():
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        # Here, because it imports torch's compiler: a second of a start that a CPU has no use for.
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10
        return None
    # A text's sums are not split by the length of the longest text beside it, where torch lets one say so: on ROCm
    # its kernel has the parameter and refuses it.
    tells = "num_splits" in signature(varlen_attn).parameters and torch.version.hip is None
    unsplit: dict[str, Any] = {"num_splits": 1} if tells else {}

    def attend(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int) -> Tensor:
        found: Tensor = varlen_attn(q, k, v, bounds, bounds, longest, longest, **unsplit)  # type: ignore[assignment]
        return found

    return attend
