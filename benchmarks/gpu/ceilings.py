"""The ceilings that shares refer to: the rates of the model's own products and of a copy on this card."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.bench import Bench, NotRunError
from benchmarks.gpu.clock import kernel_seconds, synchronize
from benchmarks.gpu.power import metered
from benchmarks.gpu.results import Row
from benchmarks.shape import Shape

ROWS = 32_768
_QUICK_ROWS = 64
_SUSTAINED_S = 1.2
_SUSTAINED_LAYERS = 24
_COPY_BYTES = 2 << 30
_QUICK_COPY_BYTES = 1 << 22
_FLOAT8_CAPABILITY_MIN = (8, 9)
_FLOAT8_MAX = 448.0
"""Largest value of float8_e4m3fn."""

Product = Callable[[], Tensor]


def ceilings(bench: Bench) -> Iterator[Row]:
    """FLOP/s of each product of a layer and of all of them together, per type; bytes/s of a copy."""
    rows = _QUICK_ROWS if bench.quick else ROWS
    for dtype, product in _types(bench).items():
        total_s = total_flops = 0.0
        works: list[Product] = []
        with torch.inference_mode():
            for inputs, outputs in _products(bench.shape):
                works.append(product(rows, inputs, outputs, bench.device))
                seconds = kernel_seconds(works[-1], bench.device)
                flops = 2.0 * rows * inputs * outputs
                total_s, total_flops = total_s + seconds, total_flops + flops
                yield {
                    "product": f"{inputs} -> {outputs}",
                    "dtype": dtype,
                    "seconds": seconds,
                    "flops_s": flops / seconds,
                }
        yield {
            "product": "model",
            "dtype": dtype,
            "flops_s": total_flops / total_s,
            "tokens_s": rows / (total_s * bench.shape.layers),
        }
        yield {"product": "sustained", "dtype": dtype} | _sustained(bench, works, total_flops, rows)
    if bench.on_gpu and not has_float8(bench.device):
        yield {"product": "model", "dtype": "float8", "reason": "the GPU has no float8 products"}
    yield {"product": "copy", "bytes_s": _copy_rate(bench)}


def _sustained(bench: Bench, works: Sequence[Product], flops: float, rows: int) -> Row:
    """The products of a layer one after the other for so long that the card takes the clock that its power allows."""
    layer_s: list[float] = []

    def layer() -> None:
        for work in works:
            work()

    ends_s = time.perf_counter() + bench.seconds(_SUSTAINED_S)
    with torch.inference_mode(), metered(bench.device) as figures:
        while not layer_s or time.perf_counter() < ends_s:
            layer_s.append(kernel_seconds(layer, bench.device, repeats=_SUSTAINED_LAYERS))
    seconds = statistics.median(layer_s[len(layer_s) // 2 :])
    return {"flops_s": flops / seconds, "tokens_s": rows / (seconds * bench.shape.layers), **figures}


def has_float8(device: str) -> bool:
    """Whether the GPU multiplies float8."""
    return torch.cuda.get_device_capability(device) >= _FLOAT8_CAPABILITY_MIN


def require_float8(bench: Bench) -> None:
    """Refuse a section that needs float8 products.

    Raises:
        NotRunError: the device has none.
    """
    if not bench.on_gpu:
        raise NotRunError("float8 needs a GPU")
    if not has_float8(bench.device):
        raise NotRunError("the GPU has no float8 products (compute capability 8.9)")


def _types(bench: Bench) -> dict[str, Callable[[int, int, int, str], Product]]:
    if not bench.on_gpu:
        return {"float32": _plain(torch.float32)}
    types = {"float16": _plain(torch.float16)}
    return types | {"float8": _float8} if has_float8(bench.device) else types


def _products(shape: Shape) -> list[tuple[int, int]]:
    """Inputs and outputs of the four products of a layer; query, key and value are one."""
    hidden, intermediate = shape.hidden, shape.intermediate
    return [(hidden, 3 * hidden), (hidden, hidden), (hidden, intermediate), (intermediate, hidden)]


def _plain(dtype: torch.dtype) -> Callable[[int, int, int, str], Product]:
    def product(rows: int, inputs: int, outputs: int, device: str) -> Product:
        x = torch.randn(rows, inputs, dtype=dtype, device=device)
        weight, bias = (
            torch.randn(outputs, inputs, dtype=dtype, device=device),
            torch.zeros(outputs, dtype=dtype, device=device),
        )
        return lambda: functional.linear(x, weight, bias)

    return product


def _float8(rows: int, inputs: int, outputs: int, device: str) -> Product:
    """Scales per row of the input and per channel of the weight, bfloat16 results."""
    x, x_scale = _quantised(torch.randn(rows, inputs, device=device))
    weight, weight_scale = _quantised(torch.randn(outputs, inputs, device=device))

    def product() -> Tensor:
        return torch._scaled_mm(  # noqa: SLF001 - has no public name
            x, weight.t(), x_scale, weight_scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
        )

    return product


def _quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(dim=1, keepdim=True) / _FLOAT8_MAX
    return (x / scale).to(torch.float8_e4m3fn), scale


def _copy_rate(bench: Bench) -> float:
    """Bytes read and written per second."""
    size = _QUICK_COPY_BYTES if bench.quick else _COPY_BYTES
    source = torch.empty(size, dtype=torch.uint8, device=bench.device).random_()
    target = torch.empty_like(source)
    synchronize(bench.device)
    return 2 * size / kernel_seconds(lambda: target.copy_(source), bench.device)
