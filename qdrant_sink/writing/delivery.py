"""One batch on its way into the store: split until the point at fault stands alone; no threads."""

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
    """What became of a batch; every point is in one of the three.

    Attributes:
        stored: acknowledged by the store.
        refused: points at fault, with the error of each.
        unsent: neither acknowledged nor at fault.
        failure: why points are unsent; None if there are none.
    """

    stored: Sequence[Claim]
    refused: Sequence[tuple[Claim, StoreRejected]]
    unsent: Sequence[Claim]
    failure: WorkerError | None


def deliver(
    upsert: Callable[[Sequence[Point]], None], batch: Sequence[Claim], ended: Callable[[], WorkerError | None]
) -> Outcome:
    """Store a batch. One that the store refuses is halved until the points at fault stand alone.

    `NothingTaken` is not split, since any part would be refused too. Raises nothing.

    Args:
        upsert: stores points, all or none of them.
        batch: at least one point.
        ended: why the job has ended meanwhile; None while it goes on. Asked before each request.
    """
    stored: list[Claim] = []
    refused: list[tuple[Claim, StoreRejected]] = []
    unsent: list[Claim] = []
    failure: WorkerError | None = None
    parts = [batch]
    while parts:
        part = parts.pop()
        failure = failure or ended()
        if failure is not None:
            unsent += part
            continue
        try:
            upsert([claim.point for claim in part])
        except StoreRejected as error:
            if isinstance(error, NothingTaken):
                failure = _without_frames(error)
                unsent += part
            elif len(part) == 1:
                refused.append((part[0], _without_frames(error)))
            else:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
        except WorkerError as error:
            failure = _without_frames(error)
            unsent += part
        except BaseException as error:  # noqa: BLE001 - a sender that dies silently would leave the job waiting
            failure = contained("the store failed unexpectedly", error)
            unsent += part
        else:
            stored += part
    return Outcome(stored, refused, unsent, failure)


_E = TypeVar("_E", bound=WorkerError)


def _without_frames(error: _E) -> _E:
    """The error, for a report that is kept: its frames, and those of its causes, would keep the batch's vectors."""
    one: BaseException | None = error
    while one is not None:
        one.__traceback__ = None
        one = one.__cause__ or one.__context__
    return error


def contained(what: str, error: BaseException) -> Internal:
    """An unexpected exception as an error of the job; its words, which may quote a text, stay out of the log too."""
    log.error("%s: %s", what, whereabouts(error))
    return Internal(f"internal error ({type(error).__name__})")
