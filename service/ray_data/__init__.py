"""Load data sets of Ray into a collection, on any number of machines.

load           rows -> (actors: chunk, embed, store) -> account -> graph -> alias
embed_dataset  rows -> (actors: chunk, embed) -> rows with vectors
datasink       rows with vectors -> (tasks: store) -> account -> graph -> alias

batch_ingest stores the rows of a batch, outcome is what became of them, and collection_load is what happens to the
collection before the first row and after the last.
"""

from __future__ import annotations

try:
    import ray.data  # noqa: F401 - a missing library is named here, once
except ImportError:
    raise ImportError("service.ray_data needs ray, which is not installed: pip install '.[ray]'") from None

from service.ray_data.actor_pool import ActorPool
from service.ray_data.datasink import QdrantDatasink
from service.ray_data.embed_dataset import embed_dataset
from service.ray_data.load import LoadResult, load
from service.ray_data.model_source import model_source

__all__ = ["ActorPool", "LoadResult", "QdrantDatasink", "embed_dataset", "load", "model_source"]
