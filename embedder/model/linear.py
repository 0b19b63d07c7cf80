"""Linear layers as functions, their weights prepared once for the device and type they run on.

On CPUs with oneDNN the weight is reordered once into the layout that its kernels read (twice as fast for a few rows),
and the exact GELU is fused into the product. On GPUs cublasLt fuses it in the form by tanh. On x86 processors that do
not multiply float16, FBGEMM keeps float16 weights and multiplies in float32: a few rows wait for the weights to be
read from memory, and half the bytes are read. int8 is in `embedder.model.int8`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from embedder.errors import ConfigurationError
from embedder.model.int8 import int8_product
from embedder.model.processor import has_onednn, keeps_float16_weights


class Linear(Protocol):
    """[T, K] -> [T, N], in the type of its input."""

    def __call__(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """The product, written to `out` if given."""
        ...


def prepare(weight: Tensor, bias: Tensor, *, dtype: str, gelu: bool = False, after_gelu: bool = False) -> Linear:
    """A linear layer, followed by GELU if asked for: the exact one, unless `has_tanh_gelu`.

    Args:
        weight: [N, K], already on its device and of the type of the states (`state_type`).
        bias: [N], on the same device and of the same type.
        dtype: `float32`, `bfloat16`, `float16` or `int8` (CPU only).
        gelu: whether GELU (by erf, as XLM-RoBERTa uses) follows.
        after_gelu: whether the input comes out of a GELU; int8 then spends its range on values above zero.

    Raises:
        ConfigurationError: `dtype` is int8 and this machine's torch has no kernel for it, or it is float16 and a
            weight is not finite or too large for it.
    """
    if dtype == "int8":
        return _followed(int8_product(weight, bias, after_gelu=after_gelu), gelu=gelu)
    if keeps_float16_weights(dtype, weight.device.type):
        return _followed(_float16_weight_product(weight, bias), gelu=gelu)
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


def _float16_weight_product(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    largest = torch.finfo(torch.float16).max  # FBGEMM would replace larger weights by it, and NaN as well
    if not bool(torch.maximum(weight.amax(), -weight.amin()) <= largest):
        raise ConfigurationError(
            f"DTYPE=float16: a weight is not finite or larger than {largest:.0f}, the largest float16; use float32"
        )
    packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
    return lambda x: torch.ops.quantized.linear_dynamic_fp16(x, packed)


def _followed(product: Callable[[Tensor], Tensor], *, gelu: bool) -> Linear:
    """A product, which writes to new memory, and what follows it."""

    def apply(x: Tensor, *, out: Tensor | None = None) -> Tensor:
        y = product(x)
        return _placed(torch.ops.aten.gelu_(y) if gelu else y, out)

    return apply


def _placed(y: Tensor, out: Tensor | None) -> Tensor:
    return y if out is None else out.copy_(y)
