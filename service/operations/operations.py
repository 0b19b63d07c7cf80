"""The operations of a worker, as one composition of the embedder and the sink."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from embedder import Embedder
from qdrant_sink import BATCH_MAX_POINTS, Store
from service.metrics import Metrics
from service.operations.collections import Collections
from service.operations.embed import Embed, LengthLimits
from service.operations.ingest import Ingest
from service.operations.score import Score
from service.operations.search import SearchOperation
from service.operations.store_access import StoreAccess, open_store
from service.settings import Settings

log = logging.getLogger(__name__)


class Operations:
    """What a worker can do. Usable from any thread and any event loop.

    Every operation takes a request value and returns a frozen result, or raises a `WorkerError`:

        result = await operations.embed(EmbedRequest(["a text"]))

    Args:
        settings: the operator's decisions.
        embedder: the loaded model.
        store: where points go; None opens the one that the settings name when it is first needed.
        batch_points: maximum number of points, or ids, in one request of an ingest to the store.

    Attributes:
        embed: texts to vectors.
        ingest: texts to vectors to points.
        search: texts, or stored points, to the nearest points of a collection.
        score: pairs of texts to scores.
        collections: whole collections: count, delete, schema, graphs and aliases.
        settings: as given.
        metrics: what this worker counts, whatever its transports are.
        model_name: the model's name for clients.
        limits: on the lengths of texts.
    """

    def __init__(
        self,
        settings: Settings,
        embedder: Embedder,
        store: Store | None = None,
        *,
        batch_points: int = BATCH_MAX_POINTS,
    ) -> None:
        self.settings = settings
        self.model_name = _model_name(settings)
        self.limits = LengthLimits(
            query=_clamped(settings, "QUERY_MAX_LENGTH", settings.query_max_length, embedder.max_length),
            passage=_clamped(settings, "PASSAGE_MAX_LENGTH", settings.passage_max_length, embedder.max_length),
        )
        self.metrics = Metrics(lambda: embedder.waiting_tokens)
        embedder.observe(lambda batch: self.metrics.batch(batch.tokens, batch.fill, batch.seconds))
        self._embedder = embedder
        self._store = StoreAccess(settings, store, self.metrics.retried)
        schema = settings.qdrant_collection_config.schema_for(embedder.hidden_size, embedder.colbert_size)
        self.collections = Collections(settings, self._store, schema)
        self.embed = Embed(embedder, self.limits)
        self.ingest = Ingest(embedder, self._store, self.collections, self.limits, batch_points=batch_points)
        self.search = SearchOperation(embedder, self._store, self.collections, self.limits)
        self.score = Score(embedder, self.limits)

    @classmethod
    def build(cls, settings: Settings) -> Operations:
        """Load and warm the model. Blocks for seconds.

        Raises:
            ConfigurationError: the settings cannot work on this machine.
        """
        # A directory that the operator names must work; the default one is made when a job first needs it.
        chosen = settings.qdrant_url is None and "qdrant_path" in settings.model_fields_set
        store = open_store(settings) if chosen else None
        try:
            return cls(settings, Embedder.load(settings.model_options), store)
        except BaseException:
            if store is not None:
                store.close()  # its directory must be free for the next try
            raise

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for the model."""
        return self._embedder.waiting_tokens

    @property
    def max_length(self) -> int:
        """The model's limit on a text in tokens, special tokens included."""
        return self._embedder.max_length

    @property
    def hidden_size(self) -> int:
        """Size of a dense vector."""
        return self._embedder.hidden_size

    @property
    def colbert_size(self) -> int:
        """Size of a ColBERT row."""
        return self._embedder.colbert_size

    @property
    def model_label(self) -> str:
        """Model, engine, type and device, for a person."""
        return f"{self.model_name} ({self._embedder.label})"

    @property
    def store_label(self) -> str:
        """The store, for a person."""
        return self._store.opened().label

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call this, from another thread, when no device is left that computes: nothing can be served any more."""
        self._embedder.when_lost(callback)

    def close(self) -> None:
        """Finish accepted work and release the model and the store. Calling it twice is harmless."""
        self._embedder.close()
        self._store.close()


def _model_name(settings: Settings) -> str:
    if settings.served_model_name is not None:
        return settings.served_model_name
    name = settings.model_id
    return Path(name).name if Path(name).is_dir() else name  # a local path is nobody else's business


def _clamped(settings: Settings, name: str, value: int, limit: int) -> int:
    if value > limit and name.lower() in settings.model_fields_set:
        log.warning("%s=%d is more than the model takes; using %d", name, value, limit)
    return min(value, limit)
