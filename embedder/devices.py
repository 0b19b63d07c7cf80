"""Which devices to use and in which type, from what the settings say and what the machine has."""

from __future__ import annotations

import logging
import re

import torch

from embedder.errors import ConfigurationError

log = logging.getLogger(__name__)

_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


def choose_devices(setting: str | None) -> list[str]:
    """Devices of `GPU_DEVICE`: a name, a comma list, or None for `cuda:0` where there is one, else the CPU.

    Raises:
        ConfigurationError: a name that is none, a device that is not there, or one named twice.
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


def choose_dtype(setting: str, device: str, *, engine: str = "packed") -> str:
    """The type of the matrix products: `DTYPE`, with `auto` resolved.

    `auto` is float16 on CUDA; on CPUs bfloat16 where the processor multiplies it (AVX512-BF16, AMX),
    else float32. FlagEmbedding computes in float32 on any CPU.
    """
    if setting != "auto":
        return setting
    if device != "cpu":
        return "float16"
    return "bfloat16" if engine == "packed" and _multiplies_bfloat16() else "float32"


def _named(name: str) -> str:
    if not _DEVICE.fullmatch(name):
        raise ConfigurationError(f"GPU_DEVICE: {name!r} is no device; use cpu, cuda:0 or a comma list")
    if name == "cpu":
        return name
    index = int(name.partition(":")[2] or 0)
    found = torch.cuda.device_count()
    if index >= found:
        raise ConfigurationError(f"GPU_DEVICE: cuda:{index} is not there; CUDA devices found: {found}")
    return f"cuda:{index}"


def _multiplies_bfloat16() -> bool:
    # torch says so nowhere in public.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # noqa: SLF001
