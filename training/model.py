"""BGE-M3 for training: an XLM-RoBERTa encoder with dense, sparse and colbert heads.

The heads are those of "M3-Embedding" (Chen et al. 2024, arXiv:2402.03216) as FlagEmbedding implements them.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import XLMRobertaModel

from training.tokenizer import PAD_ID, UNK_ID, save_tokenizer


class Encoded(NamedTuple):
    """The model's outputs for ``B`` texts of at most ``L`` tokens; float32."""

    dense: torch.Tensor
    """``[B, H]``, unit length: the last hidden state of the first token."""
    sparse: torch.Tensor
    """``[B, V]``, >= 0: per token id the largest weight among its places; special tokens have none."""
    colbert: torch.Tensor
    """``[B, L - 1, H]``: a unit vector per token after the first, zero where padded."""
    colbert_mask: torch.Tensor
    """bool ``[B, L - 1]``: true where a token stands."""


class M3(torch.nn.Module):
    """The encoder and its two linear heads (the dense head has no weights)."""

    def __init__(self, encoder: XLMRobertaModel) -> None:
        """Put freshly drawn heads onto an encoder."""
        super().__init__()
        hidden = encoder.config.hidden_size
        self.encoder = encoder
        self.sparse_linear = torch.nn.Linear(hidden, 1)
        self.colbert_linear = torch.nn.Linear(hidden, hidden)
        self.vocab = encoder.config.vocab_size

    def forward(self, ids: torch.Tensor, position_shift: int = 0) -> Encoded:
        """Embed padded token ids.

        Args:
            ids: int64 ``[B, L]``, special tokens included.
            position_shift: Added to the position of every token that is not padding.
        """
        mask = ids != PAD_ID  # [B, L]
        positions = torch.where(mask, mask.cumsum(1) + PAD_ID + position_shift, PAD_ID)
        output = self.encoder(ids, attention_mask=mask, position_ids=positions)
        hidden = output.last_hidden_state.float()  # [B, L, H]
        weights = torch.relu(self.sparse_linear(hidden).float()).squeeze(-1) * (ids > UNK_ID)  # [B, L]
        sparse = torch.zeros(len(ids), self.vocab).scatter_reduce(1, ids, weights, "amax")
        colbert = functional.normalize(self.colbert_linear(hidden[:, 1:]).float(), dim=-1) * mask[:, 1:, None]
        return Encoded(functional.normalize(hidden[:, 0], dim=-1), sparse, colbert, mask[:, 1:])

    @classmethod
    def load(cls, directory: Path) -> M3:
        """Read a checkpoint into float32, ready to embed."""
        model = cls(XLMRobertaModel.from_pretrained(directory, dtype=torch.float32))
        for name, head in model.heads():
            head.load_state_dict(torch.load(directory / f"{name}.pt", weights_only=True))
        return model.float().eval()

    def save(self, directory: Path, tokenizer: Tokenizer) -> None:
        """Write a checkpoint of float16 weights in the layout of BAAI/bge-m3."""
        directory.mkdir(parents=True, exist_ok=True)
        half = copy.deepcopy(self).half()
        half.encoder.save_pretrained(directory)
        for name, head in half.heads():
            torch.save(head.state_dict(), directory / f"{name}.pt")
        save_tokenizer(tokenizer, directory, half.encoder.config.max_position_embeddings - 2)

    def heads(self) -> tuple[tuple[str, torch.nn.Linear], ...]:
        """The linear heads by the name of their file."""
        return ("sparse_linear", self.sparse_linear), ("colbert_linear", self.colbert_linear)


def late_interaction(
    queries: torch.Tensor,
    query_mask: torch.Tensor,
    documents: torch.Tensor,
    document_mask: torch.Tensor,
) -> torch.Tensor:
    """ColBERT scores (Khattab and Zaharia 2020): the best document token per query token, averaged.

    One flat product over the real query tokens, which is faster than padding them.

    Args:
        queries: ``[Bq, Lq, H]``.
        query_mask: bool ``[Bq, Lq]``.
        documents: ``[Bd, Ld, H]``.
        document_mask: bool ``[Bd, Ld]``.

    Returns:
        float32 ``[Bq, Bd]``.
    """
    products = queries[query_mask] @ documents.flatten(0, 1).T  # [T, Bd * Ld], T real query tokens
    products = products.view(-1, *documents.shape[:2])
    best = products.masked_fill(~document_mask, -1e4).amax(2)  # [T, Bd]
    owner = query_mask.nonzero()[:, 0]  # [T]
    total = torch.zeros(len(queries), len(documents), dtype=best.dtype).index_add(0, owner, best)
    return total.float() / query_mask.sum(1, keepdim=True)
