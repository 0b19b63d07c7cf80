"""Layer norm together with the sum before it: the bytes of a state are read and written once."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from embedder.model.kernels.launch import has_triton


def add_norm(  # noqa: PLR0917 - in the order of the formula
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, epsilon: float, out: Tensor | None = None
) -> Tensor:
    """Layer norm of `x + residual` over the last axis.

    Args:
        x: [T, H], float32 or 16 bits, contiguous; may be overwritten.
        residual: [T, H], as `x`.
        weight: [H].
        bias: [H].
        epsilon: added to the variance.
        out: [T, H] of the type of `x`, where the result is written; None for new memory.

    Returns:
        [T, H] of the type of `x`. The kernel adds and takes means in float32; the plain form rounds the sum first.
    """
    if has_triton(x.device):
        from embedder.model.kernels import triton_norms

        return triton_norms.add_norm(x, residual, weight, bias, epsilon, out=out)
    y = functional.layer_norm(x.add_(residual), weight.shape, weight, bias, epsilon)
    return y if out is None else out.copy_(y)


def embed_norm(  # noqa: PLR0917 - in the order of the formula
    ids: Tensor, positions: Tensor, words: Tensor, position_table: Tensor, weight: Tensor, bias: Tensor, epsilon: float
) -> Tensor:
    """Layer norm of the sum of a word's and a position's embedding.

    Args:
        ids: int32 [T], rows of `words`; unchecked on a GPU.
        positions: int32 [T], rows of `position_table`; unchecked on a GPU.
        words: [V, H].
        position_table: [P, H], of the type of the states.
        weight: [H].
        bias: [H].
        epsilon: added to the variance.

    Returns:
        [T, H] of the type of `position_table`.
    """
    if has_triton(words.device):
        from embedder.model.kernels import triton_norms

        return triton_norms.embed_norm(ids, positions, words, position_table, weight, bias, epsilon)
    x = functional.embedding(ids, words).to(position_table.dtype)
    x = x.add_(functional.embedding(positions, position_table))
    return functional.layer_norm(x, weight.shape, weight, bias, epsilon)
