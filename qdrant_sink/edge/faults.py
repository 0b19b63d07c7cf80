"""Map the exceptions of the engine to the errors of the `Store` protocol.

Errors of the operating system, such as a lack of descriptors, threads, memory or disk space, are not caused by the
content and may pass. They become `StoreUnavailable` with the message of the system. All other exceptions become
`StoreRejected`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from embedder.errors import WorkerError
from qdrant_sink.errors import StoreRejected, StoreUnavailable
from qdrant_sink.reasons import reason

_OS_ERROR: Final = re.compile(r"\(os error (\d{1,3})\)|\bOs \{ code: (\d{1,3}),")
"""The two formats in which Rust prints an error of the operating system."""


@contextmanager
def mapped(what: str) -> Iterator[None]:
    """Map all exceptions of the engine, including panics, to the errors of the `Store` protocol."""
    try:
        yield
    except (WorkerError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as exc:  # PanicException derives from BaseException
        code = _os_error(exc)
        if code is not None:
            raise StoreUnavailable(f"Qdrant Edge failed ({what}): {os.strerror(code).lower()}") from exc
        why = reason(str(exc))
        if "space" in why:
            raise StoreUnavailable(f"Qdrant Edge cannot write: {why}") from exc
        raise StoreRejected(f"Qdrant Edge refused the {what}" + (f": {why}" if why else "")) from exc


def _os_error(exc: BaseException) -> int | None:
    if isinstance(exc, OSError) and exc.errno is not None:
        return exc.errno
    if isinstance(exc, MemoryError):
        return errno.ENOMEM
    match = _OS_ERROR.search(str(exc))
    return int(match[1] or match[2]) if match else None
