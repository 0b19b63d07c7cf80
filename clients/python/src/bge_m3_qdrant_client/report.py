"""Reports that no answer of the worker is: the progress of a call, the points of an ingest, and the health."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bge_m3_qdrant_client.answers import RejectedAnswer, TextAnswer


@dataclass(frozen=True)
class Progress:
    """How far a call with many texts has come.

    Attributes:
        texts: texts whose requests are answered.
        total: number of texts; None if they come from an iterator.
        points: points that are stored, skipped or rejected so far, also by requests that are not answered yet.
    """

    texts: int
    total: int | None
    points: int


@dataclass(frozen=True)
class IngestReport:
    """What became of the texts of an ingest, over all its requests.

    `stored` and the number of `rejected` points add up to the number of points: one per text, or one per chunk.

    Attributes:
        collection: the collection, as the worker answered it; None if no request was answered.
        texts: number of texts that were sent. If the ingest failed, later ones were not.
        stored: points that are stored, the skipped ones included.
        skipped: points that were there already, with `mode` `"insertOnly"`.
        rejected: points that are not stored, with the indices of their texts among all texts. Those of a request that
            failed as a whole have the code of its error; if that is `connection_failed`, `timed_out`,
            `unexpected_answer` or `job_failed`, they may be stored nevertheless, and can be sent again.
        differing: indices of the texts whose points were kept with another text or payload; only with `compare_kept`.
        results: the result of each text that was sent; None where the request failed.
        tokens: tokens that the model computed.
        model: the name of the model; None if no request was answered.
        timings: seconds per stage, summed over the requests; only with `timings`.
    """

    collection: str | None
    texts: int
    stored: int
    skipped: int
    rejected: tuple[RejectedAnswer, ...]
    results: tuple[TextAnswer | None, ...] = field(repr=False)
    tokens: int
    model: str | None
    timings: Mapping[str, float] | None = None
    differing: tuple[int, ...] = ()


@dataclass(frozen=True)
class Health:
    """The state of a worker, or of an endpoint on RunPod.

    Attributes:
        ready: whether the worker can answer; on RunPod, whether a worker is ready or running.
        status: `ready`, `loading`, `draining` or `lost`; on RunPod `ready` or `idle`.
        reason: why it is not ready, or what it cannot do; None if there is nothing to say.
        model: the model; None on RunPod and while it loads.
        store: the state of the store; None on RunPod and while the worker is not ready.
        jobs: number of jobs on RunPod by state; empty over HTTP.
        workers: number of workers on RunPod by state; empty over HTTP.
    """

    ready: bool
    status: str
    reason: str | None = None
    model: str | None = None
    store: str | None = None
    jobs: Mapping[str, int] = field(default_factory=dict)
    workers: Mapping[str, int] = field(default_factory=dict)
