"""The operations of a worker, composed of the embedder and the sink."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from embedder import Embedder, Vocabulary
from qdrant_sink import BATCH_MAX_POINTS, ModelIdentity, Store
from service.memory_budget import MemoryBudget
from service.memory_plan import MemoryPlan, Part
from service.metrics import Metrics
from service.operations.collections import Collections
from service.operations.completion import Completion
from service.operations.embed import Embed, LengthLimits
from service.operations.ingest import Ingest
from service.operations.inventory import Inventory
from service.operations.load_actions import LoadActions
from service.operations.loads import Loads
from service.operations.memory_parts import operations_parts
from service.operations.model_check import ModelCheck
from service.operations.model_names import ModelNames
from service.operations.piece_vectors import PieceVectors
from service.operations.points import Points
from service.operations.reindex import Reindex
from service.operations.reindex_model import ReindexModel
from service.operations.rerank import Rerank
from service.operations.score import Score
from service.operations.search import SearchOperation
from service.operations.store_access import StoreAccess, StoreState, open_store
from service.settings import Settings

log = logging.getLogger(__name__)


class Operations:
    """The operations of a worker. Usable from any thread and any event loop.

    Every operation takes a request value and returns a frozen result, or raises a `WorkerError`:

        result = await operations.embed(EmbedRequest(["a text"]))

    Args:
        settings: the settings.
        embedder: the loaded model.
        store: the store; None opens the store of the settings on first use.
        batch_points: maximum number of points, or ids, in one request of an ingest to the store.

    Attributes:
        embed: computes the vectors of texts.
        ingest: embeds texts and stores them as points.
        piece_vectors: cuts texts and embeds their pieces, for a caller that stores them itself.
        search: finds the points nearest to texts or to stored points.
        score: scores pairs of texts.
        rerank: ranks documents by their relevance to a query.
        points: reads stored points by id or page by page.
        inventory: lists and describes collections.
        completion: adds vectors of further kinds to the points of a collection.
        reindex: copies a collection into a new one with another schema.
        collections: counts and deletes points, and manages schemas and aliases.
        loads: records bulk loads in their collections, and builds the index after the last.
        settings: the settings.
        metrics: the metrics of the worker, shared by all transports.
        memory: the memory that requests may hold together.
        memory_plan: how the memory is divided.
        model_names: names of the model for clients.
        limits: default limits on the lengths of texts.
        model_identity: name and revision of the model, as collections carry them.
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
        self.model_names = ModelNames.of(settings)
        self.limits = LengthLimits(
            query=_clamped(settings, "QUERY_MAX_LENGTH", settings.query_max_length, embedder.max_length),
            passage=_clamped(settings, "PASSAGE_MAX_LENGTH", settings.passage_max_length, embedder.max_length),
        )
        self.memory_plan = MemoryPlan(settings.memory_budget_bytes, operations_parts(settings))
        self.memory_plan.check()
        self.memory = MemoryBudget(self.memory_plan.account_bytes)
        self.metrics = Metrics(lambda: embedder.waiting_tokens, lambda: self.memory.reserved_bytes)
        embedder.observe(lambda batch: self.metrics.batch(batch.tokens, batch.fill, batch.seconds))
        self._embedder = embedder
        self._store = StoreAccess(settings, store, self.metrics.retried, self.metrics.store_call)
        config, identity = settings.qdrant_collection_config, ModelIdentity.of(settings.model_id, embedder.revision)
        schema = replace(config.schema_for(embedder.hidden_size, embedder.colbert_size), model=identity)
        check = self._model_check = ModelCheck(embedder, self._store, identity, enabled=config.verify_model)
        self.model_identity = identity
        self.collections = Collections(settings, self._store, schema)
        self.loads = Loads(self._store, self.collections)
        self.embed = Embed(embedder, self.limits, memory=self.memory)
        self.ingest = Ingest(
            embedder, self._store, self.collections, check, self.limits, memory=self.memory, batch_points=batch_points
        )
        self.piece_vectors = PieceVectors(embedder, self.limits)
        self.completion = Completion(embedder, self._store, self.collections, check, self.limits)
        model = ReindexModel(embedder, identity, check, self.limits.passage)
        self.reindex = Reindex(settings, self._store, model=model)
        self.search = SearchOperation(embedder, self._store, self.collections, check, self.limits, memory=self.memory)
        self.points = Points(self._store, self.collections, self.memory)
        self.load_action = LoadActions(self.collections, self.loads, self.limits, allowed=settings.allow_loads)
        self.inventory = Inventory(settings, self._store, self.collections)
        self.score = Score(embedder, self.limits, memory=self.memory)
        self.rerank = Rerank(embedder, self.limits, memory=self.memory)

    @classmethod
    def build(cls, settings: Settings) -> Operations:
        """Load and warm the model. Blocks for seconds.

        Raises:
            ConfigurationError: the settings cannot work on this machine.
        """
        # A configured directory must work at start; the default one is created when a job first needs it.
        chosen = settings.qdrant_url is None and settings.names_store
        store = open_store(settings) if chosen else None
        try:
            return cls(settings, Embedder.load(settings.model_options), store)
        except BaseException:
            if store is not None:
                store.close()  # so that the next attempt can open the directory
            raise

    def set_aside(self, parts: Sequence[Part]) -> None:
        """Give up memory of requests for what a transport holds, and log how the memory is divided.

        Raises:
            ConfigurationError: too little is left.
        """
        plan = self.memory_plan.extended(parts)
        plan.check()
        self.memory.lower(self.memory_plan.account_bytes - plan.account_bytes)
        self.memory_plan = plan
        log.info("memory of requests: %s", plan)

    @property
    def waiting_tokens(self) -> int:
        """Number of tokens that wait for the model."""
        return self._embedder.waiting_tokens

    @property
    def max_length(self) -> int:
        """Maximum length of a text for the model in tokens, special tokens included."""
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
    def model_name(self) -> str:
        """Name of the model in answers."""
        return self.model_names.first

    @property
    def model_dtype(self) -> str:
        """Type of the model's matrix products, such as `float16`."""
        return self._embedder.dtype

    @property
    def vocabulary(self) -> Vocabulary:
        """What the indices of sparse vectors mean."""
        return self._embedder.vocabulary

    @property
    def token_budget(self) -> int:
        """Maximum tokens of a batch."""
        return self._embedder.token_budget

    @property
    def model_label(self) -> str:
        """A description of the model, engine, data type and device for people."""
        return f"{self.model_name} ({self._embedder.label})"

    @property
    def store_label(self) -> str:
        """A description of the store for people."""
        return self._store.opened().label

    async def store_state(self) -> StoreState:
        """Whether the store answers; takes as long as a search is retried where it does not."""
        return await self._store.state()

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Register a callback for the loss of the last device. It is called from another thread."""
        self._embedder.when_lost(callback)

    def close(self) -> None:
        """Finish accepted work, and release the model and the store. Idempotent."""
        self._embedder.close()
        self._store.close()
        self._model_check.close()


def _clamped(settings: Settings, name: str, value: int, limit: int) -> int:
    if value > limit and name.lower() in settings.model_fields_set:
        log.warning("%s=%d exceeds the limit of the model; using %d", name, value, limit)
    return min(value, limit)
