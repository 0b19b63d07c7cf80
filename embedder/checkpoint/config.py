"""The sizes of a checkpoint's encoder, as its config.json gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedder.checkpoint.damage import read_object
from embedder.errors import ConfigurationError

MAX_LENGTH_MIN = 3
"""Least limit of tokens per text that a model must allow: one token, between `<s>` and `</s>`."""


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The sizes of an XLM-RoBERTa encoder.

    Attributes:
        hidden: H, width of a token state.
        layers: number of transformer layers.
        heads: attention heads; H is a multiple of it.
        intermediate: width of the feed-forward layer.
        vocabulary: rows of the token embedding.
        positions: rows of the position embedding.
        pad_id: id of `<pad>`; position ids start after it.
        epsilon: added to the variance in the layer norms.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    pad_id: int
    epsilon: float

    @property
    def max_length(self) -> int:
        """Most tokens of one text, special tokens included: positions 0..pad_id are never used by a text."""
        return self.positions - self.pad_id - 1

    @classmethod
    def read(cls, checkpoint: Path) -> EncoderConfig:
        """Read the config.json of a checkpoint.

        Args:
            checkpoint: a folder in the published layout.

        Raises:
            ConfigurationError: the file is missing, damaged or unreadable, describes another architecture, or has an
                invalid size.
        """
        path = checkpoint / "config.json"
        if not path.is_file():
            raise ConfigurationError("MODEL_ID: the checkpoint has no config.json")
        raw = read_object(path)
        for key, wanted in (
            ("model_type", "xlm-roberta"),
            ("hidden_act", "gelu"),
            ("position_embedding_type", "absolute"),
        ):
            if raw.get(key, wanted) != wanted:
                raise ConfigurationError(f"MODEL_ID: config.json has {key}={raw[key]!r}, supported is {wanted!r}")
        config = cls(
            hidden=_size(raw, "hidden_size"),
            layers=_size(raw, "num_hidden_layers"),
            heads=_size(raw, "num_attention_heads"),
            intermediate=_size(raw, "intermediate_size"),
            vocabulary=_size(raw, "vocab_size"),
            positions=_size(raw, "max_position_embeddings"),
            pad_id=_size(raw, "pad_token_id", least=0),
            epsilon=_number(raw, "layer_norm_eps"),
        )
        if config.hidden % config.heads:
            raise ConfigurationError(
                f"MODEL_ID: config.json has hidden_size={config.hidden}, "
                f"which is no multiple of num_attention_heads={config.heads}"
            )
        if config.max_length < MAX_LENGTH_MIN:
            raise ConfigurationError(
                f"MODEL_ID: config.json has max_position_embeddings={config.positions}, "
                f"which leaves no text {MAX_LENGTH_MIN} tokens behind pad_token_id={config.pad_id}"
            )
        return config


def _size(raw: dict[str, Any], key: str, *, least: int = 1) -> int:
    size = _required(raw, key)
    if type(size) is not int or size < least:  # true is an int, too
        raise ConfigurationError(f"MODEL_ID: config.json has {key}={size!r}, which must be a whole number >= {least}")
    return size


def _number(raw: dict[str, Any], key: str) -> float:
    number = _required(raw, key)
    if type(number) not in (int, float) or not 0 < number < math.inf:
        raise ConfigurationError(f"MODEL_ID: config.json has {key}={number!r}, which must be a number > 0")
    return float(number)


def _required(raw: dict[str, Any], key: str) -> Any:
    if key not in raw:
        raise ConfigurationError(f"MODEL_ID: config.json lacks {key}")
    return raw[key]
