"""`python -m embedder.bake ORGANISATION/NAME`: fetch a checkpoint into the hub's cache, ready to load offline.

For building images. Weights published as `pytorch_model.bin` become `model.safetensors` in their place, so that
no start converts them and the image holds them once.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from embedder.checkpoint import locate
from embedder.errors import ConfigurationError


def bake(model_id: str, revision: str | None = None) -> Path:
    """The folder of the checkpoint. A directory of the caller's own is checked and left as it is.

    Raises:
        ConfigurationError: no such checkpoint, or it is damaged.
    """
    checkpoint = locate(model_id, revision)
    weights = checkpoint / "model.safetensors"
    source = checkpoint / "pytorch_model.bin"
    if weights.is_file() or not source.is_symlink():  # the hub's cache is made of links
        return checkpoint
    from embedder.conversion import converted

    with tempfile.TemporaryDirectory(dir=checkpoint) as folder:
        converted(source, Path(folder)).replace(weights)
    source.resolve().unlink()
    source.unlink()
    return checkpoint


def main(arguments: list[str]) -> int:
    """Bake the model that is named; the exit status."""
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m embedder.bake ORGANISATION/NAME [REVISION]", file=sys.stderr)  # noqa: T201
        return 2
    try:
        bake(*arguments)
    except ConfigurationError as error:
        print(f"refusing to bake: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
