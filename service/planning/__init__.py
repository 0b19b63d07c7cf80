"""Plans of collections before they exist: sizes, servers, GPU hours, network and costs. Pure functions.

stored_vectors   what is stored for each passage, from a schema
passages         what a passage has: tokens, weights, bytes of text
collection_size  bytes on disk and in RAM
embedding_time   tokens/s of a GPU
plan             all of it, and other choices
"""

from service.planning.collection_size import CollectionSize, PartSize, collection_size
from service.planning.passages import Passages
from service.planning.plan import Plan, Resources, plan
from service.planning.stored_vectors import StoredColbert, StoredDense, StoredSparse, StoredVectors

__all__ = [
    "CollectionSize",
    "PartSize",
    "Passages",
    "Plan",
    "Resources",
    "StoredColbert",
    "StoredDense",
    "StoredSparse",
    "StoredVectors",
    "collection_size",
    "plan",
]
