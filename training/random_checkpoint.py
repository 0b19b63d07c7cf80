"""An untrained checkpoint of any size in the layout of BAAI/bge-m3, for the shapes that the miniature lacks.

``python -m training.random_checkpoint OUT`` writes what inference needs of the published directory::

    config.json                              an XLMRobertaModel
    model.safetensors or pytorch_model.bin   its state dict
    sparse_linear.pt                         torch.nn.Linear(hidden, 1), float16 as published
    colbert_linear.pt                        torch.nn.Linear(hidden, hidden), float16 as published
    tokenizer.json, tokenizer_config.json    of another checkpoint

The same arguments give the same weights on the same version of PyTorch and the same kind of device; weight format
and dtype do not change them (but for rounding). Nothing is trained, yet outputs are fit to compare implementations
with: different texts have clearly different vectors, many but not all sparse weights are zero, and no bias or scale
is left at a value (0 or 1) that would hide its omission.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

WeightFormat = Literal["safetensors", "bin"]
Dtype = Literal["float32", "float16"]
Entries = Iterator[tuple[str, torch.Tensor]]
"""Entries of a state dict, float32."""

MINIATURE = Path(__file__).parents[1] / "embedder" / "checkpoint" / "mini"

WORD_STD = 0.05
POSITION_STD = 0.02
TYPE_STD = 0.005
BIAS_STD = 0.05
"""Spread of a linear layer's biases, in units of its outputs. Biases push all tokens the same way: much larger ones
would make texts alike and leave the sparse weights of one sign."""
NORM_STD = 0.02
"""Layer normalisations scale by 1 +- 0.02 and shift by 0 +- 0.02."""
SELECTIVITY_GAIN = 1.7
"""Gain of queries and keys: attention scores spread by its square, so attention is selective."""
BRANCH_GAIN = 1.5
"""Gain of all attention branches together, and of all feed-forward branches, whatever the depth. Were every layer
as loud as its input, the tokens of a text would all be alike after a dozen."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of an XLM-RoBERTa encoder."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    """Rows of the position table: two more than the longest text in tokens."""
    vocab: int

    def __post_init__(self) -> None:
        """Refuse sizes that no encoder has."""
        for name in ("hidden", "layers", "heads", "intermediate", "vocab"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} and must be positive")
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.positions < 5:
            raise ValueError(f"positions is {self.positions} and must be at least 5, for a text of one token")


class Initialiser:
    """Draws weights in float32, always in the same order, from one seed; other devices draw other values."""

    def __init__(self, seed: int, device: str = "cpu") -> None:
        """Seed the stream."""
        self._device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, std: float, mean: float = 0.0) -> torch.Tensor:
        """Independent normal values."""
        return torch.empty(shape, device=self._device).normal_(mean, std, generator=self._generator)

    def linear(self, name: str, inputs: int, outputs: int, gain: float = 1.0) -> Entries:
        """A linear layer: of inputs of unit variance it makes outputs of variance ``gain ** 2``."""
        yield f"{name}.weight", self.normal(outputs, inputs, std=gain / math.sqrt(inputs))
        yield f"{name}.bias", self.normal(outputs, std=gain * BIAS_STD)

    def norm(self, name: str, width: int) -> Entries:
        """A layer normalisation."""
        yield f"{name}.weight", self.normal(width, mean=1.0, std=NORM_STD)
        yield f"{name}.bias", self.normal(width, std=NORM_STD)


def encoder_weights(shape: Shape, draw: Initialiser) -> Entries:
    """The state dict of an ``XLMRobertaModel``, entry by entry, in float32."""
    hidden = shape.hidden
    branch_gain = BRANCH_GAIN / math.sqrt(shape.layers)
    yield "embeddings.word_embeddings.weight", draw.normal(shape.vocab, hidden, std=WORD_STD)
    yield "embeddings.position_embeddings.weight", draw.normal(shape.positions, hidden, std=POSITION_STD)
    yield "embeddings.token_type_embeddings.weight", draw.normal(1, hidden, std=TYPE_STD)
    yield from draw.norm("embeddings.LayerNorm", hidden)
    for number in range(shape.layers):
        layer = f"encoder.layer.{number}"
        yield from draw.linear(f"{layer}.attention.self.query", hidden, hidden, SELECTIVITY_GAIN)
        yield from draw.linear(f"{layer}.attention.self.key", hidden, hidden, SELECTIVITY_GAIN)
        yield from draw.linear(f"{layer}.attention.self.value", hidden, hidden)
        yield from draw.linear(f"{layer}.attention.output.dense", hidden, hidden, branch_gain)
        yield from draw.norm(f"{layer}.attention.output.LayerNorm", hidden)
        yield from draw.linear(f"{layer}.intermediate.dense", hidden, shape.intermediate)
        yield from _centred(draw.linear(f"{layer}.output.dense", shape.intermediate, hidden, branch_gain))
        yield from draw.norm(f"{layer}.output.LayerNorm", hidden)
    yield from draw.linear("pooler.dense", hidden, hidden)


