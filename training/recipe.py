"""The training recipe: every figure that decides how a miniature comes out."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

Value = TypeVar("Value", int, float, bool)


def _setting(meaning: str, *, default: Value) -> Value:
    value: Value = field(default=default, metadata={"help": meaning})
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings of one training run; the defaults made the miniature (with ``steps`` 1900)."""

    vocab: int = _setting("tokens in the vocabulary, the five special ones included", default=11_000)
    hidden: int = _setting("width of the encoder", default=192)
    layers: int = _setting("encoder layers", default=3)
    heads: int = _setting("attention heads per layer", default=6)
    intermediate: int = _setting("width of the feed-forward layers", default=768)
    positions: int = _setting("rows of the position table: longest text in tokens + 2", default=514)
    initial_std: float = _setting("standard deviation of the encoder's initial weights", default=0.05)
    lsa: bool = _setting("start the token embeddings from an LSA of the training text", default=True)

    steps: int = _setting("optimiser steps; 0 trains for a time instead", default=0)
    minutes: float = _setting("time to train for when steps is 0", default=30.0)
    batch_size: int = _setting("pairs per step; the batch's other documents are the negatives", default=128)
    learning_rate: float = _setting("highest learning rate; warms up, then falls to 3 %% of it", default=1e-3)
    max_length: int = _setting("longest training document in tokens; some are cut shorter", default=128)
    token_dropout: float = _setting("share of tokens left out: no single word may decide", default=0.1)
    inverse_cloze: float = _setting("share of pairs where a sentence asks for the rest", default=0.25)
    neighbours: float = _setting("share of batches of similar documents: harder negatives", default=0.5)

    temperature: float = _setting("temperature of the dense, colbert and joint scores", default=0.03)
    sparse_temperature: float = _setting("temperature of the sparse scores", default=0.03)
    distill: float = _setting("weight of the self-distillation; 0 turns it off", default=1.0)
    distill_from: float = _setting("share of the training after which self-distillation starts", default=0.1)

    seed: int = _setting("seed of all random choices", default=7)
    threads: int = _setting("threads for PyTorch", default=2)
    bfloat16: bool = _setting("compute the encoder and the colbert scores in bfloat16", default=True)

    def __post_init__(self) -> None:
        """Refuse combinations that cannot work."""
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.positions <= self.max_length + 2:
            raise ValueError(f"positions ({self.positions}) must exceed max_length ({self.max_length}) + 2")
        if self.steps < 0 or (self.steps == 0 and self.minutes <= 0):
            raise ValueError(f"steps ({self.steps}) or else minutes ({self.minutes}) must be positive")

    def as_dict(self) -> dict[str, Any]:
        """The settings by name, for JSON."""
        return asdict(self)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Give ``parser`` one option per setting."""
        for setting in fields(cls):
            option = "--" + setting.name.replace("_", "-")
            kind = type(setting.default)
            meaning = f"{setting.metadata['help']} (default: %(default)s)"
            if kind is bool:
                action = argparse.BooleanOptionalAction
                parser.add_argument(option, action=action, default=setting.default, help=meaning)
            else:
                parser.add_argument(option, type=kind, default=setting.default, help=meaning)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Recipe:
        """Read the options that :meth:`add_arguments` defined."""
        return cls(**{setting.name: getattr(arguments, setting.name) for setting in fields(cls)})
