"""The three heads of BGE-M3, from the last hidden states of concatenated texts.

    dense   = normalize(h_<s>)
    sparse  = per token id, max over its tokens of relu(w . h_t + b); special ids removed; > 0 kept
    colbert = normalize(W h_t + c) for every token but <s>

As FlagEmbedding 1.4 computes them (`EncoderOnlyEmbedderM3ModelForInference`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from embedder.model.linear import Linear


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads' weights on their device.

    Attributes:
        sparse_weight: float32 [H]; exact in any `DTYPE`, since it costs nothing and ranks.
        sparse_bias: float32 scalar.
        colbert_linear: [T, H] -> [T, C].
        colbert_size: C, width of a ColBERT row.
        dropped: token ids that carry no sparse weight.
        vocabulary: above every token id.
    """

    sparse_weight: Tensor
    sparse_bias: Tensor
    colbert_linear: Linear
    colbert_size: int
    dropped: Tensor
    vocabulary: int

    def dense(self, states: Tensor, first: Tensor) -> Tensor:
        """Float32 [B, H], from states [T, H] and the index [B] of each text's first token."""
        return functional.normalize(states[first].float(), dim=-1)

    def sparse(self, states: Tensor, ids: Tensor, text: Tensor, texts: int) -> tuple[Tensor, Tensor, Tensor]:
        """Aggregate token weights to one maximum per text and token id, by sorting (text, id) pairs.

        Args:
            states: [T, H].
            ids: [T], token ids.
            text: int64 [T], which text a token is of.
            texts: B.

        Returns:
            Entries per text, int64 [B]; then by text and ascending id the ids, int64 [N], and weights, float32 [N].
        """
        weights = torch.relu(states.float() @ self.sparse_weight + self.sparse_bias)  # [T]
        kept = ~(weights <= 0) & ~torch.isin(ids, self.dropped)  # NaN stays, so that it is noticed
        pairs = text[kept] * self.vocabulary + ids[kept]
        unique, entry = torch.unique(pairs, return_inverse=True)
        values = torch.zeros(len(unique), device=weights.device).scatter_reduce_(0, entry, weights[kept], "amax")
        return torch.bincount(unique // self.vocabulary, minlength=texts), unique % self.vocabulary, values

    def colbert(self, states: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """[R, C] of `dtype`, from states [T, H] and the indices [R] of the tokens that have a row."""
        return functional.normalize(self.colbert_linear(states[rows]).float(), dim=-1).to(dtype)
