"""Fused kernels of the GPU path, each beside a plain form in torch.

norms      layer norm of a sum; of two embeddings
attention  softmax attention within texts, by tiles
tiles      which queries and keys a tile of attention has
rows       L2-normalised rows; the sparse weight of each entry
float8     products in float8, and norms and GELU that quantise what they write

A `triton_*` module holds the Triton code of the module it is named after and is imported on first use on a GPU, since
Triton takes part of a second to import. The plain form runs on CPUs and wherever Triton or a C compiler is missing.
Sizes are compile-time constants and lengths are launch grids: a kernel compiles once per model and configuration, so
that a pass can be captured in a CUDA graph after it has run once.
"""

from embedder.model.kernels.attention import packed_attention
from embedder.model.kernels.launch import has_triton
from embedder.model.kernels.norms import add_norm, embed_norm
from embedder.model.kernels.rows import entry_maxima, normalised_rows, unit_rows
from embedder.model.kernels.tiles import text_spans_of, tile_count_max, tiles_of

__all__ = [
    "add_norm",
    "embed_norm",
    "entry_maxima",
    "has_triton",
    "normalised_rows",
    "packed_attention",
    "text_spans_of",
    "tile_count_max",
    "tiles_of",
    "unit_rows",
]
