"""Train a miniature BGE-M3 on CPU.

The recipe: a Unigram tokenizer on the training text; token embeddings started from a latent semantic
analysis of it; InfoNCE over in-batch negatives on the dense, sparse and colbert scores and on their sum;
after a tenth of the training, self-distillation from that sum, as in "M3-Embedding" (Chen et al. 2024,
arXiv:2402.03216).

``python -m training.train OUT --steps 1900`` reads ``OUT/data.json`` and writes ``OUT/checkpoint`` and
``OUT/recipe.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import XLMRobertaConfig, XLMRobertaModel

from training.batches import Batch, Corpus, endless_batches
from training.data import Dataset
from training.lsa import factorise
from training.model import M3, late_interaction
from training.recipe import Recipe
from training.tokenizer import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS, train_tokenizer

EMBEDDING_STD = 0.05
POSITION_STD = 0.01
SPARSE_STD = 0.01
SPARSE_BIAS = 0.2
"""Every token starts with a small positive weight; from below zero a ReLU would not learn."""

WARM_UP_STEPS = 100
FINAL_RATE = 0.03
"""Last learning rate as a share of the highest."""
WEIGHT_DECAY = 0.01
ADAM_BETAS = (0.9, 0.98)
MAX_GRADIENT_NORM = 1.0

JOINT_SPARSE_WEIGHT = 0.3
"""The joint score is dense + 0.3 sparse + colbert, as FlagEmbedding combines them."""
SPARSE_LOSS_WEIGHT = 0.5
REPORT_EVERY = 50


# --- model ----------------------------------------------------------------------------------------


def initial_model(recipe: Recipe, vocab: int, token_vectors: NDArray[Any]) -> M3:
    """A model before its first step.

    Args:
        recipe: Sizes.
        vocab: Size ``V`` of the vocabulary.
        token_vectors: ``[V, H]``, where the token embeddings start (if the recipe says so).
    """
    config = XLMRobertaConfig(
        vocab_size=vocab,
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.intermediate,
        max_position_embeddings=recipe.positions,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=BOS_ID,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=recipe.initial_std,
        attn_implementation="eager",  # its backward pass is twice as fast as sdpa's on CPU
    )
    model = M3(XLMRobertaModel(config))
    embeddings = model.encoder.embeddings
    with torch.no_grad():
        if recipe.lsa:
            embeddings.word_embeddings.weight.copy_(spread_axes(token_vectors))
            embeddings.word_embeddings.weight[: len(SPECIAL_TOKENS)].normal_(0, EMBEDDING_STD)
        embeddings.word_embeddings.weight[PAD_ID] = 0
        embeddings.position_embeddings.weight.normal_(0, POSITION_STD)
        torch.nn.init.orthogonal_(model.colbert_linear.weight)
        model.sparse_linear.weight.normal_(0, SPARSE_STD)
        model.sparse_linear.bias.fill_(SPARSE_BIAS)
    for parameter in model.encoder.pooler.parameters():
        parameter.requires_grad_(requires_grad=False)
    return model


def spread_axes(vectors: NDArray[Any]) -> torch.Tensor:
    """Rotate vectors ``[V, H]`` at random and scale them to ``EMBEDDING_STD``.

    The first axes of an SVD carry most of the variance; layer normalisation, which weighs each axis alike,
    wants it spread.
    """
    hidden = vectors.shape[1]
    rotation = torch.linalg.qr(torch.randn(hidden, hidden))[0].numpy()
    rotated = vectors @ rotation
    return torch.tensor(rotated / np.sqrt((rotated**2).mean()) * EMBEDDING_STD)


# --- objective ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of every query for every document of a batch, ``[B, B]``; the answers lie on the diagonal."""

    dense: torch.Tensor
    sparse: torch.Tensor
    colbert: torch.Tensor
    nonzero: tuple[float, float]
    """Mean count of positive sparse weights per query and per document."""

    @property
    def joint(self) -> torch.Tensor:
        """Weighted mean of the three."""
        return (self.dense + JOINT_SPARSE_WEIGHT * self.sparse + self.colbert) / (2 + JOINT_SPARSE_WEIGHT)


def score(model: M3, batch: Batch, *, bfloat16: bool) -> Scores:
    """Embed a batch and score all its pairs."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        query = model(batch.queries)
        document = model(batch.documents, batch.position_shift)
        colbert = late_interaction(query.colbert, query.colbert_mask, document.colbert, document.colbert_mask)
    return Scores(
        dense=query.dense @ document.dense.T,
        sparse=query.sparse @ document.sparse.T,
        colbert=colbert,
        nonzero=(mean_nonzero(query.sparse), mean_nonzero(document.sparse)),
    )


def mean_nonzero(weights: torch.Tensor) -> float:
    """Mean count of positive values per row."""
    return (weights > 0).sum(1).float().mean().item()


def info_nce(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross entropy of the diagonal of ``[B, B]``, mean of both directions (van den Oord et al. 2018)."""
    logits = scores / temperature
    answers = torch.arange(len(logits))
    by_query = functional.cross_entropy(logits, answers)
    by_document = functional.cross_entropy(logits.T, answers)
    return (by_query + by_document) / 2


