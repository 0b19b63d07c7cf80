"""The worker on a device that is lost as soon as the model is loaded and checked."""

from __future__ import annotations

import sys
from collections.abc import Callable

from service.operations import Operations
from tests.programs.serving import serve


class Lost(Operations):
    """Operations whose device is lost."""

    def when_lost(self, callback: Callable[[], None]) -> None:
        """See `Operations.when_lost`."""
        callback()


if __name__ == "__main__":
    sys.exit(serve(Lost.build))
