"""Texts to vectors: the tokenizer, the pool and the engines of one model, as one object."""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final, Literal, TypeVar

from embedder.checkpoint.config import MAX_LENGTH_MIN, EncoderConfig
from embedder.checkpoint.find import find_checkpoint, revision_of
from embedder.checkpoint.readahead import read_ahead
from embedder.chunking import Chunk, Chunker
from embedder.engines.engine import Engine
from embedder.errors import ConfigurationError, InvalidRequest
from embedder.frozen_imports import frozen_imports
from embedder.scheduling.delivery import delivered
from embedder.scheduling.gathering import Gatherings
from embedder.scheduling.jobs import GrowingJob, ResultObserver, ResultStream
from embedder.scheduling.pool import ModelPool, Observer
from embedder.scheduling.runner import Result
from embedder.scheduling.scheduler import Priority
from embedder.threads import text_threads
from embedder.timings import timed
from embedder.tokenizer import EncodedText, PlacedText, Tokenizer, Vocabulary, check_unicode
from embedder.vectors import Outputs

log = logging.getLogger(__name__)

T = TypeVar("T")

QUICK_MAX_CHARACTERS: Final = 512
"""Characters that are tokenized in 0.1 ms: less than a change of threads takes where the event loop is busy."""

QUICK_MAX_TEXTS: Final = 8
"""The same for the number of texts."""

_TEXT_MIN_TOKENS: Final = 2
"""Tokens of an empty text: `<s>` and `</s>`."""

