"""The worker with a model that fails to load (`broken`) or never finishes loading (`endless`)."""

from __future__ import annotations

import sys
from typing import NoReturn

from service.settings import Settings
from tests.programs.serving import serve


def broken(_settings: Settings) -> NoReturn:
    """Raise a defect whose message quotes a user."""
    raise LookupError("the private words of a user")


def endless(_settings: Settings) -> NoReturn:
    """Spend all time inside a library, as a thread that loads a model does."""
    import torch

    matrix = torch.ones(256, 256)
    print("inside", file=sys.stderr, flush=True)  # noqa: T201 - the test waits for it
    while True:
        torch.mm(matrix, matrix)


if __name__ == "__main__":
    sys.exit(serve({"broken": broken, "endless": endless}[sys.argv[1]]))
