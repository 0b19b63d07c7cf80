"""The check whether Triton kernels run on a device."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch

log = logging.getLogger(__name__)

_CAPABILITY_MIN = (8, 0)
"""Oldest compute capability that the kernels are written for: bfloat16 and asynchronous copies."""


@cache
def has_triton(device: torch.device | str) -> bool:
    """Whether the Triton kernels run on this device: a CUDA GPU of compute capability 8.0 or newer.

    Tried once per device: it compiles and runs a kernel, for Triton also needs a C compiler, which slim images lack.
    """
    return _runs(torch.device(device))


@cache
def _runs(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip is not None or find_spec("triton") is None:
        return False
    if torch.cuda.get_device_capability(device) < _CAPABILITY_MIN:
        return False
    try:
        from embedder.model.kernels import triton_rows

        states = torch.ones(1, 16, dtype=torch.float16, device=device)
        with torch.cuda.device(device):
            triton_rows.normalised_rows(states, torch.zeros(1, dtype=torch.int32, device=device), torch.float32)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever Triton fails with, the plain path computes the same
        log.warning("Triton does not run on %s (%s): the slower plain kernels are used", device, _first_line(error))
        return False
    return True


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
