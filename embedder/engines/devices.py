"""Choice of devices and type from the settings and the machine, and translation of device errors."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from embedder.engines.calibration import product_rates
from embedder.errors import ConfigurationError, DeviceLost
from embedder.model.processor import has_quick_product

log = logging.getLogger(__name__)

_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_DECISIVE_FACTOR = 4 / 3
"""Speed factor from which a type is preferred to a more precise one; measurements vary by a tenth."""
_FLOAT8_CAPABILITY_MIN = (8, 9)
"""Oldest compute capability with products in float8."""


def choose_devices(setting: str | None) -> list[str]:
    """Devices of `GPU_DEVICE`: a name, a comma list, or None for `cuda:0` where there is one, else the CPU.

    Raises:
        ConfigurationError: an unknown name, a missing device, or a device named twice.
    """
    if setting is None:
        if torch.cuda.is_available():
            return ["cuda:0"]
        log.warning("no CUDA device found: running on the CPU (set GPU_DEVICE=cpu to say that this is meant)")
        return ["cpu"]
    devices = [_named(part.strip()) for part in setting.split(",")]
    if len(set(devices)) < len(devices):
        raise ConfigurationError(f"GPU_DEVICE={setting!r} names a device twice")
    return devices


def choose_dtype(
    setting: str,
    device: str,
    *,
    engine: str = "packed",
    rates: Callable[[Sequence[str]], Mapping[str, float]] = product_rates,
    multiplies: Callable[[str], bool] = has_quick_product,
    capability: Callable[[str], tuple[int, int]] = torch.cuda.get_device_capability,
) -> str:
    """The type of the matrix products: `DTYPE`, with `auto` resolved.

    `auto` is float16 on CUDA. On a CPU it is measured, in about 0.2 s, among the types that the processor
    has a product for: float16, unless another is faster by a third; then the faster of bfloat16 and float32, where
    float32 again must be faster by a third. For 16 bits halve the memory and the time of a single query, and
    float16 is ten times closer to float32 than bfloat16 is, or as exact as float32 where only weights are float16
    (`keeps_float16_weights`). What a processor says of itself does not settle it: with AVX512-BF16 but no AMX,
    bfloat16 is 2.6 times as fast as float32 on one vendor's cores and half as fast on another's. FlagEmbedding
    computes in float32 on any CPU. int8 and float8 are never chosen by `auto`.

    Args:
        setting: `DTYPE`.
        device: `cpu` or `cuda:N`.
        engine: `packed` or `flagembedding`.
        rates: FLOP/s of a product by type.
        multiplies: whether the processor has a product for a type.
        capability: compute capability of a GPU.

    Raises:
        ConfigurationError: `DTYPE` is float8 and the device does not multiply it.
    """
    if setting == "float8" and engine == "packed":
        _require_float8(device, capability)
    if setting != "auto":
        return setting
    if device != "cpu":
        return "float16"
    chosen, *others = [dtype for dtype in ("float16", "bfloat16") if multiplies(dtype)] + ["float32"]
    if engine != "packed" or not others:
        return "float32"
    measured = rates([chosen, *others])
    log.info(
        "rates of a product on a core: %s",
        ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in measured.items()),
    )
    for other in others:
        if measured[other] >= _DECISIVE_FACTOR * measured[chosen]:
            chosen = other
    return chosen


def _require_float8(device: str, capability: Callable[[str], tuple[int, int]]) -> None:
    needs = "DTYPE=float8 needs an NVIDIA GPU of compute capability 8.9 or newer (L4, L40S, H100)"
    if device == "cpu":
        raise ConfigurationError(f"{needs}, not a CPU; use auto or int8")
    if torch.version.hip is not None:
        raise ConfigurationError(f"{needs}; {device} is another vendor's: use auto or float16")
    if capability(device) < _FLOAT8_CAPABILITY_MIN:
        major, minor = capability(device)
        raise ConfigurationError(f"{needs}; {device} has {major}.{minor}: use auto or float16")


def _named(name: str) -> str:
    if not _DEVICE.fullmatch(name):
        raise ConfigurationError(f"GPU_DEVICE: {name!r} is an unknown device; use cpu, cuda:0 or a comma list")
    if name == "cpu":
        return name
    index = int(name.partition(":")[2] or 0)
    count = torch.cuda.device_count()
    if index >= count:
        raise ConfigurationError(f"GPU_DEVICE: cuda:{index} is not there; CUDA devices found: {count}")
    return f"cuda:{index}"


def memory_share(device: str, work: Callable[[], object]) -> float:
    """The share of a GPU's free memory that some work takes at its peak; over 1 if it raises MemoryError."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    free, _ = torch.cuda.mem_get_info(device)
    before = torch.cuda.memory_reserved(device)
    try:
        work()
    except MemoryError:
        return 2.0
    finally:
        torch.cuda.synchronize(device)
        taken = torch.cuda.max_memory_reserved(device) - before
        torch.cuda.empty_cache()
    return taken / free


def answers(device: str) -> bool:
    """Whether the device still computes; after some errors no call on it ever succeeds again."""
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError:
        return False
    return True


@contextmanager
def device_errors(device: str, *, still_answers: Callable[[str], bool] = answers) -> Iterator[None]:
    """Translate what torch raises inside into what `Engine.encode` promises; a defect keeps its type.

    Raises:
        MemoryError: the device's memory was too small.
        DeviceLost: after the error, the device does not compute any more.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"the batch does not fit into the memory of {device}") from error
    except RuntimeError as error:
        if device == "cpu" or still_answers(device):
            raise
        raise DeviceLost(f"{device} has failed for good ({type(error).__name__})") from error
