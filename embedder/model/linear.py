"""Linear layers as functions, their weights prepared once for the device and type they run on.

On CPUs with oneDNN the weight is reordered once into the layout that its kernels read (twice as fast for a few rows),
and the exact GELU is fused into the product. On GPUs cublasLt fuses it in the form by tanh. int8 quantises weights per
output channel, once, and activations per row, so that a text's vectors do not depend on the texts beside it.
"""

from __future__ import annotations

import platform
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from embedder.errors import ConfigurationError


class Linear(Protocol):
    """[T, K] -> [T, N], in the type of its input."""

    def __call__(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """The product, written to `out` if given."""
        ...


_SCALE_MIN = 1e-12
"""Keeps the scale of an all-zero channel or row above zero."""
_QUANTISED_ROWS = 256
"""Rows that are quantised together: fresh memory for a whole layer's weights costs more than the arithmetic."""


def prepare(weight: Tensor, bias: Tensor, *, dtype: str, gelu: bool = False, after_gelu: bool = False) -> Linear:
    """A linear layer, followed by GELU if asked for: the exact one, unless `has_tanh_gelu`.

    Args:
        weight: [N, K], already on its device and of its final type; float32 for int8.
        bias: [N], on the same device and of the same type.
        dtype: `float32`, `bfloat16`, `float16` or `int8` (CPU only).
        gelu: whether GELU (by erf, as XLM-RoBERTa uses) follows.
        after_gelu: whether the input comes out of a GELU; int8 then spends its range on values above zero.

    Raises:
        ConfigurationError: `dtype` is int8 and this machine's torch has no kernel for it.
    """
    if dtype == "int8":
        return _quantized(weight, bias, gelu=gelu, after_gelu=after_gelu)
    if weight.device.type == "cpu" and has_onednn(dtype):
        return _prepacked(weight, bias, gelu=gelu)
    if gelu and has_tanh_gelu(weight.device.type, weight.dtype):
        return _with_epilogue(weight, bias)
    return _plain(weight, bias, gelu=gelu)


def has_tanh_gelu(device_type: str, dtype: torch.dtype) -> bool:
    """Whether GELU is computed by tanh, as a part of the product, rather than exactly, by erf.

    The two differ by less than 5e-4 everywhere. Where GELU is positive that is less than half a unit in the last place
    of float16, the rounding that its result has anyway; of bfloat16 it is an eighth of that. Where GELU is negative,
    from -0.17 to 0, it is more than such a unit: up to 5e-4 beside inputs of about 1.

    Args:
        device_type: `cpu` or `cuda`.
        dtype: of the input and the result.
    """
    return device_type == "cuda" and dtype in (torch.float16, torch.bfloat16)


def has_onednn(dtype: str) -> bool:
    """Whether oneDNN multiplies this type on this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == "float32":
        return True
    # torch says so nowhere in public.
    supported = {
        "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported,  # noqa: SLF001
        "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported,  # noqa: SLF001
    }[dtype]
    return bool(supported())


def _plain(weight: Tensor, bias: Tensor, *, gelu: bool) -> Linear:
    transposed = weight.t()

    def apply(x: Tensor, *, out: Tensor | None = None) -> Tensor:
        if gelu:
            return _placed(functional.gelu(functional.linear(x, weight, bias)), out)
        return functional.linear(x, weight, bias) if out is None else torch.addmm(bias, x, transposed, out=out)

    return apply


def _with_epilogue(weight: Tensor, bias: Tensor) -> Linear:
    transposed = weight.t()

    def apply(x: Tensor, *, out: Tensor | None = None) -> Tensor:
        return _placed(torch._addmm_activation(bias, x, transposed, use_gelu=True), out)  # noqa: SLF001

    return apply


def _prepacked(weight: Tensor, bias: Tensor, *, gelu: bool) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)  # noqa: SLF001
    activation = "gelu" if gelu else "none"

    def apply(x: Tensor, *, out: Tensor | None = None) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "none")  # noqa: SLF001
        return _placed(y, out)

    return apply


def _quantized(weight: Tensor, bias: Tensor, *, gelu: bool, after_gelu: bool) -> Linear:
    """Y = s_t s_n (q_t - z) . q_n + b: symmetric int8 weights q_n, uint8 activations q_t with one zero point z.

    s_n = max|w_n| / 127 per output channel; s_t is the smallest scale that holds row t of the input.
    The output of a GELU is never below -0.17, so there z lies low and most of the range is left for what is above.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not has_onednn("float32"):
        raise ConfigurationError("DTYPE=int8 needs an x86-64 processor and a torch with oneDNN; use auto or float32")
    # Without VNNI pairs of products are added up in 16 bits: 7 bits of activation keep them from saturating.
    highest = 255 if torch.cpu._is_vnni_supported() else 127  # noqa: SLF001
    zero = highest // 8 if after_gelu else (highest + 1) // 2
    scale = torch.maximum(weight.amax(dim=1), weight.amin(dim=1).neg_()).clamp_(min=_SCALE_MIN).div_(127.0)  # [N]
    narrow = torch.empty(weight.shape, dtype=torch.int8)
    for first in range(0, len(weight), _QUANTISED_ROWS):
        part = slice(first, first + _QUANTISED_ROWS)
        narrow[part] = (weight[part] / scale[part, None]).round_()
    packed = torch.ops.onednn.qlinear_prepack(narrow, None)
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    shift = torch.full((weight.shape[1],), zero + 0.5)  # the half makes truncation round

    def apply(x: Tensor, *, out: Tensor | None = None) -> Tensor:
        above = x.amax(dim=1, keepdim=True) / (highest - zero)
        below = x.amin(dim=1, keepdim=True) / -zero
        row = torch.maximum(above, below).clamp_(min=_SCALE_MIN)  # [T, 1]
        quantized = torch.addcmul(shift, x, row.reciprocal()).to(torch.uint8)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            quantized, 1.0, zero, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        torch.addcmul(bias, y, row, out=y)
        return _placed(functional.gelu(y) if gelu else y, out)

    return apply


def _placed(y: Tensor, out: Tensor | None) -> Tensor:
    return y if out is None else out.copy_(y)
