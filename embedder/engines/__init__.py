"""The seam to the model and what is behind it.

engine         the seam: a batch of token ids in, three kinds of vectors out
packed         BGE-M3 over texts without padding (`embedder.model`)
flagembedding  the library FlagEmbedding
devices        which devices and types to use, and their errors
calibration    speed of this machine: rate per type, tokens per batch

Only the seam is imported here. The engines and `devices` import torch.
"""

from embedder.engines.engine import EncodedBatch, Engine, SparseBatch, TokenBatch, YieldPoint, offsets_of

__all__ = ["EncodedBatch", "Engine", "SparseBatch", "TokenBatch", "YieldPoint", "offsets_of"]
