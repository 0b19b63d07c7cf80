"""BGE-M3 in torch, over texts without padding.

model        the weights as one frozen value, and the way through them
transformer  the layers
attention    attention within texts, and how a batch is cut into pieces
heads        hidden states -> dense, sparse and ColBERT vectors
linear       linear layers, prepared for the device and the type
int8         products in int8 on x86 CPUs
processor    what products the processor computes, and the type of what stands between them
one_core     ways to compute something, timed against each other at the start
float8       the layers with products in float8
kernels/     fused kernels for GPUs

The only package here that imports torch on import: its modules are torch code.
"""

from embedder.model.attention import Packing, PieceSizes
from embedder.model.model import Model, load_model

__all__ = ["Model", "Packing", "PieceSizes", "load_model"]
