"""Fetch a checkpoint into the hub's cache while an image is built, ready to load offline."""

from __future__ import annotations

import tempfile
from pathlib import Path

from embedder.checkpoint.find import find_checkpoint


def prefetch(model_id: str, revision: str | None = None) -> Path:
    """The folder of the checkpoint, in the hub's cache or, if `model_id` is a directory, that directory unchanged.

    In the cache `pytorch_model.bin` is replaced by `model.safetensors`, so that no start converts the weights and the
    image holds them once.

    Args:
        model_id: `organisation/name`, or a directory.
        revision: a commit of the hub, as in `find_checkpoint`.

    Raises:
        ConfigurationError: there is no such checkpoint, or it is damaged.
    """
    checkpoint = find_checkpoint(model_id, revision)
    weights = checkpoint / "model.safetensors"
    source = checkpoint / "pytorch_model.bin"
    if weights.is_file() or not source.is_symlink():  # the hub's cache is made of links
        return checkpoint
    from embedder.checkpoint.convert import converted

    with tempfile.TemporaryDirectory(dir=checkpoint) as folder:
        converted(source, Path(folder)).replace(weights)
    source.resolve().unlink()
    source.unlink()
    return checkpoint
