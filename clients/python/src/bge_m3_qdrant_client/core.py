"""What both clients share: the calls of all methods as steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from bge_m3_qdrant_client import options
from bge_m3_qdrant_client.answers import (
    Answer,
    CollectionAnswer,
    CollectionsAnswer,
    CountAnswer,
    DeleteAnswer,
    LoadAnswer,
    ReadPointsAnswer,
    RerankAnswer,
    ScoreAnswer,
    SearchAnswer,
)
from bge_m3_qdrant_client.calls import Call, Deadline, Operation
from bge_m3_qdrant_client.errors import InvalidOption
from bge_m3_qdrant_client.exchange import Policy, Target, exchange
from bge_m3_qdrant_client.fields import as_json
from bge_m3_qdrant_client.gathering import EmbedGathering, IngestGathering
from bge_m3_qdrant_client.http_target import HttpTarget
from bge_m3_qdrant_client.replies import validated
from bge_m3_qdrant_client.report import Health, Progress
from bge_m3_qdrant_client.splitting import Payload, PointId, Texts
from bge_m3_qdrant_client.steps import Steps

A = TypeVar("A", bound=Answer)
OnProgress = Callable[[Progress], None]

TIMEOUT_S = 300.0
TIMEOUT_MAX_S = 24 * 24 * 3600
"""Maximum timeout in seconds: operating systems count the milliseconds of a wait in 31 bits, which are 24.8 days."""

RETRIES = 4
CONCURRENCY = 4
TEXTS_PER_REQUEST = 256

_BLOCK = frozenset({"chunk", "collection", "colbertPooling", "compareKept", "idScope", "mode", "textKey"})
"""Fields of the `qdrant` block among those of an ingest."""


class Core:
    """The calls of a client.

    Args:
        target: where they go.
        timeout: maximum seconds of a request, with its retries; at most `TIMEOUT_MAX_S`.
        retries: maximum repetitions of a request whose error is retryable.
        concurrency: maximum requests of one call at the same time.
        texts_per_request: maximum texts of a request.

    Raises:
        InvalidOption: a number is too small, or the timeout too long.
    """

    def __init__(
        self, target: Target, *, timeout: float, retries: int, concurrency: int, texts_per_request: int
    ) -> None:
        for name, value, minimum in (
            ("retries", retries, 0),
            ("concurrency", concurrency, 1),
            ("texts_per_request", texts_per_request, 1),
        ):
            if value < minimum:
                raise InvalidOption(f"{name} must be at least {minimum}, got {value}")
        if not 0 < timeout <= TIMEOUT_MAX_S:
            raise InvalidOption(f"timeout must be more than 0 and at most {TIMEOUT_MAX_S} seconds, got {timeout:g}")
        self.target = target
        self.concurrency = concurrency
        self._policy = Policy(timeout, retries)
        self._max_texts = texts_per_request

    def embed(
        self, texts: str | Iterable[str], progress: OnProgress | None, given: Mapping[str, Any]
    ) -> EmbedGathering:
        """The requests of `embed`."""
        body = {"encoding": "base64", **as_json(options.EMBED_OPTIONS_FIELDS, given, "embed")}
        return EmbedGathering(self.target, self._policy, self._split(texts), progress, body)

    def ingest(
        self,
        texts: str | Iterable[str],
        ids: Iterable[PointId] | None,
        payloads: Iterable[Payload] | None,
        *,
        job: bool | None,
        progress: OnProgress | None,
        given: Mapping[str, Any],
    ) -> IngestGathering:
        """The requests of `ingest`."""
        fields = as_json(options.INGEST_OPTIONS_FIELDS, given, "ingest")
        block = {name: value for name, value in fields.items() if name in _BLOCK}
        body = {name: value for name, value in fields.items() if name not in _BLOCK}
        if body.get("returnVectors"):
            body["encoding"] = "base64"
        split = self._split(texts, ids, payloads)
        return IngestGathering(self.target, self._policy, split, progress, options=body, block=block, job=job)

    def search(self, queries: str | Sequence[str] | None, given: Mapping[str, Any]) -> Steps[SearchAnswer]:
        """The steps of `search`."""
        body = as_json(options.SEARCH_OPTIONS_FIELDS, given, "search")
        if queries is not None:
            body["queries"] = [queries] if isinstance(queries, str) else queries
        return self._answer("search", body, SearchAnswer)

    def score(self, pairs: Sequence[tuple[str, str]], given: Mapping[str, Any]) -> Steps[ScoreAnswer]:
        """The steps of `score`."""
        body = as_json(options.SCORE_OPTIONS_FIELDS, given, "score")
        return self._answer("score", {**body, "pairs": pairs}, ScoreAnswer)

    def rerank(
        self, query: str, documents: Sequence[str | Mapping[str, Any]], given: Mapping[str, Any]
    ) -> Steps[RerankAnswer]:
        """The steps of `rerank`."""
        body = as_json(options.RERANK_OPTIONS_FIELDS, given, "rerank")
        return self._answer("rerank", {**body, "query": query, "documents": documents}, RerankAnswer)

    def count(self, given: Mapping[str, Any]) -> Steps[CountAnswer]:
        """The steps of `count`."""
        return self._answer("count", as_json(options.COUNT_OPTIONS_FIELDS, given, "count"), CountAnswer)

    def delete(self, given: Mapping[str, Any]) -> Steps[DeleteAnswer]:
        """The steps of `delete`, which is not repeated after a lost answer."""
        body = as_json(options.DELETE_OPTIONS_FIELDS, given, "delete")
        return self._answer("delete", body, DeleteAnswer, repeatable=False)

    def load(self, action: str, given: Mapping[str, Any]) -> Steps[LoadAnswer]:
        """The steps of `load`."""
        body = {**as_json(options.LOAD_OPTIONS_FIELDS, given, "load"), "action": action}
        return self._answer("load", body, LoadAnswer, job=True)

    def points(self, given: Mapping[str, Any]) -> Steps[ReadPointsAnswer]:
        """The steps of `points`."""
        body = {"encoding": "base64", **as_json(options.POINTS_OPTIONS_FIELDS, given, "points")}
        return self._answer("points", body, ReadPointsAnswer)

    def collections(self) -> Steps[CollectionsAnswer]:
        """The steps of `collections`."""
        return self._answer("collections", {}, CollectionsAnswer)

    def collection(self, name: str) -> Steps[CollectionAnswer]:
        """The steps of `collection`."""
        return self._answer("collections", {"collection": name}, CollectionAnswer)

    def health(self) -> Steps[Health]:
        """The steps of `health`."""
        return self.target.health(Deadline(self._policy.timeout_s))

    def _split(
        self,
        texts: str | Iterable[str],
        ids: Iterable[PointId] | None = None,
        payloads: Iterable[Payload] | None = None,
    ) -> Texts:
        max_bytes = self.target.request_max_bytes
        return Texts(texts, ids, payloads, max_texts=self._max_texts, max_bytes=max_bytes)

    def _answer(
        self,
        operation: Operation,
        body: Mapping[str, Any],
        kind: type[A],
        *,
        repeatable: bool = True,
        job: bool = False,
    ) -> Steps[A]:
        call = Call(operation, body, repeatable=repeatable, job=job)
        return validated(kind, (yield from exchange(self.target, call, self._policy)))


def target_of(target: str | Target, api_key: str | None, headers: Mapping[str, str] | None) -> Target:
    """The target, or the worker at an address.

    Raises:
        InvalidOption: the address or the key is invalid, or a target that has its own is given a key or headers.
    """
    if isinstance(target, str):
        return HttpTarget(target, api_key=api_key, headers=headers)
    if api_key is not None or headers is not None:
        raise InvalidOption("api_key and headers belong to the target, which has its own")
    return target
