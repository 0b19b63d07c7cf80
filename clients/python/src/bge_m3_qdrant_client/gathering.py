"""Calls with many texts: their requests, and the one result of all answers."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bge_m3_qdrant_client.answers import (
    EmbedAnswer,
    PointsAnswer,
    RejectedAnswer,
    TextAnswer,
    UpsertAnswer,
    UsageAnswer,
)
from bge_m3_qdrant_client.calls import Call, encoded
from bge_m3_qdrant_client.errors import ClientError, InvalidOption, ResponseTooLarge, UnexpectedAnswer, WorkerError
from bge_m3_qdrant_client.exchange import Policy, Target, exchange
from bge_m3_qdrant_client.replies import validated
from bge_m3_qdrant_client.report import IngestReport, Progress
from bge_m3_qdrant_client.splitting import Part, Texts
from bge_m3_qdrant_client.steps import Steps

A = TypeVar("A", EmbedAnswer, PointsAnswer)
R = TypeVar("R")

JOB_MIN_BYTES = 256 * 1024
"""Size of a request in bytes from which an ingest is a job, unless the caller decides."""


@dataclass(frozen=True)
class Outcome(Generic[A]):
    """What became of a part: its answer, or the error of its request."""

    part: Part
    answer: A | None = None
    error: ClientError | None = None


class Gathering(ABC, Generic[A, R]):
    """A call with many texts.

    A client takes parts with `take` until there are none, runs the `steps` of each, several at a time, passes the
    outcomes to `add` in the order of the parts, and ends with `finish`. After an error `take` has no more parts.

    Args:
        target: where the requests go.
        policy: the timeout and the retries of each request.
        texts: the texts.
        progress: callback for the progress, never called twice at the same time.
    """

    def __init__(
        self, target: Target, policy: Policy, texts: Texts, progress: Callable[[Progress], None] | None
    ) -> None:
        self._target = target
        self._policy = policy
        self._texts = texts
        self._progress = progress
        self._parts = texts.parts()
        self._error: ClientError | None = None
        self._lock = threading.Lock()
        self._answered = 0
        self._points = 0
        self._running: dict[int, int] = {}  # points of running jobs by the offset of their part

    def take(self) -> Part | None:
        """The next part; None after the last one, and after an error."""
        if self._error is None:
            try:
                return next(self._parts, None)
            except ClientError as error:
                self._error = error
            except Exception as error:  # noqa: BLE001 - the iterable is the caller's, and what was sent is reported
                self._error = InvalidOption(f"reading the texts ended with {type(error).__name__}")
                self._error.__cause__ = error
        return None

    def steps(self, part: Part) -> Steps[list[Outcome[A]]]:
        """The steps of a part, whose request is split where its answer would be too large."""
        try:
            answer = self._read(part, (yield from exchange(self._target, self._call(part), self._policy)))
        except ResponseTooLarge as error:
            if len(part.texts) == 1:
                return [Outcome(part, error=error)]
            size = _smaller(len(part.texts), error)
            self._texts.max_texts = min(self._texts.max_texts, size)
        except ClientError as error:
            return [Outcome(part, error=error)]
        else:
            self._advance(part, answer)
            return [Outcome(part, answer=answer)]
        outcomes: list[Outcome[A]] = []
        for piece in part.split(size):
            failed = outcomes[-1].error if outcomes else None
            outcomes += [Outcome(piece, error=failed)] if failed else (yield from self.steps(piece))
        return outcomes

    def add(self, outcomes: list[Outcome[A]]) -> None:
        """Add the outcomes of a part."""
        for outcome in outcomes:
            self._add(outcome)
            self._error = self._error or outcome.error

    def finish(self) -> R:
        """The result of all parts that were taken.

        Raises:
            ClientError: the first error of a part, or of reading the texts.
        """
        if self._error is not None:
            raise self._failed(self._error)
        return self._result()

    @abstractmethod
    def _result(self) -> R:
        """The result over the outcomes so far."""

    def _failed(self, error: ClientError) -> ClientError:
        """The error of the call."""
        return error

    @abstractmethod
    def _call(self, part: Part) -> Call:
        """The call of a part."""

    @abstractmethod
    def _read(self, part: Part, answer: Any) -> A:
        """The answer of a part as a model."""

    @abstractmethod
    def _add(self, outcome: Outcome[A]) -> None:
        """Add an outcome to the result."""

    def _advance(self, part: Part, answer: A) -> None:
        with self._lock:
            self._running.pop(part.offset, None)
            self._answered += len(part.texts)
            if answer.upsert is not None:
                self._points += answer.upsert.stored + len(answer.upsert.rejected)
            self._report()

    def _notify(self, part: Part, points: int) -> None:
        with self._lock:
            self._running[part.offset] = max(points, self._running.get(part.offset, 0))
            self._report()

    def _report(self) -> None:
        if self._progress is not None:
            points = self._points + sum(self._running.values())
            self._progress(Progress(self._answered, self._texts.total, points))


class EmbedGathering(Gathering[EmbedAnswer, EmbedAnswer]):
    """The requests of an embed call; `options` is their JSON without the texts."""

    def __init__(
        self,
        target: Target,
        policy: Policy,
        texts: Texts,
        progress: Callable[[Progress], None] | None,
        options: dict[str, Any],
    ) -> None:
        super().__init__(target, policy, texts, progress)
        self._options = options
        self._answers: list[EmbedAnswer] = []

    def _result(self) -> EmbedAnswer:
        if not self._answers:
            return EmbedAnswer(model="", results=[], usage=UsageAnswer(tokens=0))
        first, *others = self._answers
        if not others:
            return first
        whole = {
            "results": [result for answer in self._answers for result in answer.results],
            "usage": UsageAnswer(tokens=sum(answer.usage.tokens for answer in self._answers)),
            "timings": _summed([answer.timings for answer in self._answers]),
        }
        return first.model_copy(update=whole)

    def _call(self, part: Part) -> Call:
        return Call("embed", {**self._options, "texts": part.texts})

    def _read(self, part: Part, answer: Any) -> EmbedAnswer:
        return _complete(part, validated(EmbedAnswer, answer))

    def _add(self, outcome: Outcome[EmbedAnswer]) -> None:
        if outcome.answer is not None:
            self._answers.append(outcome.answer)


class IngestGathering(Gathering[PointsAnswer, IngestReport]):
    """The requests of an ingest; `options` is their JSON without the texts, `block` that of the `qdrant` block."""

    def __init__(
        self,
        target: Target,
        policy: Policy,
        texts: Texts,
        progress: Callable[[Progress], None] | None,
        *,
        options: dict[str, Any],
        block: dict[str, Any],
        job: bool | None,
    ) -> None:
        super().__init__(target, policy, texts, progress)
        self._options = options
        self._block = block
        self._job = job
        self._sent = 0
        self._upserts: list[UpsertAnswer] = []
        self._results: list[TextAnswer | None] = []
        self._answers: list[PointsAnswer] = []

    def _result(self) -> IngestReport:
        first = next(iter(self._answers), None)
        return IngestReport(
            collection=next((upsert.collection for upsert in self._upserts if upsert.collection), None),
            texts=self._sent,
            stored=sum(upsert.stored for upsert in self._upserts),
            skipped=sum(upsert.skipped for upsert in self._upserts),
            rejected=tuple(point for upsert in self._upserts for point in upsert.rejected),
            results=tuple(self._results),
            tokens=sum(answer.usage.tokens for answer in self._answers),
            model=first.model if first else None,
            timings=_summed([answer.timings for answer in self._answers]),
            differing=tuple(index for upsert in self._upserts for index in upsert.differing or ()),
        )

    def _failed(self, error: ClientError) -> ClientError:
        error.report = self._result()
        return error

    def _call(self, part: Part) -> Call:
        block = dict(self._block)
        if part.ids is not None:
            block["ids"] = part.ids
        if part.payloads is not None:
            block["payloads"] = part.payloads
        body = {**self._options, "texts": part.texts, "qdrant": block}
        job = len(encoded(part.texts)) >= JOB_MIN_BYTES if self._job is None else self._job
        return Call("ingest", body, job=job, notify=lambda points: self._notify(part, points))

    def _read(self, part: Part, answer: Any) -> PointsAnswer:
        return _complete(part, validated(PointsAnswer, answer))

    def _add(self, outcome: Outcome[PointsAnswer]) -> None:
        part = outcome.part
        self._sent += len(part.texts)
        if outcome.answer is not None:
            self._answers.append(outcome.answer)
            self._results += outcome.answer.results
            self._upserts.append(_shifted(outcome.answer.upsert, part.offset))
        elif outcome.error is not None:
            self._results += [None] * len(part.texts)
            self._upserts.append(_upsert_of(outcome.error, part))


def _upsert_of(error: ClientError, part: Part) -> UpsertAnswer:
    """What an error says of the points of its request, or else all of them as rejected with its code."""
    upsert = error.details.get("upsert") if isinstance(error, WorkerError) else None
    if isinstance(upsert, dict):
        try:
            return _shifted(validated(UpsertAnswer, upsert), part.offset)
        except UnexpectedAnswer:
            pass
    rejected = [
        RejectedAnswer(index=part.offset + index, code=error.code, message=error.message)
        for index in range(len(part.texts))
    ]
    return UpsertAnswer(collection="", stored=0, skipped=0, rejected=rejected)


def _shifted(upsert: UpsertAnswer, offset: int) -> UpsertAnswer:
    if not offset or not (upsert.rejected or upsert.differing):
        return upsert
    rejected = [point.model_copy(update={"index": point.index + offset}) for point in upsert.rejected]
    differing = [index + offset for index in upsert.differing or ()]
    return upsert.model_copy(update={"rejected": rejected, "differing": differing})


def _complete(part: Part, answer: A) -> A:
    if len(answer.results) != len(part.texts):
        raise UnexpectedAnswer(f"the answer has {len(answer.results)} results for {len(part.texts)} texts")
    return answer


def _smaller(count: int, error: ResponseTooLarge) -> int:
    """The number of texts whose answer should fit, at most half as many. The size that the error names is a minimum."""
    size, limit = error.details.get("bytes"), error.details.get("limit")
    fitting = count * limit // size if isinstance(size, int) and isinstance(limit, int) and size > 0 else count
    return max(1, min(count // 2, fitting))


def _summed(timings: list[dict[str, float] | None]) -> dict[str, float] | None:
    summed: dict[str, float] = {}
    for stages in timings:
        for stage, seconds in (stages or {}).items():
            summed[stage] = summed.get(stage, 0.0) + seconds
    return summed or None
