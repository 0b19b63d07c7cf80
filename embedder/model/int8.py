"""Linear layers in int8 on x86 CPUs: weights quantised per output channel, once, and activations per row.

So a text's vectors do not depend on the texts beside it. A product is oneDNN's where the processor multiplies int8
itself (AVX512-VNNI, AMX). With AVX2 alone FBGEMM is three to five times as fast for a few rows: which one this machine
gets is measured once. AVX2 adds products in pairs in 16 bits, which no pair may overflow: there weights have fewer
bits, as many as the largest pair of a channel leaves them.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

from embedder.errors import ConfigurationError
from embedder.model.one_core import quickest_runs
from embedder.model.processor import has_fbgemm, has_onednn

Library = Literal["onednn", "fbgemm"]

_SCALE_MIN = 1e-12
"""Keeps the scale of an all-zero channel or row above zero."""
_QUANTISED_ROWS = 256
"""Rows that are quantised together: fresh memory for a whole layer's weights costs more than the arithmetic."""
_DECISIVE_FACTOR = 4 / 3
"""Speed factor from which FBGEMM, whose weights have fewer bits, is preferred to oneDNN."""
_WEIGHT_MAX = 127
_PAIR_MAX = 128
"""Sum of two neighbouring weights of one sign, as integers, where pairs of products are added in 16 bits."""
_PAIRED_HIGHEST = 254
"""Largest activation there: 254 x 129 = 32 766 fits into 16 bits, and rounding makes a pair larger by 1 at most."""


@dataclass(frozen=True, slots=True)
class _Range:
    """The unsigned integers of an activation.

    Attributes:
        zero: the integer that means 0.
        highest: the largest integer.
    """

    zero: int
    highest: int

    @classmethod
    def of(cls, highest: int, *, after_gelu: bool) -> _Range:
        """Half of the integers for what is below 0, or an eighth after a GELU, whose output is never below -0.17."""
        return cls(highest // 8 if after_gelu else (highest + 1) // 2, highest)

    def row_scales(self, x: Tensor) -> Tensor:
        """[T, 1]: for each row of x [T, K] the smallest scale that holds it."""
        above = x.amax(dim=1, keepdim=True).div_(self.highest - self.zero)
        below = x.amin(dim=1, keepdim=True).div_(-self.zero)
        return torch.maximum(above, below).clamp_(min=_SCALE_MIN)


Product = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x [T, K] -> y [T, N], the product without the scale of its rows, in new memory, and that scale [T, 1]."""


def _adds_pairs(library: Library) -> bool:
    """Whether a library adds products in pairs in 16 bits on this processor."""
    return library == "fbgemm" or not torch.cpu._is_vnni_supported()  # noqa: SLF001 - torch says so nowhere in public


def _onednn_product(narrow: Tensor, scale: Tensor, *, after_gelu: bool) -> Product:
    integers = _Range.of(_PAIRED_HIGHEST if _adds_pairs("onednn") else 255, after_gelu=after_gelu)
    packed = torch.ops.onednn.qlinear_prepack(narrow, None)
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    shift = torch.full((narrow.shape[1],), integers.zero + 0.5)  # the half makes truncation round

    def product(x: Tensor) -> tuple[Tensor, Tensor]:
        row = integers.row_scales(x)
        quantized = torch.addcmul(shift, x, row.reciprocal()).to(torch.uint8)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            quantized, 1.0, integers.zero, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return y, row

    return product


def _fbgemm_product(narrow: Tensor, scale: Tensor, *, after_gelu: bool) -> Product:
    """FBGEMM's product, which quantises its input itself; with the scale 1, since each row is divided by its own."""
    integers = _Range.of(_PAIRED_HIGHEST, after_gelu=after_gelu)
    with _fbgemm_packs():
        weight = torch._make_per_channel_quantized_tensor(  # noqa: SLF001 - has no public name
            narrow, scale.double(), torch.zeros(len(scale), dtype=torch.int64), 0
        )
        packed = torch.ops.quantized.linear_prepack(weight, None)

    def product(x: Tensor) -> tuple[Tensor, Tensor]:
        row = integers.row_scales(x)
        y: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x * row.reciprocal(), 1.0, integers.zero, packed
        )
        return y, row

    return product


