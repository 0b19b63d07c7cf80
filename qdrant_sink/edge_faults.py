"""What the engine raises, as the errors of the seam."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from embedder.errors import StoreRejected, StoreUnavailable, WorkerError
from qdrant_sink.reasons import reason


@contextmanager
def mapped(what: str) -> Iterator[None]:
    """Turn whatever the engine raises, its panics too, into the errors of the seam."""
    try:
        yield
    except (WorkerError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as exc:  # PanicException derives from BaseException
        why = reason(str(exc))
        if "space" in why:
            raise StoreUnavailable(f"Qdrant Edge cannot write: {why}") from exc
        raise StoreRejected(f"Qdrant Edge refused the {what}" + (f": {why}" if why else "")) from exc
