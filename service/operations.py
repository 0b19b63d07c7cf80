"""The operations of the worker, as one composition of the embedder and the sink."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from embedder.batching import Priority
from embedder.embedder import Embedder
from embedder.errors import Internal, InvalidRequest, WorkerError, whereabouts
from embedder.forward import Result
from embedder.tokenizer import EncodedText
from embedder.vectors import Embedding, Outputs
from qdrant_sink.layouts import text_key_of
from qdrant_sink.points import point_id
from qdrant_sink.store import Store
from qdrant_sink.writer import UpsertReport
from service.accounts import Accounts
from service.collections import Collections
from service.fields import Limits
from service.ingest import Ingest, Load, lost
from service.metrics import Metrics
from service.naming import at, named
from service.openai import OpenAIRoutes, is_openai, openai_error
from service.plan import Entry, Plan
from service.progress import Report
from service.requests import (
    CountRequest,
    DeleteRequest,
    EmbedRequest,
    QdrantTarget,
    ScoreRequest,
    SearchRequest,
    parse,
)
from service.responses import (
    Json,
    check_least_size,
    check_size,
    embed_answer,
    error_answer,
    least_size,
    score_answer,
    upsert_json,
)
from service.scorer import Scorer
from service.scoring import Weights
from service.searcher import Searcher
from service.settings import Settings
from service.store_calls import StoreCalls
from service.stores import open_store

log = logging.getLogger(__name__)

EMBED_REMEDY = (
    'send fewer texts, ask for fewer vectors (`vectors` without "colbert"), or use encoding base64 with dtype float16'
)
INGEST_REMEDY = "send fewer texts, or includeText false"
SEARCH_REMEDY = "send fewer queries, lower limit, or use withVectors false, withPayload false or explain false"


class Operations:
    """What the worker can do, for every door to share. Usable from any thread and any event loop.

    Args:
        settings: the operator's decisions.
        embedder: the loaded model.
        store: where points go; None opens the one that the settings name when it is first needed.
    """

    def __init__(self, settings: Settings, embedder: Embedder, store: Store | None = None) -> None:
        self._settings = settings
        self._embedder = embedder
        self.metrics = Metrics(lambda: self.waiting_tokens)
        """What this worker counts, whatever its doors are."""
        embedder.watch(self.metrics.batch)
        self._calls = StoreCalls(settings, store, self.metrics.retried)
        block = settings.qdrant_collection_config
        self._schema = block.schema_for(embedder.hidden_size, embedder.colbert_size)
        self._ingest = Ingest(self._calls.opened, self._schema, self._calls.senders)
        self.collections = Collections(settings, self._calls, self._ingest, self._schema)
        """Whole collections: their names, schema, graphs and aliases."""
        self._limits = Limits(max_texts=settings.max_texts, max_length=embedder.max_length)
        self._query_length = self._clamped("QUERY_MAX_LENGTH", settings.query_max_length)
        self._passage_length = self._clamped("PASSAGE_MAX_LENGTH", settings.passage_max_length)
        self._openai = OpenAIRoutes(
            embedder,
            model=self._model,
            max_texts=settings.max_texts,
            query_length=self._query_length,
            max_length=self._passage_length,
            max_bytes=settings.max_response_bytes,
        )
        self._accounts = Accounts(self.metrics, settings.max_response_bytes)
        self._scorer = Scorer(embedder)
        self._searcher = Searcher(
            embedder,
            self._calls,
            self._ingest.find,
            self._schema,
            model=self._model,
            query_length=self._query_length,
            passage_length=self._passage_length,
        )

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

    async def answer(self, raw: object, report: Report | None = None) -> Json:
        """The answer to a job's input: what it asked for, or the error, as JSON values.

        Args:
            raw: anything.
            report: told while a job stores: `{"settled", "points"}`; a point that is stored or rejected is settled.

        Raises nothing but `asyncio.CancelledError`.
        """
        return await self._accounts.answered(raw, lambda one: self._answered(one, report))

    async def answer_job(self, raw: object, report: Report | None = None) -> Json | list[Json]:
        """As `answer`, in the form of the queue: OpenAI's objects, and its errors, come in a list of one."""
        answer = await self.answer(raw, report)
        if not is_openai(raw):
            return answer
        return [openai_error(answer) if "error" in answer else answer]

    async def _answered(self, raw: object, report: Report | None) -> Json:
        try:
            return await (self._openai.answer(raw) if is_openai(raw) else self.run(raw, report))
        except WorkerError as error:
            return error_answer(error)
        except Exception as error:  # noqa: BLE001 - a job must not take the worker down
            log.error("internal error: %s", whereabouts(error))
            return error_answer(Internal(f"internal error ({type(error).__name__}); the worker's log says where"))

    async def run(self, raw: object, report: Report | None = None) -> Json:
        """As `answer`, for the operations of the job contract alone, and raises the `WorkerError`."""
        match await asyncio.to_thread(parse, raw, self._limits):
            case EmbedRequest() as request if request.qdrant is not None:
                return await self.ingest(request, request.qdrant, report)
            case EmbedRequest() as request:
                return await self.embed(request)
            case SearchRequest() as request:
                return await self.search(request)
            case CountRequest() as request:
                return await self.count(request)
            case DeleteRequest() as request:
                return await self.delete(request)
            case ScoreRequest() as request:
                return await self.score(request)

    def check(self, raw: object) -> None:
        """Raise `InvalidRequest` if a job's input is not well-formed; nothing is done."""
        request = parse(raw, self._limits)
        if isinstance(request, EmbedRequest) and request.qdrant is not None:
            self._check_target(request.qdrant)

    def _check_target(self, target: QdrantTarget) -> None:
        layout = self._schema.layout
        if layout != "plain" and target.text_key != QdrantTarget().text_key:
            key = text_key_of(layout, target.text_key)
            message = f"qdrant.textKey: belongs to the plain layout; in {layout}'s the text is in '{key}'; leave it out"
            raise at("qdrant.textKey", InvalidRequest, message)

    async def embed(self, request: EmbedRequest) -> Json:
        """Texts to vectors."""
        results = await self._embedded(request)
        return await asyncio.to_thread(self._embed_answer, request, results)

    async def ingest(self, request: EmbedRequest, target: QdrantTarget, report: Report | None = None) -> Json:
        """Texts to vectors to points. All that can be refused without the model is refused before it runs."""
        self._check_target(target)
        collection = self.collections.named(target.collection, "qdrant.collection")
        started = time.perf_counter()
        plan = await asyncio.to_thread(
            Plan.of,
            request,
            target,
            collection,
            self._embedder,
            max_length=self._max_length(request),
            schema=self._schema,
        )
        outline = [_outline(entry) for entry in plan.entries]
        if not request.wants_vectors:
            await asyncio.to_thread(self._embed_answer, request, outline, plan)
        planned = time.perf_counter()
        try:
            with self._calls.slot():
                answer, done = await self._stored(request, plan, outline, report)
        except WorkerError as error:
            raise error if "upsert" in error.details else lost(error, plan) from error
        answer["upsert"] = upsert_json(plan, done)
        log.info(
            "ingested %d points: %d stored, %d of them there before, %d rejected; planned in %.2f s, done in %.2f s",
            done.submitted,
            done.stored,
            done.skipped,
            len(done.rejected),
            planned - started,
            time.perf_counter() - planned,
        )
        return answer

    async def _stored(
        self, request: EmbedRequest, plan: Plan, outline: Sequence[Result], report: Report | None
    ) -> tuple[Json, UpsertReport]:
        """The answer but for its account, and the account."""
        load = await self._calls.call(lambda: self._ingest.begin(plan, report))
        if request.wants_vectors:
            results = await self._embedded(request, [entry.encoded for entry in plan.entries])
            answer = await asyncio.to_thread(self._embed_answer, request, results, plan)
            return answer, await self._loaded(load, lambda: _deliver(load, results))
        done = await self._streamed(request, load)
        known = [load.failures.get(position, result) for position, result in enumerate(outline)]
        answer = await asyncio.to_thread(embed_answer, request, known, model=self._model, plan=plan)
        answer["usage"]["tokens"] = sum(len(plan.entries[position].encoded) for position in load.wanted)
        return answer, done

    async def _streamed(self, request: EmbedRequest, load: Load) -> UpsertReport:
        """Embed and store at once."""

        def begin() -> None:
            with named("texts"):
                stream = self._embedder.stream(
                    load.texts,
                    Outputs.of(request.vectors),
                    load.deliver,
                    priority=_priority(request),
                    batch_size=request.batch_size,
                )
            load.attach(stream)

        return await self._loaded(load, begin)

    async def _loaded(self, load: Load, begin: Callable[[], None]) -> UpsertReport:
        """Whatever ends the load, the model computes nothing more for it."""
        try:
            return await self._calls.load(lambda: load.run(begin))
        except BaseException:
            load.cancel()
            raise

    async def search(self, request: SearchRequest) -> Json:
        """Texts, or stored points, to the nearest points of a collection."""
        answer = await self._searcher.search(request, self.collections.named(request.collection, "collection"))
        return await asyncio.to_thread(check_size, answer, self._settings.max_response_bytes, remedy=SEARCH_REMEDY)

    async def count(self, request: CountRequest) -> Json:
        """How many points match."""
        collection = self.collections.named(request.collection, "collection")
        return {"count": await self._calls.call(lambda: self._calls.opened().count(collection, request.filter))}

    async def delete(self, request: DeleteRequest) -> Json:
        """Remove points; says how many were there."""
        collection = self.collections.named(request.collection, "collection")
        scope = request.id_scope or collection
        ids = [point_id(raw, scope, field=f"ids[{n}]") for n, raw in enumerate(request.ids or ())]
        store = self._calls.opened
        return {"deleted": await self._calls.call(lambda: store().delete(collection, ids=ids, where=request.filter))}

    async def score(self, request: ScoreRequest) -> Json:
        """Pairs of texts to scores."""
        scores, tokens = await self._scorer.scores(
            request.pairs,
            Weights(*request.weights),
            query_length=request.max_query_length or self._query_length,
            passage_length=request.max_passage_length or self._passage_length,
        )
        answer = score_answer(scores, model=self._model, tokens=tokens)
        return check_size(answer, self._settings.max_response_bytes, remedy="send fewer pairs")

    @property
    def settings(self) -> Settings:
        """As given."""
        return self._settings

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for the model."""
        return self._embedder.waiting_tokens

    @property
    def model_label(self) -> str:
        """Model, engine, type and device, for a person."""
        return f"{self._model} ({self._embedder.label})"

    @property
    def store_label(self) -> str:
        """The store, for a person."""
        return self._calls.opened().label

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call this, from another thread, when no device is left that computes: nothing can be served any more."""
        self._embedder.when_lost(callback)

    def close(self) -> None:
        """Finish accepted work and release the model and the store. Calling it twice is harmless."""
        self._embedder.close()
        self._calls.close()

    @property
    def _model(self) -> str:
        if self._settings.served_model_name is not None:
            return self._settings.served_model_name
        name = self._settings.model_id
        return Path(name).name if Path(name).is_dir() else name  # a local path is nobody else's business

    def _clamped(self, name: str, value: int) -> int:
        limit = self._embedder.max_length
        if value > limit and name.lower() in self._settings.model_fields_set:
            log.warning("%s=%d is more than the model takes; using %d", name, value, limit)
        return min(value, limit)

    def _max_length(self, request: EmbedRequest) -> int:
        return request.max_length or (self._passage_length if request.is_passage else self._query_length)

    async def _embedded(self, request: EmbedRequest, texts: Sequence[EncodedText] | None = None) -> list[Result]:
        """The results of the request's texts, which may be tokenized already."""
        with named("texts"):
            if texts is None:
                texts = await asyncio.to_thread(
                    self._embedder.tokenize, request.texts, self._max_length(request), at_once=True
                )
            self._admit(request, [len(text) for text in texts])
            return await self._embedder.embed_tokens(
                texts,
                Outputs.of(request.vectors, "float32" if request.qdrant else request.dtype),
                priority=_priority(request),
                batch_size=request.batch_size,
            )

    def _admit(self, request: EmbedRequest, lengths: Sequence[int]) -> None:
        """Refuse, before anything is computed, an answer that is sure to be too large.

        Raises:
            ResponseTooLarge: the vectors alone are over the limit.
        """
        if request.wants_vectors:
            size = least_size(request, lengths, hidden=self._embedder.hidden_size, colbert=self._embedder.colbert_size)
            check_least_size(size, self._settings.max_response_bytes, remedy=EMBED_REMEDY)

    def _embed_answer(self, request: EmbedRequest, results: Sequence[Result], plan: Plan | None = None) -> Json:
        answer = embed_answer(request, results, model=self._model, plan=plan)
        remedy = EMBED_REMEDY if request.wants_vectors else INGEST_REMEDY
        points = 0 if plan is None else len(plan.entries)
        return check_size(answer, self._settings.max_response_bytes, remedy=remedy, points=points)


def _priority(request: EmbedRequest) -> Priority:
    return Priority.PASSAGE if request.is_passage else Priority.QUERY


def _outline(entry: Entry) -> Result:
    """What an answer without vectors says of a point, before and after it is embedded."""
    return Embedding(None, None, None, tokens=len(entry.encoded), truncated=entry.encoded.truncated)


def _deliver(load: Load, results: Sequence[Result]) -> None:
    """Hand over vectors that are there already."""
    for number, position in enumerate(load.wanted):
        load.deliver(number, results[position])
