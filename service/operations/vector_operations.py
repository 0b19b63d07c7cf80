"""What a load of given vectors needs of a worker: a store, its collections and the ingest, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from embedder import KINDS, ConfigurationError, Kind
from qdrant_sink import CollectionSchema, ModelIdentity, Store
from service.operations.collections import Collections
from service.operations.loads import Loads
from service.operations.store_access import StoreAccess
from service.operations.vector_ingest import VectorIngest
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class VectorSource:
    """What vectors are.

    Attributes:
        kinds: kinds of vectors that there are.
        dense_size: numbers of a dense vector of the model; None if unknown.
        colbert_size: numbers of a ColBERT row of the model; None if unknown.
        model: the model; None if unknown.
    """

    kinds: Sequence[Kind]
    dense_size: int | None
    colbert_size: int | None
    model: ModelIdentity | None

    def schema(self, settings: Settings) -> CollectionSchema:
        """The schema of new collections, with the kinds of the config whose sizes are known.

        Raises:
            ConfigurationError: the config has none of them.
        """
        config = settings.qdrant_collection_config
        schema = config.schema_for(self.dense_size or 1, self.colbert_size or 1)
        sizes = {"dense": self.dense_size, "sparse": 1, "colbert": self.colbert_size}
        unknown = [kind for kind in schema.kinds if sizes[kind] is None]
        if set(schema.kinds) <= set(unknown):
            raise ConfigurationError(
                f"QDRANT_COLLECTION_CONFIG: kinds must have one of the kinds of the files ({', '.join(self.kinds)}), "
                f"got {', '.join(schema.kinds)}"
            )
        return replace(
            schema,
            dense=None if "dense" in unknown else schema.dense,
            colbert=None if "colbert" in unknown else schema.colbert,
            explicit=frozenset(name for name in schema.explicit if name.partition(".")[0] not in unknown),
            model=self.model,
        )


class VectorOperations:
    """The operations of a load of given vectors.

    Args:
        settings: the settings.
        source: what the vectors are.
        store: the store; None opens the store of the settings on first use.

    Attributes:
        settings: the settings.
        collections: the collections.
        loads: records bulk loads in their collections, and builds the index after the last.
        ingest: stores texts with their vectors.
    """

    def __init__(self, settings: Settings, source: VectorSource, store: Store | None = None) -> None:
        self.settings = settings
        self._store = StoreAccess(settings, store, lambda: None)
        self.collections = Collections(settings, self._store, source.schema(settings))
        self.loads = Loads(self._store, self.collections)
        self.ingest = VectorIngest(
            self._store,
            self.collections,
            kinds=[kind for kind in KINDS if kind in source.kinds],
            model=source.model,
            verify_model=settings.qdrant_collection_config.verify_model,
        )

    def close(self) -> None:
        """Finish running ingests and release the store. Idempotent."""
        self._store.close()
