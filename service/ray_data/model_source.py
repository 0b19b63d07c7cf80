"""What the vectors of a model are, as a machine of the cluster knows it."""

from __future__ import annotations

import ray

from embedder import KINDS
from embedder.checkpoint import vector_sizes
from qdrant_sink import ModelIdentity
from service.operations import VectorSource
from service.settings import Settings


def model_source(settings: Settings | None = None) -> VectorSource:
    """What the vectors of the model of the settings are. A machine of the cluster reads it from the checkpoint.

    Args:
        settings: the settings; None reads them from the environment of the driver.

    Raises:
        ConfigurationError: the checkpoint is missing or damaged.
    """
    chosen = settings or Settings.from_environment()
    read = ray.remote(num_cpus=0.1, max_retries=3)(_read)
    try:
        source: VectorSource = ray.get(read.remote(chosen.model_id, chosen.model_revision))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return source


def _read(model_id: str, revision: str | None) -> VectorSource:
    sizes = vector_sizes(model_id, revision)
    return VectorSource(KINDS, sizes.dense, sizes.colbert, ModelIdentity.of(model_id, sizes.revision))
