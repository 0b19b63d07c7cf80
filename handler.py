"""RunPod's entry point: `python handler.py` serves the queue or, with `PORT`, HTTP, as `bge-m3-qdrant queue` does.

This module imports no heavy library. The model loads with the first job or, if this file is run as a program, before
the first poll.
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