def _centred(entries: Entries) -> Entries:
    """Make the rows of a weight sum to zero: GELU's positive mean then moves no output.

    Left in, it would push every token the same way in every layer.
    """
    for name, tensor in entries:
        yield name, tensor - tensor.mean(dim=1, keepdim=True) if tensor.dim() == 2 else tensor


def config(shape: Shape, dtype: Dtype) -> dict[str, object]:
    """``config.json`` as BAAI/bge-m3 has it, with these sizes."""
    return {
        "architectures": ["XLMRobertaModel"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "classifier_dropout": None,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": shape.positions,
        "model_type": "xlm-roberta",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "output_past": True,
        "pad_token_id": 1,
        "position_embedding_type": "absolute",
        "torch_dtype": dtype,
        "type_vocab_size": 1,
        "use_cache": True,
        "vocab_size": shape.vocab,
    }


def build(
    path: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    intermediate: int = 128,
    positions: int = 8194,
    vocab: int = 0,
    seed: int = 0,
    weight_format: WeightFormat = "safetensors",
    dtype: Dtype = "float32",
    tokenizer: Path = MINIATURE,
    device: str = "cpu",
) -> Path:
    """Write a random checkpoint.

    BAAI/bge-m3 itself has hidden 1024, layers 24, heads 16, intermediate 4096, positions 8194, vocab 250002.

    Args:
        path: A directory that is absent or empty.
        hidden: Width of the encoder, a multiple of ``heads``.
        layers: Encoder layers.
        heads: Attention heads per layer.
        intermediate: Width of the feed-forward layers.
        positions: Rows of the position table: two more than the longest text in tokens.
        vocab: Rows of the token table, at least as many as the tokenizer has tokens; 0 for just as many.
        seed: Seed of all weights.
        weight_format: Encoder weights as ``model.safetensors`` or as ``pytorch_model.bin``.
        dtype: Of the encoder weights.
        tokenizer: Directory to take the tokenizer's files from.
        device: Where the weights are drawn: a GPU takes a second for what a CPU takes a minute for, and draws
            other weights.

    Returns:
        ``path``.

    Raises:
        FileExistsError: If ``path`` holds something already.
        ValueError: If the sizes do not fit each other or the tokenizer.
    """
    tokens = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab_size()
    if vocab and vocab < tokens:
        raise ValueError(f"vocab is {vocab}, but the tokenizer has {tokens} tokens")
    shape = Shape(hidden, layers, heads, intermediate, positions, vocab or tokens)
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise FileExistsError(f"{path} is not empty")

    draw = Initialiser(seed, device)
    stored = getattr(torch, dtype)
    weights = {name: tensor.to(stored).cpu() for name, tensor in encoder_weights(shape, draw)}
    if weight_format == "safetensors":
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(weights, path / "pytorch_model.bin")
    for name, outputs in (("sparse_linear", 1), ("colbert_linear", hidden)):
        entries = draw.linear(name, hidden, outputs)
        head = {key.removeprefix(f"{name}."): tensor.half().cpu() for key, tensor in entries}
        torch.save(head, path / f"{name}.pt")

    _write_json(path / "config.json", config(shape, dtype))
    shutil.copyfile(tokenizer / "tokenizer.json", path / "tokenizer.json")
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    _write_json(path / "tokenizer_config.json", settings | {"model_max_length": positions - 2})
    return path


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write a random checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m training.random_checkpoint", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("out", type=Path, help="directory to write, absent or empty")
    sizes = {
        "hidden": (64, "width of the encoder"),
        "layers": (2, "encoder layers"),
        "heads": (4, "attention heads per layer"),
        "intermediate": (128, "width of the feed-forward layers"),
        "positions": (8194, "rows of the position table: longest text in tokens + 2"),
        "vocab": (0, "rows of the token table; 0 for as many as the tokenizer has tokens"),
        "seed": (0, "seed of all weights"),
    }
    for name, (default, meaning) in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (default: {default})")
    parser.add_argument("--format", choices=get_args(WeightFormat), default="safetensors")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="float32")
    parser.add_argument("--tokenizer", type=Path, default=MINIATURE, help="whose tokenizer to take")
    parser.add_argument("--device", default="cpu", help="where the weights are drawn; each kind draws its own")
    arguments = vars(parser.parse_args())
    build(arguments.pop("out"), weight_format=arguments.pop("format"), **arguments)


if __name__ == "__main__":
    main()
