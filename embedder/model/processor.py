"""What products the processor computes, and the type of what stands between them."""

from __future__ import annotations

import torch

_STATE_TYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,
    "float8": torch.bfloat16,
}


def state_type(dtype: str, device_type: str) -> torch.dtype:
    """Type of the token states, and of what is not a linear layer, with products in `dtype`.

    Args:
        dtype: `float32`, `bfloat16`, `float16`, `int8` or `float8`.
        device_type: `cpu` or `cuda`.
    """
    return torch.float32 if keeps_float16_weights(dtype, device_type) else _STATE_TYPES[dtype]


def keeps_float16_weights(dtype: str, device_type: str) -> bool:
    """Whether only weights are float16, states and sums float32: on x86 processors that do not multiply float16."""
    return dtype == "float16" and device_type == "cpu" and not has_onednn(dtype) and has_fbgemm()


def has_quick_product(dtype: str) -> bool:
    """Whether a CPU computes products in `float32`, `bfloat16` or `float16` by a kernel of their own."""
    return has_onednn(dtype) or keeps_float16_weights(dtype, "cpu")


def has_fbgemm() -> bool:
    """Whether this torch has FBGEMM's products on this processor: x86 with AVX2."""
    return "fbgemm" in torch.backends.quantized.supported_engines


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
