"""The seam to the model and what is behind it.

engine         the seam: a batch of token ids in, three kinds of vectors out
packed         BGE-M3 over texts without padding (`embedder.model`)
cuda           the streams, copies and graphs of a GPU
inputs         a batch as the model takes it
outputs        the heads, and a batch of vectors from what they give
page_locked    who holds page-locked memory
flagembedding  the library FlagEmbedding
devices        which devices and types to use, and their errors
calibration    speed of this machine: rate per type, tokens per batch

Only the seam is imported here. The engines and `devices` import torch.
"""

from embedder.engines.engine import (
    BlockingEngine,
    EncodedBatch,
    Engine,
    PendingBatch,
    ReadyBatch,
    SparseBatch,
    TokenBatch,
    YieldPoint,
    offsets_of,
)

__all__ = [
    "BlockingEngine",
    "EncodedBatch",
    "Engine",
    "PendingBatch",
    "ReadyBatch",
    "SparseBatch",
    "TokenBatch",
    "YieldPoint",
    "offsets_of",
]