_FIRST_PORTION_CHARACTERS: Final = 32_768
"""Characters of the texts that the model gets first of a large request: tokenized in 4 ms on two cores."""


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The model to load and its options; each attribute is a setting of the service.

    Attributes:
        model_id: `mini`, a directory, or a hub name.
        revision: commit of a hub model; None for the pinned one.
        engine: `packed` or `flagembedding`.
        dtype: `auto`, `float32`, `bfloat16`, `float16`, `int8` or `float8`.
        device: a device, a comma list, or None to choose.
        batches_per_gpu: most batches under way on each GPU (`MAX_MODELS`).
        token_budget: tokens per batch; None to measure.
        queue_tokens: most tokens waiting.
    """

    model_id: str
    revision: str | None = None
    engine: Literal["packed", "flagembedding"] = "packed"
    dtype: str = "auto"
    device: str | None = None
    batches_per_gpu: int = 4
    token_budget: int | None = None
    queue_tokens: int = 2_000_000


class Embedder:
    """One loaded model. Usable from any thread and any event loop.

    Args:
        tokenizer: of the checkpoint.
        engines: one per device, with the weights of the checkpoint.
        pool: runs the engines.
        revision: revision of the checkpoint; see `revision_of`.

    Attributes:
        revision: revision of the checkpoint; None if unknown.
    """

    def __init__(
        self, tokenizer: Tokenizer, engines: Sequence[Engine], pool: ModelPool, revision: str | None = None
    ) -> None:
        self.revision = revision
        self._tokenizer = tokenizer
        self._chunker = Chunker(tokenizer)
        self._gatherings = Gatherings(tokenizer.encode)
        self._engines = engines
        self._pool = pool

    @classmethod
    def load(cls, options: ModelOptions) -> Embedder:
        """Find and read the checkpoint, place it on its devices and warm it. Blocks for seconds.

        The first call exempts the objects that the process has by then, torch's modules above all, from the garbage
        collector (`gc.freeze`): there are 180 000 of them, and a full collection stopped every thread for 0.1 to 0.2 s.

        Raises:
            ConfigurationError: the options cannot work on this machine, or the checkpoint is missing or damaged.
        """
        # In a thread that ends: OpenMP keeps workers for each thread that ever computed, and with more of them
        # than cores they stop spinning between two products. That makes a query more than twice as slow.
        loaded: Future[Embedder] = Future()
        thread = threading.Thread(target=_fulfil, args=(loaded, cls._load, options), name="load", daemon=True)
        thread.start()
        embedder = loaded.result()
        thread.join()
        return embedder

    @classmethod
    def _load(cls, options: ModelOptions) -> Embedder:
        started = time.perf_counter()
        checkpoint = find_checkpoint(options.model_id, options.revision)
        found = time.perf_counter()
        read_ahead(checkpoint, with_table=options.device != "cpu")
        with frozen_imports():
            from embedder.engines.calibration import calibrate
            from embedder.engines.devices import choose_devices, choose_dtype
        imported = time.perf_counter()
        devices = choose_devices(options.device)
        tokenizer = Tokenizer(checkpoint)
        rows = EncoderConfig.read(checkpoint).vocabulary
        if tokenizer.vocabulary_size > rows:
            raise ConfigurationError(
                f"MODEL_ID: tokenizer.json has {tokenizer.vocabulary_size} tokens, the model has {rows}"
            )
        tokenized = time.perf_counter()
        dtypes = [choose_dtype(options.dtype, device, engine=options.engine) for device in devices]
        if len(set(dtypes)) > 1:
            log.warning("devices compute in different types (%s), so vectors differ a little", ", ".join(dtypes))
        typed = time.perf_counter()
        engines = [
            _load_engine(options.engine, checkpoint, device, dtype, tokenizer)
            for device, dtype in zip(devices, dtypes, strict=True)
        ]
        loaded = time.perf_counter()
        for engine in engines:
            engine.warm()
        warmed = time.perf_counter()
        budget = options.token_budget or min(
            calibrate(engine, batches=2)  # on a GPU one of queries and one of passages may be computed together
            for engine in engines
        )
        measured = time.perf_counter()
        for engine in engines:
            engine.prepare(budget)
        log.info(
            "model ready: %s engine, %s, %s, %d tokens per batch; "
            "seconds: checkpoint %.2f, torch %.2f, tokenizer %.2f, type %.2f, weights %.2f, warm-up %.2f, budget %.2f, "
            "graphs %.2f",
            options.engine,
            " + ".join(engine.dtype for engine in engines),
            " + ".join(devices),
            budget,
            found - started,
            imported - found,
            tokenized - imported,
            typed - tokenized,
            loaded - typed,
            warmed - loaded,
            measured - warmed,
            time.perf_counter() - measured,
        )
        pool = ModelPool(
            engines,
            batches_per_gpu=options.batches_per_gpu,
            token_budget=budget,
            queue_tokens=options.queue_tokens,
        )
        return cls(tokenizer, engines, pool, revision_of(checkpoint))

    async def embed(
        self,
        texts: Sequence[str],
        outputs: Outputs,
        *,
        max_length: int,
        priority: Priority,
        batch_size: int = 0,
        observer: ResultObserver | None = None,
    ) -> list[Result]:
        """One result per text, in order: its embedding, or why the model could not make one.

        Cancelling drops the texts that still wait.

        Args:
            texts: empty texts are valid.
            outputs: the vectors to compute.
            max_length: tokens, special tokens included; longer texts are cut and say so.
            priority: queries go before passages.
            batch_size: most of these texts in one batch; 0 leaves it to the token budget.
            observer: called with results, each with the index of its text, as soon as they are there, from a worker
                thread. It must not raise, and should not block.

        Raises:
            InvalidRequest: `max_length` is out of range, a text is not valid Unicode, or the texts are more than the
                queue can ever hold.
            Overloaded: the queue has no room now.
            Cancelled: the embedder is closed.
            DeviceLost: no device is left that computes.
        """
        if is_quick(texts):
            gathering = self._gatherings.here()
            gathering.callers += 1
            try:
                with timed("tokenize"):
                    self._check_limit(max_length)
                    with _unicode_checked():
                        check_unicode(texts)
                    encoded = await gathering.encoded(texts, max_length)
                return await self.embed_tokens(
                    encoded, outputs, priority=priority, batch_size=batch_size, observer=observer
                )
            finally:
                gathering.callers -= 1
        elif self.overlaps(texts, max_length):
            expected = sum(most_tokens(texts, max_length))
            job = self._pool.grow(outputs, priority, expected=expected, batch_size=batch_size, observer=observer)
            try:
                await self._in_thread(texts, lambda: self._feed(job, texts, max_length))
                with timed("embed"):
                    return await delivered(job.future)
            finally:
                job.future.cancel()  # without effect on a future that is done
        else:
            encoded = await self._in_thread(texts, lambda: self.tokenize(texts, max_length, at_once=True))
        return await self.embed_tokens(encoded, outputs, priority=priority, batch_size=batch_size, observer=observer)

    def overlaps(self, texts: Sequence[str], max_length: int) -> bool:
        """Whether `embed` has the model compute the first of these texts while it tokenizes the others.

        So it does on a GPU, if the queue has room for as many tokens as they may have, and keeps it with the first
        portion: what is going to be refused is refused before any of it is computed. On a CPU tokenizer and model would
        compete for the same cores.
        """
        if is_quick(texts) or any(engine.device == "cpu" for engine in self._engines):
            return False
        return sum(most_tokens(texts, max_length)) <= self._pool.free_tokens

    async def embed_tokens(
        self,
        texts: Sequence[EncodedText],
        outputs: Outputs,
        *,
        priority: Priority,
        batch_size: int = 0,
        observer: ResultObserver | None = None,
    ) -> list[Result]:
        """One result per tokenized text, in order; arguments and errors are those of `embed`."""
        with timed("embed"):
            return await delivered(
                self._pool.submit(texts, outputs, priority, batch_size=batch_size, observer=observer)
            )

    def stream(
        self, texts: Sequence[EncodedText], outputs: Outputs, *, priority: Priority, batch_size: int = 0
    ) -> ResultStream:
        """The results of tokenized texts, pulled portion by portion while the next ones are computed.

            with embedder.stream(texts, outputs, priority=Priority.PASSAGE) as stream:
                for portion in stream:  # blocks until a result is ready
                    for index, result in portion: ...
                    stream.release([index for index, _ in portion])

        The texts are queued by the call, and computed once the first portion is asked for. Only so many tokens of
        all streams (`window`) are computed and not yet released that the model stays busy and their vectors fit into
        memory. See `ResultStream`.

        Args:
            texts: in any number; a stream of none ends immediately.
            outputs: the vectors to compute.
            priority: queries go before passages.
            batch_size: most of these texts in one batch; 0 leaves it to the token budget.

        Raises:
            InvalidRequest: the texts are more than the queue can ever hold.
            Overloaded: the queue has no room now.
            Cancelled: the embedder is closed.
            DeviceLost: no device is left that computes.
        """
        return self._pool.stream(texts, outputs, priority, batch_size=batch_size)

    def tokenize(self, texts: Sequence[str], max_length: int, *, at_once: bool = False) -> list[EncodedText]:
        """The tokens of each text, cut to `max_length`. Blocks for about a second per 5 MB.

        Args:
            texts: empty texts are valid.
            max_length: tokens, special tokens included.
            at_once: whether all texts are going to wait for the model together. More than its queue can ever hold are
                then refused here, before the rest is tokenized; and all of them, if it has no room for texts of 2
                tokens each now.

        Raises:
            InvalidRequest: `max_length` is not from 3 to the model's limit, a text is not valid Unicode, or the texts
                are too many to wait together.
            Overloaded: the queue has no room now, however short the texts are.
            Cancelled: nobody waits for the texts any more; see `cancellation.check_cancelled`.
        """
        with timed("tokenize"):
            return self._within_limits(self._queueable if at_once else self._tokenizer.encode, texts, max_length)

    def _feed(self, job: GrowingJob, texts: Sequence[str], max_length: int) -> None:
        """Tokenize the texts of a job and queue each portion as soon as it is there."""

        def fed(texts: Sequence[str], max_length: int) -> list[None]:
            left = len(texts)
            for portion in self._tokenizer.portions(texts, max_length, first_characters=_FIRST_PORTION_CHARACTERS):
                left -= len(portion)
                job.extend(portion, last=not left)
            return []

        with timed("tokenize"):
            self._within_limits(fed, texts, max_length)

    def _queueable(self, texts: Sequence[str], max_length: int) -> list[EncodedText]:
        self._check_room(len(texts))
        encoded: list[EncodedText] = []
        tokens = 0
        for portion in self._tokenizer.portions(texts, max_length):
            encoded += portion
            tokens += sum(len(text) for text in portion)
            if tokens > (most := self._pool.queue_tokens) and len(encoded) < len(texts):
                fitting = bisect_right(list(accumulate(map(len, encoded))), most)
                raise InvalidRequest(
                    f"the first {len(encoded)} of {len(texts)} have {tokens} tokens, "
                    f"more than the queue holds (QUEUE_TOKENS={most}); send at most {fitting} at once"
                )
        return encoded

    def _check_room(self, texts: int) -> None:
        """Refuse texts that cannot wait for the model, before they are tokenized: each has at least 2 tokens."""
        least = _TEXT_MIN_TOKENS * texts
        if least > (most := self._pool.queue_tokens):
            raise InvalidRequest(
                f"the {texts} texts have at least {least} tokens, more than the queue holds (QUEUE_TOKENS={most}); "
                f"send at most {most // _TEXT_MIN_TOKENS} at once"
            )
        self._pool.check_room(least)

    def place(self, texts: Sequence[str], max_length: int) -> list[PlacedText]:
        """The tokens that `tokenize` gives, with the span of each in its text. Blocks for longer than `tokenize`.

        Raises:
            InvalidRequest: `max_length` is not from 3 to the model's limit, or a text is not valid Unicode.
        """
        return self._within_limits(self._tokenizer.place, texts, max_length)

    def word(self, token_id: int) -> str:
        """The piece of a token for a person, where no span of a text shows it."""
        return self._tokenizer.word(token_id)

    def split(self, text: str, *, max_tokens: int, overlap: int) -> list[Chunk]:
        """The chunks of a long text; see `Chunker.split`. Blocks.

        Raises:
            InvalidRequest: `max_tokens` or `overlap` is out of range, or the text is not valid Unicode.
        """
        with _unicode_checked():
            return self._chunker.split(text, max_tokens=max_tokens, overlap=overlap)

    def encoded(self, ids: Sequence[int]) -> EncodedText:
        """A text that its caller has tokenized; see `Tokenizer.wrapped`.

        Raises:
            ValueError: an id is not in the vocabulary; the message gives its index and the size of the vocabulary.
        """
        return self._tokenizer.wrapped(ids)

    async def _in_thread(self, texts: Sequence[str], call: Callable[[], T]) -> T:
        characters = sum(map(len, texts))
        return await text_threads(characters).run(call, characters=characters)

    def _within_limits(
        self, call: Callable[[Sequence[str], int], list[T]], texts: Sequence[str], max_length: int
    ) -> list[T]:
        self._check_limit(max_length)
        with _unicode_checked():
            return call(texts, max_length)

    def _check_limit(self, max_length: int) -> None:
        if not MAX_LENGTH_MIN <= max_length <= self.max_length:
            raise InvalidRequest(
                f"maxLength must be from {MAX_LENGTH_MIN} to the model's {self.max_length}, got {max_length}"
            )

    @property
    def window(self) -> int:
        """Tokens that keep the model busy, that its queue can hold, and whose vectors fit into memory."""
        return min(self._pool.window, self._pool.queue_tokens)

    @property
    def max_length(self) -> int:
        """The model's limit in tokens, special tokens included."""
        return self._engines[0].max_length

    @property
    def hidden_size(self) -> int:
        """Size of a dense vector."""
        return self._engines[0].hidden_size

    @property
    def colbert_size(self) -> int:
        """Size of a ColBERT row."""
        return self._engines[0].colbert_size

    @property
    def vocabulary(self) -> Vocabulary:
        """What token ids mean."""
        return self._tokenizer.vocabulary

    @property
    def dtype(self) -> str:
        """Type of the matrix products on the first device, such as `float16`."""
        return self._engines[0].dtype

    @property
    def token_budget(self) -> int:
        """Maximum tokens of a batch."""
        return self._pool.token_budget

    @property
    def label(self) -> str:
        """Engine, type and devices, for a person: `packed, bfloat16, cpu`."""
        first = self._engines[0]
        return f"{first.name}, {first.dtype}, {' + '.join(engine.device for engine in self._engines)}"

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for the model."""
        return self._pool.waiting_tokens

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call this once when no device is left that computes, immediately or from a thread of the pool."""
        self._pool.when_lost(callback)

    def observe(self, observer: Observer) -> None:
        """Call this with a `BatchReport` after every batch, from a thread of the pool. It must not raise."""
        self._pool.observe(observer)

    def close(self) -> None:
        """Finish what was accepted, then stop. Blocks until every open stream is consumed or cancelled."""
        self._pool.close()


