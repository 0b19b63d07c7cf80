"""Find a BGE-M3 checkpoint in its published layout, and read its small files.

config.json                             XLM-RoBERTa sizes
model.safetensors | pytorch_model.bin   the encoder
sparse_linear.pt, colbert_linear.pt     the two heads, nn.Linear state dicts
tokenizer.json                          the tokenizer
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedder.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

DEFAULT_MODEL = "BAAI/bge-m3"
DEFAULT_REVISION = "5617a9f61b028005a4858fdac845db406aefb181"
MINI = Path(__file__).parent / "checkpoints" / "mini"
PLATFORM_CACHE = Path("/runpod-volume/huggingface-cache/hub")
"""Where RunPod's model cache mounts what an endpoint names as its model."""

_SHORTEST = 3
"""Tokens of a text that the model must take: one, between `<s>` and `</s>`."""
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_HEADS = ("sparse_linear.pt", "colbert_linear.pt")


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
        epsilon: of the layer norms.
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
        """Most tokens of one text: positions 0..pad_id are never used by one."""
        return self.positions - self.pad_id - 1

    @classmethod
    def read(cls, checkpoint: Path) -> EncoderConfig:
        """From config.json.

        Raises:
            ConfigurationError: it is missing or damaged, describes another architecture, or has a size that is none.
        """
        path = checkpoint / "config.json"
        if not path.is_file():
            raise ConfigurationError("MODEL_ID: the checkpoint has no config.json")
        with readable(path.name):
            raw: dict[str, Any] = {**json.loads(path.read_text(encoding="utf-8"))}
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
        if config.max_length < _SHORTEST:
            raise ConfigurationError(
                f"MODEL_ID: config.json has max_position_embeddings={config.positions}, "
                f"which leaves no text {_SHORTEST} tokens behind pad_token_id={config.pad_id}"
            )
        return config


def _size(raw: dict[str, Any], key: str, *, least: int = 1) -> int:
    found = _required(raw, key)
    if type(found) is not int or found < least:  # true is an int, too
        raise ConfigurationError(f"MODEL_ID: config.json has {key}={found!r}, which must be a whole number >= {least}")
    return found


def _number(raw: dict[str, Any], key: str) -> float:
    found = _required(raw, key)
    if type(found) not in (int, float) or not 0 < found < math.inf:
        raise ConfigurationError(f"MODEL_ID: config.json has {key}={found!r}, which must be a number > 0")
    return float(found)


def _required(raw: dict[str, Any], key: str) -> Any:
    if key not in raw:
        raise ConfigurationError(f"MODEL_ID: config.json lacks {key}")
    return raw[key]


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Whatever a reader inside raises becomes a ConfigurationError that names the file, not where it lies."""
    try:
        yield
    except Exception as error:
        raise ConfigurationError(
            f"MODEL_ID: {name} is damaged or not in the published format ({type(error).__name__}); fetch it again"
        ) from error


def locate(model_id: str, revision: str | None = None, *, platform_cache: Path = PLATFORM_CACHE) -> Path:
    """The folder of a checkpoint: `mini`, a local directory, the platform's cache, or the hub.

    A hub name is looked for in the platform's cache first; else the hub client finds it in its own
    cache or downloads it, honouring `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE`.

    Args:
        model_id: `mini`, a path, or `organisation/name`.
        revision: a commit of the hub; None is the pinned one for `BAAI/bge-m3` and `main` for others.
        platform_cache: root of the platform's model cache.

    Raises:
        ConfigurationError: no such checkpoint, or it lacks a file.
    """
    if model_id == "mini":
        return _complete(MINI)
    local = Path(model_id)
    if local.is_dir():
        return _complete(local)
    if not _is_hub_name(model_id):
        raise ConfigurationError("MODEL_ID: is neither `mini`, nor a directory that exists, nor a hub name")
    cached = _platform_snapshot(platform_cache, model_id, revision)
    if cached is not None:
        return _complete(cached)
    pinned = revision or (DEFAULT_REVISION if model_id == DEFAULT_MODEL else "main")
    return _complete(_download(model_id, pinned))


def _is_hub_name(model_id: str) -> bool:
    parts = model_id.split("/")
    return len(parts) == 2 and all(part and part.strip(".") and part == part.strip() for part in parts)


def _complete(checkpoint: Path) -> Path:
    missing = [name for name in ("config.json", "tokenizer.json", *_HEADS) if not (checkpoint / name).is_file()]
    if not any((checkpoint / name).is_file() for name in _WEIGHTS):
        missing.append(" or ".join(_WEIGHTS))
    if missing:
        raise ConfigurationError(f"MODEL_ID: the checkpoint lacks {', '.join(missing)}")
    return checkpoint


def _platform_snapshot(cache: Path, model_id: str, revision: str | None) -> Path | None:
    root = cache / f"models--{model_id.replace('/', '--')}"
    if not (root / "snapshots").is_dir():
        return None
    pinned = revision or (DEFAULT_REVISION if model_id == DEFAULT_MODEL else None)
    if pinned and (root / "snapshots" / pinned).is_dir():
        return root / "snapshots" / pinned
    ref = root / "refs" / (revision or "main")
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""
    if commit and (root / "snapshots" / commit).is_dir():
        if pinned and not revision:
            log.warning(
                "the platform's cache holds revision %s, not the pinned %s; using the cached one", commit, pinned
            )
        return root / "snapshots" / commit
    if revision:
        log.warning("the platform's cache does not hold MODEL_REVISION=%s; asking the hub", revision)
    return None


def _download(model_id: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    small = ["config.json", "tokenizer.json", "tokenizer_config.json", *_HEADS]
    log.info("looking for %s at revision %s", model_id, revision)
    try:
        for weights in _WEIGHTS:
            path = Path(snapshot_download(model_id, revision=revision, allow_patterns=[*small, weights]))
            if (path / weights).is_file():
                break
    except Exception as error:  # the client passes on what its HTTP library raises, and that differs by release
        raise ConfigurationError(
            f"MODEL_ID: {model_id} at revision {revision} is in no cache and could not be downloaded "
            f"({type(error).__name__}); check the name, HF_TOKEN, HF_HUB_OFFLINE and the network, "
            "or name a local directory"
        ) from error
    return path


def read_head(checkpoint: Path, name: str) -> tuple[Tensor, Tensor]:
    """Weight [N, H] and bias [N] of `sparse_linear` or `colbert_linear`, float32.

    Raises:
        ConfigurationError: it is damaged, or no linear layer.
    """
    import torch

    with readable(f"{name}.pt"):
        state = torch.load(checkpoint / f"{name}.pt", map_location="cpu", weights_only=True)
        weight, bias = state["weight"], state["bias"]
        if not all(one.is_floating_point() and one.dtype.itemsize > 1 for one in (weight, bias)):
            raise TypeError("quantised, and the scale is elsewhere")
        return weight.float(), bias.float()
