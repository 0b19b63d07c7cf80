"""Checkpoints in the published layout: where they are, what sizes they have, and their weights.

find        `mini`, a directory, a cache or the hub -> a folder
config      config.json -> sizes
sizes       the sizes of vectors, without the model
weights     the encoder's and the heads' tensors, by name and shape
tensorfile  one file of tensors, mapped a slice at a time
convert     `pytorch_model.bin` -> safetensors, once
copy_path   where that copy is kept
readahead   the weights into the page cache, while torch is imported
prefetch    a checkpoint into the hub's cache while an image is built
damage      what is said of a file that cannot be read
mini/       the trained miniature

`weights`, `tensorfile` and `convert` import torch; this module does not.
"""

from embedder.checkpoint.config import EncoderConfig
from embedder.checkpoint.find import DEFAULT_MODEL, DEFAULT_REVISION, MINI, find_checkpoint, find_tokenizer, revision_of
from embedder.checkpoint.sizes import VectorSizes, vector_sizes

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_REVISION",
    "MINI",
    "EncoderConfig",
    "VectorSizes",
    "find_checkpoint",
    "find_tokenizer",
    "revision_of",
    "vector_sizes",
]