def objective(scores: Scores, recipe: Recipe, *, distilling: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss, and its dense, sparse and colbert parts.

    Args:
        scores: Scores of one batch.
        recipe: Temperatures and the weight of distillation.
        distilling: Whether the joint score, taken as fixed, also teaches the three heads.
    """
    heads = [
        (scores.dense, recipe.temperature, 1.0),
        (scores.sparse, recipe.sparse_temperature, SPARSE_LOSS_WEIGHT),
        (scores.colbert, recipe.temperature, 1.0),
    ]
    joint = scores.joint
    parts = [w * info_nce(head, t) for head, t, w in heads]
    loss = parts[0] + parts[1] + parts[2] + info_nce(joint, recipe.temperature)
    if distilling:
        teacher = (joint.detach() / recipe.temperature).softmax(1)
        lessons = [w * functional.cross_entropy(head / t, teacher) for head, t, w in heads]
        loss = loss + recipe.distill * (lessons[0] + lessons[1] + lessons[2])
    return loss, parts


# --- optimisation ---------------------------------------------------------------------------------


def learning_rate(highest: float, step: int, done: float) -> float:
    """Linear warm-up times linear decay; ``done`` is the share of the training behind us."""
    return highest * min(1, (step + 1) / WARM_UP_STEPS) * (1 - (1 - FINAL_RATE) * done)


class Optimiser:
    """AdamW with clipped gradients; weight decay on matrices only."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Take charge of the model's trainable parameters."""
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trainable if parameter.dim() > 1]
        vectors = [parameter for parameter in trainable if parameter.dim() <= 1]
        self._parameters = [*matrices, *vectors]
        groups = [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(groups, betas=ADAM_BETAS, fused=True)

    def step(self, loss: torch.Tensor, rate: float) -> None:
        """Follow the gradient of ``loss`` at the given learning rate."""
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)
        self._adam.step()


class Report:
    """Prints a running mean of the loss every few steps."""

    def __init__(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._mean: NDArray[np.float64] | None = None

    @property
    def minutes(self) -> float:
        """Time since the first step was asked for."""
        return (time.monotonic() - self._started) / 60

    def add(self, step: int, rate: float, parts: list[torch.Tensor], scores: Scores) -> None:
        """Take in one step, numbered from one."""
        latest = np.array([part.item() for part in parts])
        self._mean = latest if self._mean is None else 0.98 * self._mean + 0.02 * latest
        if step % REPORT_EVERY == 0:
            dense, sparse, colbert = self._mean
            print(
                f"step {step}  {60 * self.minutes:.0f} s  rate {rate:.1e}  "
                f"loss dense {dense:.3f} sparse {sparse:.3f} colbert {colbert:.3f}  "
                f"nonzero weights {scores.nonzero[0]:.1f} / {scores.nonzero[1]:.1f}",
                flush=True,
            )


def optimise(model: M3, batches: Iterable[Batch], recipe: Recipe) -> int:
    """Train until the recipe's steps or minutes are used up; returns the steps taken."""
    optimiser = Optimiser(model)
    report = Report()
    steps = 0
    for batch in batches:
        done = steps / recipe.steps if recipe.steps else report.minutes / recipe.minutes
        if done >= 1:
            break
        rate = learning_rate(recipe.learning_rate, steps, done)
        scores = score(model, batch, bfloat16=recipe.bfloat16)
        distilling = recipe.distill > 0 and done > recipe.distill_from
        loss, parts = objective(scores, recipe, distilling=distilling)
        optimiser.step(loss, rate)
        steps += 1
        report.add(steps, rate, parts, scores)
    return steps


def train(dataset: Dataset, recipe: Recipe, tokenizer: Tokenizer | None = None) -> tuple[M3, Tokenizer, int]:
    """Train from scratch.

    Args:
        dataset: Whose training pairs to use.
        recipe: How.
        tokenizer: A tokenizer to reuse; without one, it is trained first.

    Returns:
        The model, its tokenizer and the steps taken.
    """
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    if tokenizer is None:
        texts = (text for pair in dataset.train for text in (pair.short, pair.body))
        tokenizer = train_tokenizer(texts, recipe.vocab)
    vocab = tokenizer.get_vocab_size()
    corpus = Corpus.encode(tokenizer, dataset.train)
    pairs = [query + document for query, document in zip(corpus.queries, corpus.documents, strict=True)]
    factors = factorise(pairs, vocab, recipe.hidden, recipe.seed)
    model = initial_model(recipe, vocab, factors.tokens)
    print(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    batches = endless_batches(corpus, factors.documents, recipe, np.random.default_rng(recipe.seed))
    steps = optimise(model, batches, recipe)
    return model, tokenizer, steps


def main() -> None:
    """Train and write the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("out", type=Path, help="directory with data.json; receives the checkpoint")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json to reuse (default: train one)")
    Recipe.add_arguments(parser)
    arguments = parser.parse_args()
    out: Path = arguments.out
    recipe = Recipe.from_arguments(arguments)
    started = time.monotonic()
    reused = Tokenizer.from_file(str(arguments.tokenizer)) if arguments.tokenizer else None
    model, tokenizer, steps = train(Dataset.load(out / "data.json"), recipe, reused)
    model.save(out / "checkpoint", tokenizer)
    seconds = round(time.monotonic() - started)
    record = {**recipe.as_dict(), "steps_taken": steps, "seconds": seconds}
    (out / "recipe.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{steps} steps, {seconds} s in all")


if __name__ == "__main__":
    main()
