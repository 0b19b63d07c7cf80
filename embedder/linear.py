"""Linear layers as functions, their weights prepared once for the device and type they run on.

On CPUs with oneDNN the weight is reordered once into the layout that its kernels read (twice as fast
for a few rows) and the exact GELU is fused into the product. int8 quantises weights per output channel
once and activations per call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Linear = Callable[[Tensor], Tensor]
"""[T, K] -> [T, N], in the type of its input."""


def prepare(weight: Tensor, bias: Tensor, *, dtype: str, gelu: bool = False) -> Linear:
    """A linear layer, followed by the exact GELU if asked for.

    Args:
        weight: [N, K], already on its device and, unless `dtype` is int8, of its final type.
        bias: [N], likewise.
        dtype: `float32`, `bfloat16`, `float16` or `int8` (CPU only).
        gelu: whether GELU (by erf, as XLM-RoBERTa uses) follows.
    """
    if dtype == "int8":
        return _quantized(weight, bias, gelu=gelu)
    onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if onednn and weight.device.type == "cpu" and dtype in ("float32", "bfloat16"):
        return _prepacked(weight, bias, gelu=gelu)
    return _plain(weight, bias, gelu=gelu)


def _plain(weight: Tensor, bias: Tensor, *, gelu: bool) -> Linear:
    def apply(x: Tensor) -> Tensor:
        y = functional.linear(x, weight, bias)
        return functional.gelu(y) if gelu else y

    return apply


def _prepacked(weight: Tensor, bias: Tensor, *, gelu: bool) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)  # noqa: SLF001
    activation = "gelu" if gelu else "none"

    def apply(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "none")  # noqa: SLF001
        return y

    return apply


def _quantized(weight: Tensor, bias: Tensor, *, gelu: bool) -> Linear:
    weight = weight.float()
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127.0  # [N]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # deprecated, with no replacement that packs weights
        quantized = torch.quantize_per_channel(
            weight, scale.double(), torch.zeros(len(scale), dtype=torch.int64), 0, torch.qint8
        )
    packed = torch.ops.quantized.linear_prepack(quantized, bias.float())

    def apply(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic(x, packed, reduce_range=False)
        return functional.gelu(y) if gelu else y

    return apply
