"""The embedding of a data set: rows become rows with vectors, which a `QdrantDatasink` stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ray.data import Dataset

from embedder import KINDS, Kind
from service.bulk.field_mapping import FieldOptions
from service.operations import Chunking
from service.ray_data.actor_pool import ActorPool
from service.ray_data.embed_actor import EmbedActor, EmbedOptions
from service.ray_data.options import check_chunking
from service.settings import Settings


def embed_dataset(
    ds: Dataset,
    *,
    vectors: Sequence[Kind] = KINDS,
    chunk: Chunking | None = None,
    dtype: Literal["float16", "float32"] = "float32",
    pool_colbert: bool = False,
    fields: FieldOptions = FieldOptions(),  # noqa: B008 - it is frozen
    pool: ActorPool = ActorPool(),  # noqa: B008 - likewise
    settings: Settings | None = None,
) -> Dataset:
    """Embed the rows of a data set, when it is executed.

    Args:
        ds: the data set, with the columns `text` and, optionally, `id` and `payload`; all others are in the payload.
        vectors: kinds of vectors to compute.
        chunk: chunking of each text; None for one point per text.
        dtype: type of the numbers of dense and ColBERT vectors.
        pool_colbert: whether ColBERT rows that Qdrant does not take are pooled instead of refused.
        fields: the columns of id, text and payload if they have other names.
        pool: the actors, each with a model of its own.
        settings: the settings of the model; None reads them from the environment of the driver.

    Returns:
        Rows as `service.ray_data.vector_rows` describes them. A row that cannot be embedded has an `error_code`.

    Raises:
        InvalidRequest: the chunking is out of range.
    """
    check_chunking(chunk)
    chosen = settings or Settings.from_environment()
    kinds = tuple(kind for kind in KINDS if kind in vectors)
    options = EmbedOptions(kinds=kinds, chunk=chunk, dtype=dtype, pool_colbert=pool_colbert, fields=fields)
    return ds.map_batches(EmbedActor, fn_constructor_args=(chosen, options), **pool.arguments)
