"""RunPod's entry point: `python handler.py` serves the queue or, with `PORT`, HTTP, as `bge-m3-qdrant queue` does.

Nothing heavy is imported here: the model loads on the first job, or before the first poll where this file is the
program.
"""

from __future__ import annotations

import sys

from service.shutdown import exit_on_signals
from service.transports.queue.handler import build, handler

__all__ = ["build", "handler"]

if __name__ == "__main__":
    exit_on_signals()  # before anything that takes long to import
    from service.transports.queue.worker import serve

    sys.exit(serve(handler, build))
