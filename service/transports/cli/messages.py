"""Messages of a command to a person."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Print a message to the standard error."""
    print(text, file=sys.stderr, flush=True)
