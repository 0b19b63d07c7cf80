"""Attention runs on the flash kernel of the installed torch, with the options that this kernel accepts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from embedder.model.attention import flash_kernel


@pytest.mark.parametrize(("hip", "options"), [(None, {"num_splits": 1}), ("6.4.43482", {})], ids=["cuda", "rocm"])
def test_rocm_is_not_asked_about_splits(
    hip: str | None, options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA computes one split per text; on ROCm, whose kernel rejects the option, it is not passed."""
    passed_options: list[dict[str, Any]] = []

    def kernel(q: Tensor, *_: object, num_splits: int | None = None) -> Tensor:
        passed_options.append({} if num_splits is None else {"num_splits": num_splits})
        return q

    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    attend = flash_kernel("cuda:0", torch.float16, 64)
    assert attend is not None
    q = torch.zeros(2, 1, 64)
    assert attend(q, q, q, torch.tensor([0, 2]), 2) is q
    assert passed_options == [options]


@pytest.mark.parametrize(
    ("device", "dtype", "head"),
    [("cpu", torch.float16, 64), ("cuda:0", torch.float32, 64), ("cuda:0", torch.float16, 60)],
)
def test_what_the_kernel_does_not_take_is_left_to_others(device: str, dtype: torch.dtype, head: int) -> None:
    """A CPU, float32 and an unsupported head size have no flash kernel, and none is called."""
    assert flash_kernel(device, dtype, head) is None
