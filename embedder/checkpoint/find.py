"""Find a BGE-M3 checkpoint in its published layout: in the package, on disk, in a cache or on the hub.

config.json                             XLM-RoBERTa sizes
model.safetensors | pytorch_model.bin   the encoder
sparse_linear.pt, colbert_linear.pt     the two heads, nn.Linear state dicts
tokenizer.json                          the tokenizer
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from embedder.checkpoint.damage import reason_of
from embedder.checkpoint.hub import hub_failure, log_with_the_application
from embedder.errors import ConfigurationError

log = logging.getLogger(__name__)

DEFAULT_MODEL = "BAAI/bge-m3"
DEFAULT_REVISION = "5617a9f61b028005a4858fdac845db406aefb181"
MINI = Path(__file__).parent / "mini"
"""The trained miniature that comes with the package."""
PLATFORM_CACHE = Path("/runpod-volume/huggingface-cache/hub")
"""Mount point of RunPod's model cache, which holds the model that an endpoint names."""

_WAY_OUT = "to try the service without a download, set MODEL_ID=mini, a miniature that ships with the project"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_HEADS = ("sparse_linear.pt", "colbert_linear.pt")


def find_checkpoint(model_id: str, revision: str | None = None, *, platform_cache: Path = PLATFORM_CACHE) -> Path:
    """The folder of a checkpoint: `mini`, a local directory, or a snapshot in the platform's or the hub's cache.

    A hub name is looked for in the platform's cache first; else the hub client finds it in its own
    cache or downloads it, honouring `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE`.

    Args:
        model_id: `mini`, a path, or `organisation/name`.
        revision: a commit of the hub; None is the pinned one for `BAAI/bge-m3` and `main` for others.
        platform_cache: root of the platform's model cache.

    Raises:
        ConfigurationError: there is no such checkpoint, it lacks a file, or it cannot be downloaded or stored.
    """
    return _complete(_found(model_id, revision, platform_cache, _WEIGHTS))


def find_tokenizer(model_id: str, revision: str | None = None, *, platform_cache: Path = PLATFORM_CACHE) -> Path:
    """The folder of a checkpoint whose weights are not needed; they are not downloaded.

    Args:
        model_id: as `find_checkpoint` takes it.
        revision: the same.
        platform_cache: the same.

    Raises:
        ConfigurationError: there is no such checkpoint, or it cannot be downloaded or stored.
    """
    return _found(model_id, revision, platform_cache, ())


def _found(model_id: str, revision: str | None, platform_cache: Path, weights: Sequence[str]) -> Path:
    if model_id == "mini":
        return MINI
    local = Path(model_id)
    if local.is_dir():
        return local
    if not _is_hub_name(model_id):
        raise ConfigurationError(
            f"MODEL_ID: must be `mini`, an existing directory or a hub name (OWNER/NAME), got {model_id!r}"
        )
    cached = _platform_snapshot(platform_cache, model_id, revision)
    if cached is not None:
        return cached
    pinned = revision or (DEFAULT_REVISION if model_id == DEFAULT_MODEL else "main")
    return _download(model_id, pinned, weights)


def revision_of(checkpoint: Path) -> str | None:
    """The revision of a checkpoint's folder: the commit of a snapshot in a cache, or a digest of the weights of `mini`.

    Other folders have none, because their weights may be replaced, and reading gigabytes takes seconds.
    """
    if checkpoint == MINI:
        return hashlib.sha256((MINI / _WEIGHTS[0]).read_bytes()).hexdigest()[:16]
    return checkpoint.name if checkpoint.parent.name == "snapshots" else None


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


def _download(model_id: str, revision: str, weights: Sequence[str]) -> Path:
    """The folder of a snapshot with its small files and the first of the files of weights that exists."""
    import socket
    import ssl

    from huggingface_hub import errors, snapshot_download

    http_error = next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    refused: tuple[type[Exception], ...] = (
        errors.HfHubHTTPError,
        errors.HFValidationError,
        errors.EntryNotFoundError,
        errors.FileMetadataError,
        errors.LocalTokenNotFoundError,
        errors.OfflineModeIsEnabled,
        getattr(errors, "XetDownloadError", errors.HfHubHTTPError),  # unknown to older clients
        http_error,  # of the client's HTTP library
        ConnectionError,
        TimeoutError,
        socket.gaierror,
        ssl.SSLError,
    )
    small = ["config.json", "tokenizer.json", "tokenizer_config.json", *_HEADS]
    log.info("looking for %s at revision %s", model_id, revision)
    log_with_the_application()
    unreachable = hub_failure(http_error)
    try:
        for wanted in [[*small, name] for name in weights] or [small]:
            path = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    allow_patterns=wanted,
                    local_files_only=unreachable is not None,
                )
            )
            if (path / wanted[-1]).is_file():
                break
    except refused as error:
        if unreachable is not None and not isinstance(error, errors.HFValidationError):
            raise ConfigurationError(
                f"MODEL_ID: {model_id} is in no cache and the Hugging Face hub cannot be reached ({unreachable}); "
                f"check the network and HTTPS_PROXY, or name a local directory; {_WAY_OUT}"
            ) from error
        raise ConfigurationError(
            f"MODEL_ID: {model_id} at revision {revision} is in no cache and could not be downloaded "
            f"({type(error).__name__}); check the name, HF_TOKEN, HF_HUB_OFFLINE and the network, "
            f"or name a local directory; {_WAY_OUT}"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"MODEL_ID: {model_id} cannot be kept in the hub's cache: {reason_of(error)}; see HF_HOME"
        ) from error
    return path
