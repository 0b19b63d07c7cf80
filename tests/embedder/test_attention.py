"""Attention runs on the kernel that suits the device, and each gives the same result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import varlen

from embedder.model import attention
from embedder.model.attention import attention_by_products, flash_kernel, product_size


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(3, 40, 40), (1, 7, 64)], ids=["texts", "part of a text"])
@pytest.mark.parametrize("scores", [1, 8000, 1 << 22])
def test_attention_by_products_is_the_kernel_rounded(
    dtype: torch.dtype, sizes: tuple[int, int, int], scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each query has the kernel's result within bfloat16, however many heads are computed together."""
    monkeypatch.setattr(attention, "_PRODUCT_SCORES", scores)
    torch.manual_seed(0)
    texts, queries, keys = sizes
    q = torch.randn(texts, 4, queries, 32).to(dtype)
    k, v = torch.randn(2, texts, 4, keys, 32).to(dtype)
    given = q.clone()
    context = attention_by_products(q, k, v)
    exact = functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
    assert (context - exact).abs().max() < 0.03
    assert torch.equal(q, given)


def test_attention_by_products_spreads_no_damage() -> None:
    """A text that is not finite leaves the others of its batch as they are."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 40, 32).to(torch.bfloat16)
    sound = attention_by_products(q, k, v)
    q[1, 2, 3, 4] = float("nan")
    context = attention_by_products(q, k, v)
    assert not torch.isfinite(context[1, 2, 3]).any()
    assert torch.equal(context[0], sound[0])


def test_attention_by_products_has_few_sizes() -> None:
    """A size that oneDNN compiled stays in memory: there are few, so ever new lengths of texts take no more of it."""
    sizes = [product_size(tokens) for tokens in range(1, 8193)]
    assert len(set(sizes)) <= 56
    assert all(tokens <= size < tokens + max(16, tokens / 8 + 1) for tokens, size in enumerate(sizes, 1))