def is_quick(texts: Sequence[str]) -> bool:
    """Whether these texts are tokenized so fast that an event loop should do it itself, without a thread."""
    return len(texts) <= QUICK_MAX_TEXTS and sum(map(len, texts)) <= QUICK_MAX_CHARACTERS


def most_tokens(texts: Sequence[str], max_length: int) -> list[int]:
    """More tokens than each of these texts has, but for characters that stand for several others (such as U+FDFA)."""
    return [min(len(text) + 2, max_length) for text in texts]


@contextmanager
def _unicode_checked() -> Iterator[None]:
    """Raise the tokenizer's refusal of a lone surrogate as the caller's mistake, without the text."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidRequest("a text is not valid Unicode (a lone surrogate)") from error


def _fulfil(future: Future[Embedder], load: Callable[[ModelOptions], Embedder], options: ModelOptions) -> None:
    try:
        future.set_result(load(options))
    except BaseException as error:  # noqa: BLE001 - whoever waits for the future raises it
        future.set_exception(error)


def _load_engine(name: str, checkpoint: Path, device: str, dtype: str, tokenizer: Tokenizer) -> Engine:
    if name == "flagembedding":
        from embedder.engines.flagembedding import FlagEmbeddingEngine

        return FlagEmbeddingEngine.load(checkpoint, device=device, dtype=dtype, dropped_ids=tokenizer.dropped_ids)
    from embedder.engines.packed import PackedEngine

    return PackedEngine.load(checkpoint, device=device, dtype=dtype, dropped_ids=tokenizer.dropped_ids)
