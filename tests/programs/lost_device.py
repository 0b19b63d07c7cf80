"""The worker, on a device that computes two batches (its checks need one) and is then lost."""

from __future__ import annotations

import sys

import handler
from embedder.checkpoint import MINI
from embedder.embedder import Embedder
from embedder.encoder import PackedEngine
from embedder.engine import EncodedBatch, GiveWay, TokenBatch
from embedder.errors import DeviceLost
from embedder.pool import ModelPool
from embedder.tokenizer import Tokenizer
from embedder.vectors import Outputs
from service.operations import Operations
from service.settings import Settings
from service.worker import serve


class Fragile(PackedEngine):
    """The packed engine, for two batches."""

    left = 2

    def encode(self, batch: TokenBatch, outputs: Outputs, give_way: GiveWay | None = None) -> EncodedBatch:
        """See `Engine.encode`."""
        if not self.left:
            raise DeviceLost("the device does not answer")
        self.left -= 1
        return super().encode(batch, outputs, give_way)


def build(settings: Settings) -> Operations:
    """The operations over `mini` on such a device."""
    tokenizer = Tokenizer(MINI)
    engine = Fragile(MINI, device="cpu", dtype="float32", dropped_ids=tokenizer.dropped_ids)
    pool = ModelPool([engine], lanes=1, token_budget=4096, queue_tokens=100_000)
    return Operations(settings, Embedder(tokenizer, [engine], pool))


def load(settings: Settings) -> Operations:
    """As `handler.build`, so that the handler answers with these operations."""
    handler._operations = build(settings)
    return handler._operations


if __name__ == "__main__":
    sys.exit(serve(handler.handler, load))
