"""The worker on a device that computes two batches (its checks need one) and is then lost."""

from __future__ import annotations

import sys

from embedder import DeviceLost, Embedder, Outputs
from embedder.checkpoint import MINI
from embedder.engines.engine import EncodedBatch, TokenBatch, YieldPoint
from embedder.engines.packed import PackedEngine
from embedder.model.model import load_model
from embedder.scheduling import ModelPool
from embedder.tokenizer import Tokenizer
from service.operations import Operations
from service.settings import Settings
from tests.programs.serving import serve


class Fragile(PackedEngine):
    """A packed engine that computes two batches and then loses its device."""

    batches_left = 2

    def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
        """See `Engine.encode`."""
        if not self.batches_left:
            raise DeviceLost("the device does not answer")
        self.batches_left -= 1
        return super().encode(batch, outputs, yield_point)


def build(settings: Settings) -> Operations:
    """Build the operations over `mini` on such a device."""
    tokenizer = Tokenizer(MINI)
    engine = Fragile(load_model(MINI, device="cpu", dtype="float32", dropped_ids=tokenizer.dropped_ids))
    pool = ModelPool([engine], batches_per_gpu=1, token_budget=4096, queue_tokens=100_000)
    return Operations(settings, Embedder(tokenizer, [engine], pool))


if __name__ == "__main__":
    sys.exit(serve(build))
