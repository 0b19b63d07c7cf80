"""The shared model pool: one set of weights per device, lanes that run batches, one queue for all requests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedder.batching import BatchQueue, Pick, Priority
from embedder.engine import EncodedBatch, Engine, TokenBatch
from embedder.errors import Cancelled, InvalidRequest, ModelFailure, Overloaded, whereabouts
from embedder.tokenizer import EncodedText
from embedder.vectors import Embedding, Outputs

log = logging.getLogger(__name__)

Result = Embedding | ModelFailure
"""What became of one text."""


@dataclass(slots=True, eq=False)
class _Job:
    """A request in the pool: its texts, and the results as they arrive."""

    texts: Sequence[EncodedText]
    outputs: Outputs
    future: Future[list[Result]] = field(default_factory=Future)
    results: dict[int, Result] = field(default_factory=dict)


class ModelPool:
    """Forms batches across requests and runs them on lanes.

    A lane is a thread. All lanes of a device share its engine's weights, so memory does not grow
    with their number. On a CPU one forward pass uses all cores, so there lanes compute in turn and
    gain only the overlap of computing with unpacking the results.

    Args:
        engines: one per device, with the same weights.
        lanes: threads per engine.
        token_budget: most tokens of one batch; a longer text goes alone.
        queue_tokens: most tokens waiting; a request beyond it is refused as `overloaded`.
    """

    def __init__(self, engines: Sequence[Engine], *, lanes: int, token_budget: int, queue_tokens: int) -> None:
        self._budget = token_budget
        self._queue_tokens = queue_tokens
        self._queue: BatchQueue[_Job] = BatchQueue()
        self._changed = threading.Condition()
        self._closed = False
        self._lanes = [
            threading.Thread(target=self._run_lane, args=(engine, turn), name=f"lane-{engine.device}-{n}", daemon=True)
            for engine in engines
            for turn in [threading.Semaphore(1 if engine.device == "cpu" else lanes)]
            for n in range(lanes)
        ]
        for lane in self._lanes:
            lane.start()

    def submit(
        self, texts: Sequence[EncodedText], outputs: Outputs, priority: Priority, *, batch_size: int = 0
    ) -> Future[list[Result]]:
        """Queue texts; the future gives one result per text, in order.

        Cancelling the future drops what still waits; a batch under way is finished and thrown away.

        Args:
            texts: none are done at once.
            outputs: the vectors to compute.
            priority: queries go before passages.
            batch_size: most texts of this job in one batch; 0 leaves it to the budget.

        Raises:
            InvalidRequest: the job alone is larger than the queue.
            Overloaded: the queue has no room for it now.
            Cancelled: the pool is closed.
        """
        lengths = [len(text) for text in texts]
        tokens = sum(lengths)
        if tokens > self._queue_tokens:
            raise InvalidRequest(
                f"texts: {tokens} tokens are more than the queue holds (QUEUE_TOKENS={self._queue_tokens}); "
                "split the job"
            )
        job = _Job(texts, outputs)
        if not texts:
            job.future.set_result([])
            return job.future
        with self._changed:
            if self._closed:
                raise Cancelled("the worker is shutting down")
            if self._queue.tokens + tokens > self._queue_tokens:
                raise Overloaded(
                    f"the queue holds {self._queue.tokens} of {self._queue_tokens} tokens "
                    f"and this request has {tokens}; retry later"
                )
            self._queue.add(job, lengths, priority, cap=batch_size)
            self._changed.notify_all()
        job.future.add_done_callback(lambda future: self._forget(job) if future.cancelled() else None)
        return job.future

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for a lane."""
        with self._changed:
            return self._queue.tokens

    def close(self) -> None:
        """Finish what was accepted, then stop the lanes. Calling it twice is harmless."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for lane in self._lanes:
            lane.join()

    def _forget(self, job: _Job) -> None:
        with self._changed:
            self._queue.drop(job)

    def _run_lane(self, engine: Engine, turn: threading.Semaphore) -> None:
        while True:
            with turn:
                batch = self._next_batch()
                if batch is None:
                    return
                passes = _encode([_Text(pick.key.texts[pick.index], pick.key.outputs) for pick in batch], engine)
            self._deliver(batch, [result for one in passes for result in one.results()])

    def _next_batch(self) -> list[Pick[_Job]] | None:
        """Wait for texts; None when the pool is closed and nothing is left."""
        with self._changed:
            while not self._queue:
                if self._closed:
                    return None
                self._changed.wait()
            return self._queue.take(self._budget)

    def _deliver(self, batch: list[Pick[_Job]], results: list[Result]) -> None:
        done: list[_Job] = []
        with self._changed:
            for pick, result in zip(batch, results, strict=True):
                pick.key.results[pick.index] = result
                if len(pick.key.results) == len(pick.key.texts):
                    done.append(pick.key)
        for job in done:
            if job.future.set_running_or_notify_cancel():
                job.future.set_result([job.results[index] for index in range(len(job.texts))])


@dataclass(frozen=True, slots=True)
class _Text:
    """A text of a batch, and what its job wants of it."""

    encoded: EncodedText
    outputs: Outputs


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """A forward pass over some texts: what it gave, or why it failed."""

    texts: Sequence[_Text]
    outcome: EncodedBatch | ModelFailure

    def results(self) -> list[Result]:
        """One result per text, checked to be finite."""
        if isinstance(self.outcome, ModelFailure):
            return [self.outcome] * len(self.texts)
        try:
            return _split(self.texts, self.outcome)
        except Exception as error:  # noqa: BLE001 - an engine at odds with the seam must not end the lane
            log.error("a batch of %d texts could not be unpacked: %s", len(self.texts), whereabouts(error))
            return [ModelFailure(f"the model gave vectors of unexpected shapes ({type(error).__name__})")] * len(
                self.texts
            )


def _encode(texts: Sequence[_Text], engine: Engine) -> list[_Pass]:
    """One forward pass; if it fails, halves are tried until the text at fault stands alone."""
    outputs = texts[0].outputs
    for text in texts[1:]:
        outputs |= text.outputs
    try:
        return [_Pass(texts, engine.encode(TokenBatch.of([text.encoded.ids for text in texts]), outputs))]
    except BaseException as error:  # noqa: BLE001 - whatever ended the lane would leave every caller waiting
        if len(texts) == 1:
            tokens = len(texts[0].encoded)
            log.error("a text of %d tokens could not be encoded: %s", tokens, whereabouts(error))
            return [
                _Pass(texts, ModelFailure(f"the model failed on a text of {tokens} tokens ({type(error).__name__})"))
            ]
    # After the handler, not in it: there the exception still holds what the failed pass had allocated.
    middle = len(texts) // 2
    return _encode(texts[:middle], engine) + _encode(texts[middle:], engine)


def _split(texts: Sequence[_Text], batch: EncodedBatch) -> list[Result]:
    """The batch's arrays as one result per text."""
    results: list[Result] = []
    row = 0
    for b, text in enumerate(texts):
        wanted = text.outputs
        rows = slice(row, row := row + len(text.encoded) - 1)
        embedding = Embedding(
            dense=_part(batch.dense, b) if wanted.dense else None,
            sparse=batch.sparse[b] if wanted.sparse and batch.sparse is not None else None,
            colbert=_part(batch.colbert, rows) if wanted.colbert else None,
            tokens=len(text.encoded),
            truncated=text.encoded.truncated,
        )
        results.append(_checked(embedding, wanted))
    return results


def _part(array: NDArray[np.float32] | None, where: int | slice) -> NDArray[np.float32] | None:
    """A copy: a view would keep the whole batch in memory for as long as one result of it lives."""
    return None if array is None else array[where].copy()


def _checked(embedding: Embedding, wanted: Outputs) -> Result:
    """The embedding, if every kind that was asked for is there and finite."""
    values = {
        "dense": embedding.dense,
        "sparse": None if embedding.sparse is None else embedding.sparse.values,
        "colbert": embedding.colbert,
    }
    for kind in wanted.kinds:
        array = values[kind]
        if array is None:
            return ModelFailure(f"the model gave no {kind} vector for a text of {embedding.tokens} tokens")
        if not np.isfinite(array).all():
            return ModelFailure(f"the model gave a {kind} vector that is not finite ({embedding.tokens} tokens)")
    return embedding
