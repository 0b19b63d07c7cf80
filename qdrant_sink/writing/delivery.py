"""Deliver one batch to the store, and split it if the store refuses it. This module starts no threads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from embedder.errors import Internal, WorkerError, whereabouts
from qdrant_sink.errors import NothingTaken, StoreRejected
from qdrant_sink.points import Point
from qdrant_sink.writing.batches import Claim

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """Outcome of a batch. Every point is in exactly one of the three sequences.

    Attributes:
        stored: points that the store acknowledged.
        refused: points that the store refused, each with its error.
        unsent: points that were neither acknowledged nor refused.
        failure: reason why points are unsent; None if there are none.
        requests: number of requests that the store acknowledged.
    """

    stored: Sequence[Claim]
    refused: Sequence[tuple[Claim, StoreRejected]]
    unsent: Sequence[Claim]
    failure: WorkerError | None
    requests: int


def deliver(
    upsert: Callable[[Sequence[Point]], None], batch: Sequence[Claim], job_failure: Callable[[], WorkerError | None]
) -> Outcome:
    """Store a batch. A batch that the store refuses is halved until the invalid points are identified.

    After `NothingTaken` the batch is not split, because every part of it would be refused too. No exception escapes.

    Args:
        upsert: function that stores either all of the points or none of them.
        batch: batch of at least one point.
        job_failure: function that returns the reason why the job has ended, or None while it is running. It is
            called before each request.
    """
    stored: list[Claim] = []
    refused: list[tuple[Claim, StoreRejected]] = []
    unsent: list[Claim] = []
    failure: WorkerError | None = None
    requests = 0
    parts = [batch]
    while parts:
        part = parts.pop()
        failure = failure or job_failure()
        if failure is not None:
            unsent += part
            continue
        try:
            upsert([claim.point for claim in part])
        except StoreRejected as error:
            if isinstance(error, NothingTaken):
                failure = _without_tracebacks(error)
                unsent += part
            elif len(part) == 1:
                refused.append((part[0], _without_tracebacks(error)))
            else:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
        except WorkerError as error:
            failure = _without_tracebacks(error)
            unsent += part
        except BaseException as error:  # noqa: BLE001 - if a sender died silently, the job would wait forever
            failure = as_internal("the store failed unexpectedly", error)
            unsent += part
        else:
            stored += part
            requests += 1
    return Outcome(stored, refused, unsent, failure, requests)


_E = TypeVar("_E", bound=WorkerError)


def _without_tracebacks(error: _E) -> _E:
    """Remove the tracebacks of an error and its causes: in a report they would keep the vectors of the batch alive."""
    linked: BaseException | None = error
    while linked is not None:
        linked.__traceback__ = None
        linked = linked.__cause__ or linked.__context__
    return error


def as_internal(context: str, error: BaseException) -> Internal:
    """Convert an unexpected exception to an error of the job. Its message may quote a text and is not logged."""
    log.error("%s: %s", context, whereabouts(error))
    return Internal(f"internal error ({type(error).__name__})")
