"""A worker whose operations never close."""

from __future__ import annotations

import sys
import threading

from service.operations import Operations
from tests.programs.serving import serve


class Unclosed(Operations):
    """Operations that never close."""

    def close(self) -> None:
        """See `Operations.close`."""
        threading.Event().wait()


if __name__ == "__main__":
    sys.exit(serve(Unclosed.build))