@contextmanager
def _fbgemm_packs() -> Iterator[None]:
    """Weights that are packed inside are FBGEMM's."""
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            # torch announces that a later version will have no quantised tensors; requirements hold an earlier one.
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor", category=UserWarning)
            yield
    finally:
        torch.backends.quantized.engine = engine


_PRODUCTS: Final[Mapping[Library, Callable[..., Product]]] = {
    "onednn": _onednn_product,
    "fbgemm": _fbgemm_product,
}
"""(q_n [N, K], s_n [N], after_gelu) -> product."""


def int8_product(
    weight: Tensor, bias: Tensor, *, after_gelu: bool, library: Library | None = None
) -> Callable[[Tensor], Tensor]:
    """Y = s_t s_n (q_t - z) . q_n + b: symmetric int8 weights q_n, unsigned activations q_t with one zero point z.

    s_n and s_t are the smallest scales that hold output channel n of the weights and row t of the input.

    Args:
        weight: float32 [N, K], on the CPU.
        bias: float32 [N].
        after_gelu: whether the input comes out of a GELU: most of the integers are then for values above zero.
        library: whose product; None for the one that was measured to be the faster.

    Returns:
        Float32 [T, K] -> [T, N], in new memory.

    Raises:
        ConfigurationError: this machine's torch has no kernel for it.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not has_onednn("float32"):
        raise ConfigurationError("DTYPE=int8 needs an x86-64 processor and a torch with oneDNN; use auto or float32")
    library = library or fastest_library()
    narrow, scale = _quantised(weight, paired=_adds_pairs(library))
    product = _PRODUCTS[library](narrow, scale, after_gelu=after_gelu)

    def apply(x: Tensor) -> Tensor:
        y, row = product(x)
        return torch.addcmul(bias, y, row, out=y)

    return apply


def _quantised(weight: Tensor, *, paired: bool) -> tuple[Tensor, Tensor]:
    """The weights as int8 [N, K], and the scale of each channel [N]; `paired` bounds the sums of pairs."""
    narrow, scale = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
    for first in range(0, len(weight), _QUANTISED_ROWS):
        rows = weight[first : first + _QUANTISED_ROWS]
        largest = torch.maximum(rows.amax(dim=1), rows.amin(dim=1).neg_()).div_(_WEIGHT_MAX)
        if paired:
            torch.maximum(largest, _largest_pairs(rows).div_(_PAIR_MAX), out=largest)
        scale[first : first + len(rows)] = largest.clamp_(min=_SCALE_MIN)
        narrow[first : first + len(rows)] = (rows / largest[:, None]).round_()
    return narrow, scale


def _largest_pairs(rows: Tensor) -> Tensor:
    """[N]: of the weights 2 i and 2 i + 1 of each channel, the largest sum of what has one sign."""
    pairs = functional.pad(rows, (0, rows.shape[1] % 2)).view(len(rows), -1, 2)
    above, below = pairs.clamp(min=0).sum(dim=2), pairs.clamp(max=0).sum(dim=2)
    return torch.maximum(above.amax(dim=1), below.amin(dim=1).neg_())


@cache
def fastest_library() -> Library:
    """Whose int8 products of a few rows this processor computes faster; measured on one core, in a few milliseconds."""
    if not has_fbgemm():
        return "onednn"
    x, weight, scale = torch.ones(16, 1024), torch.ones(1024, 1024, dtype=torch.int8), torch.ones(1024)
    seconds = quickest_runs(
        {name: partial(make(weight, scale, after_gelu=False), x) for name, make in _PRODUCTS.items()}, rounds=5
    )
    return "fbgemm" if seconds["onednn"] > _DECISIVE_FACTOR * seconds["fbgemm"] else "onednn"
