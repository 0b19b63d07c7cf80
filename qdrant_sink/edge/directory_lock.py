"""The lock on the directory of an embedded store, which one process can use at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from pathlib import Path

from embedder.errors import ConfigurationError

log = logging.getLogger(__name__)


def lock_directory(root: Path) -> int:
    """Create and lock a directory, and return the descriptor of the lock.

    A new directory can be entered only by this user, so that the files below it are hidden from others whatever their
    own modes are. An existing one that others may enter stays as it is, with a warning.

    The kernel releases the lock when the process ends.

    Raises:
        ConfigurationError: the directory cannot be written, or another process uses it.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        mode = stat.S_IMODE(root.stat().st_mode)
    except OSError as exc:
        raise ConfigurationError(f"QDRANT_PATH: the directory cannot be written ({exc.strerror})") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(descriptor)
        raise ConfigurationError(
            "QDRANT_PATH: another process owns the directory; stop it, choose another directory, "
            "or share a Qdrant server through QDRANT_URL"
        ) from exc
    except OSError:
        pass  # the file system has no locks; the engine still locks each collection
    if mode & stat.S_IRWXO:
        log.warning(
            "QDRANT_PATH: every user of this machine can enter the directory (mode %o); chmod 700 keeps the points to "
            "the user of the worker",
            mode,
        )
    return descriptor
