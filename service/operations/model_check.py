"""The check that a collection has the vectors of this worker's model, once per collection.

The metadata of a collection name its model if a worker made it. Otherwise a few stored texts are embedded and compared
with their stored vectors; see `text_comparison`. An ingest into a collection of another model is refused, and a
search of it gets warnings, or is refused too if the metadata name the other model.

What was seen is remembered by the requested name, and at most every `LOOK_INTERVAL_S` seconds the worker looks whether
the name still leads to the same collection. A collection without texts is compared again then.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

from embedder import Embedder, Kind, WorkerError, timed
from qdrant_sink import (
    MODEL_COSINE_MIN,
    RELATED_COSINE_MIN,
    CollectionSchema,
    Difference,
    Disagreement,
    ModelIdentity,
    ModelMismatch,
    ModelVerdict,
    SharedCalls,
    VectorDescription,
    text_key_of,
)
from service.operations.store_access import StoreAccess
from service.operations.text_comparison import TextComparison

log = logging.getLogger(__name__)

LOOK_INTERVAL_S: Final = 30.0
"""Minimum time between two looks at a collection."""

REMEMBERED_MAX: Final = 1024
"""Maximum collections that are remembered."""


@dataclass(frozen=True, slots=True)
class ModelWarning:
    """The stored vectors of a kind are not those of the model.

    Attributes:
        collection: name of the collection as the request has it.
        disagreement: the kind, and how far the vectors are from those of the model.
    """

    collection: str
    disagreement: Disagreement

    @property
    def message(self) -> str:
        """The warning in words."""
        kind = self.disagreement.kind
        if _are_another_models([self.disagreement]):
            return f"{_described(self.collection, [self.disagreement])}; scores of {kind} mean nothing"
        return f"{_described(self.collection, [self.disagreement])}; scores of {kind} can be wrong"


@dataclass(frozen=True, slots=True)
class _Target:
    """What a name leads to: a collection with these vectors and this model in its metadata."""

    collection: str
    vectors: Mapping[str, VectorDescription]
    model: ModelIdentity | None


@dataclass(frozen=True, slots=True)
class _Finding:
    """What was seen of a collection.

    Attributes:
        target: the collection.
        looked_at: time of the last look by the clock.
        verdicts: verdicts by kind; empty if the metadata decided.
        is_decided: whether texts were compared or the metadata decided. Otherwise the next look compares again.
    """

    target: _Target
    looked_at: float
    verdicts: Mapping[Kind, ModelVerdict] = field(default_factory=dict)
    is_decided: bool = True

    def disagreements(self, kinds: Sequence[Kind]) -> list[Disagreement]:
        """The kinds among these that have vectors of another model."""
        found = (verdict.disagreement(kind) for kind, verdict in self.verdicts.items() if kind in kinds)
        return [disagreement for disagreement in found if disagreement is not None]


class ModelCheck:
    """The check of the model of collections. Usable from any event loop.

    Args:
        embedder: the loaded model.
        store: access to the store.
        identity: identity of the model.
        enabled: whether collections are checked; False if the operator vouches for them (`verifyModel`).
        clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        embedder: Embedder,
        store: StoreAccess,
        identity: ModelIdentity,
        *,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._comparison = TextComparison(embedder)
        self._store = store
        self._identity = identity
        self._enabled = enabled
        self._clock = clock
        self._guard = threading.Lock()
        self._remembered: dict[str, _Finding] = {}
        self._looks: SharedCalls[_Finding | None] = SharedCalls()
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="model-check")

    async def admit(self, name: str, schema: CollectionSchema | None, text_key: str, kinds: Sequence[Kind]) -> None:
        """Check a collection before points are stored. A collection that does not exist passes, or has no texts.

        Args:
            name: name of the collection or of an alias.
            schema: its vectors and its layout; None if no vector can be compared, so that only its metadata decide.
            text_key: key of the text in a plain payload.
            kinds: kinds of vectors that are going to be stored.

        Raises:
            ModelMismatch: the collection has the vectors of another model.
        """
        finding = await self._finding(name, schema, text_key)
        disagreements = [] if finding is None else finding.disagreements(kinds)
        if disagreements:  # look again before a refusal: the collection may have been made anew
            finding = await self._finding(name, schema, text_key, fresh=True)
            disagreements = [] if finding is None else finding.disagreements(kinds)
        self._check_name(name, finding)
        if disagreements:
            raise ModelMismatch(
                f"{_described(name, disagreements)} (limit {MODEL_COSINE_MIN:g}); "
                f"store into another collection, or set verifyModel to false in QDRANT_COLLECTION_CONFIG if the "
                f"vectors are right",
                collection=name,
                disagreements=disagreements,
            )

    async def warnings(
        self, name: str, schema: CollectionSchema, text_key: str, kinds: Sequence[Kind]
    ) -> tuple[ModelWarning, ...]:
        """Check a collection that is searched; the arguments are those of `admit`, with the kinds that are searched.

        Returns:
            A warning for each kind with vectors of another model.

        Raises:
            ModelMismatch: the metadata of the collection name another model.
        """
        finding = await self._finding(name, schema, text_key)
        self._check_name(name, finding)
        return () if finding is None else tuple(ModelWarning(name, part) for part in finding.disagreements(kinds))

    def close(self) -> None:
        """Wait for running checks. Idempotent."""
        self._threads.shutdown()

    def _check_name(self, name: str, finding: _Finding | None) -> None:
        stored = None if finding is None else finding.target.model
        if stored is None or stored.has_name_of(self._identity):
            return
        raise ModelMismatch(
            f"collection {name!r} was made for the model {stored.shown!r}, and this worker has "
            f"{self._identity.shown!r}; use "
            f"a worker with that model or another collection, or set verifyModel to false in QDRANT_COLLECTION_CONFIG "
            f"if the two are the same",
            collection=name,
            differences=[Difference("model", stored.shown, self._identity.shown)],
        )

    async def _finding(
        self, name: str, schema: CollectionSchema | None, text_key: str, *, fresh: bool = False
    ) -> _Finding | None:
        """What is known of a collection; None if it does not exist or the look failed."""
        if not self._enabled:
            return None
        form = schema and (text_key_of(schema.layout, text_key), schema.layout, schema.names, schema.kinds)
        key = repr((name, form))
        remembered = self._remembered.get(key)
        if remembered is not None and not fresh and self._is_recent(remembered):
            return remembered
        with timed("check"):
            try:
                return await asyncio.get_running_loop().run_in_executor(
                    self._threads,
                    lambda: self._looks(key, lambda: self._look(key, name, schema, text_key, fresh=fresh)),
                )
            except WorkerError as error:  # a search or an ingest meets the same fault itself, if it lasts
                _report_failure(name, error)
                return remembered

    def _is_recent(self, finding: _Finding) -> bool:
        return self._clock() - finding.looked_at < LOOK_INTERVAL_S

    def _look(
        self, key: str, name: str, schema: CollectionSchema | None, text_key: str, *, fresh: bool
    ) -> _Finding | None:
        """Look at a collection, and compare it with the model unless that was done before. Blocks."""
        remembered = self._remembered.get(key)
        if remembered is not None and not fresh and self._is_recent(remembered):
            return remembered  # by a concurrent request
        store = self._store.opened()
        looked_at = self._clock()
        collection = store.collection_of(name)
        if collection is None:
            return None
        state = store.describe(collection)
        target = _Target(collection, state.description.vectors, state.model)
        seen = remembered if remembered is not None and remembered.target == target else None
        if seen is not None and seen.is_decided and not fresh:
            finding = replace(seen, looked_at=looked_at)
        elif schema is None or (
            target.model is not None
            and (target.model.is_certainly(self._identity) or not target.model.has_name_of(self._identity))
        ):
            finding = _Finding(target, looked_at)
        else:
            try:
                verdicts = self._comparison(store, collection, schema, text_key)
                finding = _Finding(target, looked_at, verdicts or {}, is_decided=verdicts is not None)
            except WorkerError as error:
                _report_failure(name, error)
                undecided = _Finding(target, looked_at, is_decided=False)
                finding = undecided if seen is None else replace(seen, looked_at=looked_at)
            if seen is None:
                _report(name, finding)
        with self._guard:
            self._remembered.pop(key, None)
            if len(self._remembered) >= REMEMBERED_MAX:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[key] = finding
        return finding


def _report(name: str, finding: _Finding) -> None:
    """Log the kinds that disagree."""
    disagreements = finding.disagreements(list(finding.verdicts))
    if disagreements:
        log.warning("%s (limit %g)", _described(name, disagreements), MODEL_COSINE_MIN)


def _report_failure(name: str, error: WorkerError) -> None:
    log.info("collection %r could not be compared with the model: %s", name, error.message)


def _described(collection: str, disagreements: Sequence[Disagreement]) -> str:
    """Say that vectors are those of another model, or may be; vectors of unrelated models have a cosine near 0."""
    measured = ", ".join(map(str, disagreements))
    if _are_another_models(disagreements):
        return f"collection {collection!r} has vectors of another model: {measured}"
    return (
        f"collection {collection!r} has vectors of a similar model, or of other texts than the stored ones, such as "
        f"with a title or a prefix: {measured}"
    )


def _are_another_models(disagreements: Sequence[Disagreement]) -> bool:
    """Whether the vectors cannot be this model's. Sparse weights alone cannot tell: two models can agree on a text."""
    cosines = [disagreement.cosine for disagreement in disagreements if disagreement.kind != "sparse"]
    return not cosines or min(cosines) < RELATED_COSINE_MIN
