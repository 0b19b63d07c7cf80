"""Batches of token ids from pairs of texts; every random choice of a training comes from one stream."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.data import Pair
from training.recipe import Recipe
from training.tokenizer import BOS_ID, EOS_ID, PAD_ID

MAX_QUERY_TOKENS = 30
MIN_SENTENCE_WORDS = 4
SHORT_DOCUMENT_LENGTHS = (48, 96)
"""Besides ``max_length``: cutting some batches short keeps long documents from setting the pace."""
LEAF_SLACK = 1.4
"""A set of neighbours is not split further once it is at most this many batches large."""
SHIFTED_SHARE = 0.25
"""Share of batches whose positions start later, so that every row of the position table is trained."""
MIN_DROPPABLE_QUERY = 6
"""Shorter queries lose no tokens."""

TokenIds = list[int]


@dataclass(frozen=True, slots=True)
class Corpus:
    """The training pairs as token ids without special tokens; the lists run in parallel, by pair."""

    queries: list[TokenIds]
    documents: list[TokenIds]
    sentences: list[list[TokenIds]]
    """The sentences of each document, for the inverse cloze task."""
    clusters: list[list[int]]
    """Pair indices by near-duplicate cluster."""

    @classmethod
    def encode(cls, tokenizer: Tokenizer, pairs: list[Pair]) -> Corpus:
        """Tokenize the pairs."""

        def encode(texts: list[str]) -> list[TokenIds]:
            return [encoding.ids[1:-1] for encoding in tokenizer.encode_batch(texts)]

        sentence_texts = [_sentences(pair.body) for pair in pairs]
        sentence_ids = iter(encode([sentence for texts in sentence_texts for sentence in texts]))
        clusters: dict[int, list[int]] = defaultdict(list)
        for index, pair in enumerate(pairs):
            clusters[pair.cluster].append(index)
        return cls(
            queries=encode([pair.short for pair in pairs]),
            documents=encode([pair.body for pair in pairs]),
            sentences=[[next(sentence_ids) for _ in texts] for texts in sentence_texts],
            clusters=list(clusters.values()),
        )


def _sentences(text: str) -> list[str]:
    parts = re.split(r"(?<=[.!?;:]) ", text)
    return [part for part in parts if len(part.split()) >= MIN_SENTENCE_WORDS]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's pairs: row ``i`` of the documents answers row ``i`` of the queries."""

    queries: torch.Tensor
    """Token ids, int64 ``[B, Lq]``, padded."""
    documents: torch.Tensor
    """Token ids, int64 ``[B, Ld]``, padded."""
    position_shift: int
    """Added to the documents' positions."""


def pad(sequences: list[TokenIds]) -> torch.Tensor:
    """Stack token ids, int64 ``[B, L]``, shorter ones filled up with the padding token."""
    padded = torch.full((len(sequences), max(map(len, sequences))), PAD_ID, dtype=torch.long)
    for row, ids in enumerate(sequences):
        padded[row, : len(ids)] = torch.as_tensor(ids)
    return padded


def endless_batches(
    corpus: Corpus,
    document_vectors: NDArray[Any],
    recipe: Recipe,
    rng: np.random.Generator,
) -> Iterator[Batch]:
    """Batches for as long as they are asked for.

    Each pass takes one random member of every near-duplicate cluster, so no batch holds two near duplicates.

    Args:
        corpus: The training pairs.
        document_vectors: ``[N, K]``, what makes documents neighbours.
        recipe: Sizes and shares.
        rng: The one source of randomness.
    """
    while True:
        picked = np.array([members[rng.integers(len(members))] for members in corpus.clusters])
        alike = neighbour_groups(document_vectors[picked], recipe.batch_size, rng)
        mixed = np.array_split(rng.permutation(len(picked)), len(alike))
        for neighbours, strangers in zip(alike, mixed, strict=True):
            chosen = neighbours if rng.random() < recipe.neighbours else strangers
            yield draw_batch(corpus, picked[chosen].tolist(), recipe, rng)


def neighbour_groups(vectors: NDArray[Any], size: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Split items into groups of about ``size`` whose vectors are alike, in random order.

    A random projection tree (Dasgupta and Freund 2008): halve at the median of a random projection until
    a group is small enough.

    Args:
        vectors: ``[N, K]``.
        size: Items wanted per group.
        rng: Source of the projections.
    """
    undivided = [np.arange(len(vectors))]
    groups: list[NDArray[np.int64]] = []
    while undivided:
        items = undivided.pop()
        if len(items) <= size * LEAF_SLACK:
            groups.append(items)
            continue
        direction = rng.standard_normal((vectors.shape[1],)).astype(np.float32)
        order = np.argsort(vectors[items] @ direction)
        half = len(items) // 2
        undivided += [items[order[:half]], items[order[half:]]]
    rng.shuffle(groups)
    return groups


def draw_batch(corpus: Corpus, members: list[int], recipe: Recipe, rng: np.random.Generator) -> Batch:
    """Make examples of the given pairs: inverse cloze, cutting, token dropout, position shift."""
    longest = int(rng.choice([*SHORT_DOCUMENT_LENGTHS, recipe.max_length]))
    queries: list[TokenIds] = []
    documents: list[TokenIds] = []
    for member in members:
        query, document = _example(corpus, member, recipe.inverse_cloze, rng)
        if len(query) >= MIN_DROPPABLE_QUERY:
            query = _drop_tokens(query, rng.random(len(query)), recipe.token_dropout)
        document = _drop_tokens(document[:longest], rng.random(longest), recipe.token_dropout)
        query = query or corpus.queries[member]
        queries.append([BOS_ID, *query[:MAX_QUERY_TOKENS], EOS_ID])
        documents.append([BOS_ID, *document[: longest - 2], EOS_ID])
    shift = 0
    if rng.random() < SHIFTED_SHARE:
        shift = int(rng.integers(0, recipe.positions - 2 - recipe.max_length))
    return Batch(pad(queries), pad(documents), shift)


def _example(
    corpus: Corpus,
    member: int,
    inverse_cloze: float,
    rng: np.random.Generator,
) -> tuple[TokenIds, TokenIds]:
    """The pair itself, or a sentence of its document and the others (inverse cloze, Lee et al. 2019)."""
    sentences = corpus.sentences[member]
    if len(sentences) >= 2 and rng.random() < inverse_cloze:
        asked = rng.integers(len(sentences))
        rest = [token for index, ids in enumerate(sentences) if index != asked for token in ids]
        return sentences[asked], rest
    return corpus.queries[member], corpus.documents[member]


def _drop_tokens(ids: TokenIds, chances: NDArray[np.float64], share: float) -> TokenIds:
    return [token for token, chance in zip(ids, chances, strict=False) if chance > share]
