"""Imports of many modules without the garbage collector, which then never looks at their objects again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def frozen_imports() -> Iterator[None]:
    """Collect no garbage in the block, and exempt what the process has after it; nothing more in a process that did so.

    Collections take a seventh of the time in which torch is imported. A further block exempts nothing: what it would
    find may be a model that is going to be dropped.
    """
    if gc.get_freeze_count():
        yield
        return
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
    gc.freeze()
