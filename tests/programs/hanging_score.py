"""A worker whose score requests never finish; with `lost`, the first one also loses the last device."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import NoReturn

from embedder import Embedder
from qdrant_sink import Store
from service.operations import Operations, ScoreRequest
from service.operations.score import Score
from service.settings import Settings
from tests.programs.serving import serve


class HangingScore(Score):
    """A score operation that never returns."""

    begun: Callable[[], None] = staticmethod(lambda: None)

    async def __call__(self, request: ScoreRequest) -> NoReturn:
        """See `Score.__call__`."""
        self.begun()
        print("stuck", file=sys.stderr, flush=True)  # noqa: T201 - the test waits for it
        await asyncio.Event().wait()
        raise AssertionError


class Hanging(Operations):
    """Operations whose score operation never returns."""

    def __init__(self, settings: Settings, embedder: Embedder, store: Store | None = None) -> None:
        super().__init__(settings, embedder, store)
        self._hanging = HangingScore(embedder, self.limits, memory=self.memory)
        self.score = self._hanging

    def when_lost(self, callback: Callable[[], None]) -> None:
        """See `Operations.when_lost`."""
        if sys.argv[1:] == ["lost"]:
            self._hanging.begun = callback


if __name__ == "__main__":
    sys.exit(serve(Hanging.build))
