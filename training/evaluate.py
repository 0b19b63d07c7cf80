"""Held-out retrieval quality of a checkpoint.

``python -m training.evaluate OUT`` reads ``OUT/data.json``, ``OUT/bm25.json`` and ``OUT/checkpoint`` (or
another ``--checkpoint``), prints a table and writes it to ``OUT/evaluation-<split>.json``.

Every query is scored against the whole pool, so nothing here depends on a search index.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.batches import pad
from training.data import Dataset, Split
from training.model import M3, late_interaction
from training.ranking import Quality, Ranks, fuse, measure, rank_by_score, rerank
from training.tokenizer import EOS_ID

ENCODE_BATCH = 64
QUERY_BLOCK = 64
DOCUMENT_BLOCK = 250
SPARSE_WEIGHT = 0.3
RERANK_DEPTH = 50


@dataclass(frozen=True, slots=True)
class Embedded:
    """Embeddings of ``N`` texts."""

    dense: torch.Tensor
    """``[N, H]``."""
    sparse: torch.Tensor
    """``[N, V]``, a sparse COO tensor."""
    colbert: list[torch.Tensor]
    """Per text ``[T - 1, H]``."""

    @property
    def nonzero(self) -> float:
        """Mean count of positive sparse weights per text."""
        return self.sparse.values().numel() / len(self.colbert)


@torch.no_grad()
def embed(model: M3, tokenizer: Tokenizer, texts: list[str], max_length: int) -> Embedded:
    """Embed texts in order of length, so that little is padded; cut long ones to ``max_length`` tokens."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    ids = [[*tokens[: max_length - 1], EOS_ID] if len(tokens) > max_length else tokens for tokens in ids]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    dense: dict[int, torch.Tensor] = {}
    sparse: dict[int, torch.Tensor] = {}
    colbert: dict[int, torch.Tensor] = {}
    for start in range(0, len(order), ENCODE_BATCH):
        members = order[start : start + ENCODE_BATCH]
        encoded = model(pad([ids[index] for index in members]))
        for row, index in enumerate(members):
            dense[index] = encoded.dense[row]
            sparse[index] = encoded.sparse[row].to_sparse()
            colbert[index] = encoded.colbert[row][encoded.colbert_mask[row]]
    everything = range(len(texts))
    return Embedded(
        dense=torch.stack([dense[index] for index in everything]),
        sparse=torch.stack([sparse[index] for index in everything]).coalesce(),
        colbert=[colbert[index] for index in everything],
    )


@torch.no_grad()
def colbert_scores(queries: Embedded, documents: Embedded) -> NDArray[np.float32]:
    """Late interaction of every query with every document, ``[Q, N]``, in bfloat16 for speed."""
    by_length = sorted(range(len(documents.colbert)), key=lambda index: len(documents.colbert[index]))
    scores = torch.zeros(len(queries.colbert), len(documents.colbert))
    for top in range(0, len(queries.colbert), QUERY_BLOCK):
        query, query_mask = _stack(queries.colbert[top : top + QUERY_BLOCK])
        for start in range(0, len(by_length), DOCUMENT_BLOCK):
            members = by_length[start : start + DOCUMENT_BLOCK]
            document, document_mask = _stack([documents.colbert[index] for index in members])
            block = late_interaction(query.bfloat16(), query_mask, document.bfloat16(), document_mask)
            scores[top : top + QUERY_BLOCK, members] = block
    return scores.numpy()


def _stack(vectors: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad ``B`` arrays ``[T, H]`` to ``[B, L, H]``, with their mask ``[B, L]``."""
    lengths = torch.tensor([len(rows) for rows in vectors])
    padded = torch.nn.utils.rnn.pad_sequence(vectors, batch_first=True)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return padded, mask


def rank_all(queries: Embedded, documents: Embedded, bm25: Ranks, *, colbert: bool) -> dict[str, Ranks]:
    """Rankings of the pool by each head and by ways to combine them.

    Args:
        queries: ``Q`` embedded queries.
        documents: The embedded pool.
        bm25: The baseline's ranking, ``[Q, 100]``.
        colbert: Whether to score late interaction, by far the slowest.
    """
    dense_scores = (queries.dense @ documents.dense.T).numpy()
    sparse_scores = (queries.sparse.to_dense() @ documents.sparse.to_dense().T).numpy()
    dense = rank_by_score(dense_scores)
    sparse = rank_by_score(sparse_scores)
    fused = fuse([dense, sparse])
    ranks = {
        "BM25": bm25,
        "dense": dense,
        "sparse": sparse,
        "dense + sparse RRF": fused,
        "dense + BM25 RRF": fuse([dense, bm25]),
    }
    if colbert:
        late_scores = colbert_scores(queries, documents)
        ranks["colbert"] = rank_by_score(late_scores)
        ranks[f"RRF + colbert rerank of {RERANK_DEPTH}"] = rerank(fused, late_scores, RERANK_DEPTH)
        joint_scores = dense_scores + SPARSE_WEIGHT * sparse_scores + late_scores
        ranks[f"dense + {SPARSE_WEIGHT} sparse + colbert"] = rank_by_score(joint_scores)
    return ranks


def evaluate(
    model: M3,
    tokenizer: Tokenizer,
    dataset: Dataset,
    split: Split,
    bm25: Ranks,
    *,
    max_length: int,
    colbert: bool,
) -> dict[str, Quality]:
    """Quality by name of the ranking."""
    queries = dataset.queries(split)
    documents = embed(model, tokenizer, dataset.pool, max_length)
    asked = embed(model, tokenizer, [query.text for query in queries], max_length)
    print(f"nonzero sparse weights: {asked.nonzero:.1f} per query, {documents.nonzero:.1f} per document")
    answers = np.array([query.answer for query in queries])
    ranks = rank_all(asked, documents, bm25, colbert=colbert)
    return {name: measure(ranking, answers) for name, ranking in ranks.items()}


def main() -> None:
    """Evaluate a checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("out", type=Path, help="directory with data.json and bm25.json; receives the figures")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint directory (default: OUT/checkpoint)")
    parser.add_argument("--split", choices=get_args(Split), default="dev", help="queries (default: dev)")
    parser.add_argument("--max-length", type=int, default=256, help="tokens read of a text (default: 256)")
    parser.add_argument("--threads", type=int, default=2, help="threads for PyTorch (default: 2)")
    parser.add_argument(
        "--colbert",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="score late interaction (default: yes)",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    checkpoint: Path = arguments.checkpoint or out / "checkpoint"
    split: Split = arguments.split
    model = M3.load(checkpoint)
    longest = model.encoder.config.max_position_embeddings - 2
    if arguments.max_length > longest:
        parser.error(f"--max-length is {arguments.max_length}, but the checkpoint reads {longest} at most")
    qualities = evaluate(
        model,
        Tokenizer.from_file(str(checkpoint / "tokenizer.json")),
        Dataset.load(out / "data.json"),
        split,
        np.array(json.loads((out / "bm25.json").read_text(encoding="utf-8"))[split]),
        max_length=arguments.max_length,
        colbert=arguments.colbert,
    )
    for name, quality in qualities.items():
        print(f"{name:30s}  {quality}")
    figures = {name: quality.as_dict() for name, quality in qualities.items()}
    (out / f"evaluation-{split}.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
