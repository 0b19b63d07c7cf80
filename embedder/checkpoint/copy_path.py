"""Where the safetensors copy of a `pytorch_model.bin` is kept.

$XDG_CACHE_HOME or ~/.cache
└── bge-m3-qdrant
    ├── DIGEST.safetensors    one per checkpoint folder; its metadata says of which file it is a copy
    ├── DIGEST.lock           held while the copy is made
    └── DIGEST.*.part         a copy in the making
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def copy_path(source: Path, cache: Path | None = None) -> Path:
    """The path of the copy of a `.bin`, which may not exist yet.

    Args:
        source: what `torch.save` wrote.
        cache: a folder; None is `bge-m3-qdrant` in the user's cache.

    Raises:
        OSError: the user has no home directory.
    """
    digest = hashlib.sha256(os.fsencode(source.absolute())).hexdigest()[:16]
    return (_user_cache() if cache is None else cache) / f"{digest}.safetensors"


def _user_cache() -> Path:
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise FileNotFoundError("no home directory") from error
    return root / "bge-m3-qdrant"
