"""Texts to vectors: the tokenizer, the pool and the engines of one model, as one object."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from embedder.batching import Priority
from embedder.checkpoint import EncoderConfig, locate
from embedder.chunking import Chunk, Chunker
from embedder.engine import Engine
from embedder.errors import ConfigurationError, InvalidRequest
from embedder.forward import Result
from embedder.pool import ModelPool, Stream, Watch
from embedder.stages import stage
from embedder.tokenizer import EncodedText, PlacedText, Tokenizer
from embedder.vectors import Outputs

log = logging.getLogger(__name__)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What to load and how to run it; each attribute is the setting of the same name.

    Attributes:
        model_id: `mini`, a directory, or a hub name.
        revision: commit of a hub model; None for the pinned one.
        engine: `packed` or `flagembedding`.
        dtype: `auto`, `float32`, `bfloat16`, `float16` or `int8`.
        device: a device, a comma list, or None to choose.
        lanes: threads per GPU; a CPU has one.
        token_budget: tokens per batch; None to measure.
        queue_tokens: most tokens waiting.
    """

    model_id: str
    revision: str | None = None
    engine: Literal["packed", "flagembedding"] = "packed"
    dtype: str = "auto"
    device: str | None = None
    lanes: int = 4
    token_budget: int | None = None
    queue_tokens: int = 2_000_000


class Embedder:
    """One loaded model. Usable from any thread and any event loop."""

    def __init__(self, tokenizer: Tokenizer, engines: Sequence[Engine], pool: ModelPool) -> None:
        self._tokenizer = tokenizer
        self._chunker = Chunker(tokenizer)
        self._engines = engines
        self._pool = pool

    @classmethod
    def load(cls, options: ModelOptions) -> Embedder:
        """Find and read the checkpoint, place it on its devices and warm it. Blocks for seconds.

        Raises:
            ConfigurationError: the options cannot work on this machine.
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
        checkpoint = locate(options.model_id, options.revision)
        located = time.perf_counter()
        from embedder.calibration import calibrate, warm
        from embedder.devices import choose_devices, choose_dtype

        imported = time.perf_counter()
        devices = choose_devices(options.device)
        tokenizer = Tokenizer(checkpoint)
        rows = EncoderConfig.read(checkpoint).vocabulary
        if tokenizer.vocabulary_size > rows:
            raise ConfigurationError(
                f"MODEL_ID: tokenizer.json has {tokenizer.vocabulary_size} tokens, the model has {rows}"
            )
        chosen_types = [choose_dtype(options.dtype, device, engine=options.engine) for device in devices]
        if len(set(chosen_types)) > 1:
            log.warning("devices compute in different types (%s), so vectors differ a little", ", ".join(chosen_types))
        typed = time.perf_counter()
        engines = [
            _engine(options.engine, checkpoint, device, dtype, tokenizer)
            for device, dtype in zip(devices, chosen_types, strict=True)
        ]
        loaded = time.perf_counter()
        for engine in engines:
            warm(engine)
        warmed = time.perf_counter()
        budget = options.token_budget or min(
            calibrate(engine, batches=2 * options.lanes - 1)  # torch keeps memory per stream, and a lane has two
            for engine in engines
        )
        log.info(
            "model ready: %s engine, %s, %s, %d tokens per batch; "
            "seconds: checkpoint %.2f, torch %.2f, type %.2f, weights %.2f, warm-up %.2f, budget %.2f",
            options.engine,
            " + ".join(engine.dtype for engine in engines),
            " + ".join(devices),
            budget,
            located - started,
            imported - located,
            typed - imported,
            loaded - typed,
            warmed - loaded,
            time.perf_counter() - warmed,
        )
        pool = ModelPool(engines, lanes=options.lanes, token_budget=budget, queue_tokens=options.queue_tokens)
        return cls(tokenizer, engines, pool)

    async def embed(
        self,
        texts: Sequence[str],
        outputs: Outputs,
        *,
        max_length: int,
        priority: Priority,
        batch_size: int = 0,
    ) -> list[Result]:
        """One result per text, in order: its embedding, or why the model could not make one.

        Cancelling drops the texts that still wait.

        Args:
            texts: empty texts are valid.
            outputs: the vectors to compute.
            max_length: tokens, special tokens included; longer texts are cut and say so.
            priority: queries go before passages.
            batch_size: most of these texts in one batch; 0 leaves it to the token budget.

        Raises:
            InvalidRequest: the texts are more than the queue can ever hold, or one is no valid Unicode.
            Overloaded: the queue has no room now.
        """
        encoded = await asyncio.to_thread(self.tokenize, texts, max_length, at_once=True)
        return await self.embed_tokens(encoded, outputs, priority=priority, batch_size=batch_size)

    async def embed_tokens(
        self, texts: Sequence[EncodedText], outputs: Outputs, *, priority: Priority, batch_size: int = 0
    ) -> list[Result]:
        """As `embed`, of texts that are tokenized."""
        with stage("embed"):
            return await asyncio.wrap_future(self._pool.submit(texts, outputs, priority, batch_size=batch_size))

    def tokenize(self, texts: Sequence[str], max_length: int, *, at_once: bool = False) -> list[EncodedText]:
        """The tokens of each text, cut to `max_length`. Blocks for about a second per 5 MB.

        Args:
            texts: empty texts are valid.
            max_length: tokens, special tokens included.
            at_once: whether all are going to wait for the model together. More than its queue can ever hold are
                then refused here, before the rest is tokenized.

        Raises:
            InvalidRequest: `max_length` is not from 3 to the model's, a text is no valid Unicode, or the texts
                are too many to wait at once.
        """
        with stage("tokenize"):
            return self._within_limits(self._queueable if at_once else self._tokenizer.encode, texts, max_length)

    def _queueable(self, texts: Sequence[str], max_length: int) -> list[EncodedText]:
        found: list[EncodedText] = []
        tokens = 0
        for portion in self._tokenizer.portions(texts, max_length):
            found += portion
            tokens += sum(len(text) for text in portion)
            if tokens > (most := self._pool.queue_tokens) and len(found) < len(texts):
                raise InvalidRequest(
                    f"the first {len(found)} of {len(texts)} have {tokens} tokens, "
                    f"more than the queue holds (QUEUE_TOKENS={most}); split the job"
                )
        return found

    def place(self, texts: Sequence[str], max_length: int) -> list[PlacedText]:
        """As `tokenize`, with the place of each token in its text. Blocks for longer than that."""
        return self._within_limits(self._tokenizer.place, texts, max_length)

    def word(self, token_id: int) -> str:
        """What a person is shown of a token that has no place in a text."""
        return self._tokenizer.word(token_id)

    def split(self, text: str, *, max_tokens: int, overlap: int) -> list[Chunk]:
        """Where to cut a long text: see `Chunker.split`. Blocks."""
        return self._chunker.split(text, max_tokens=max_tokens, overlap=overlap)

    def stream(
        self,
        texts: Sequence[EncodedText],
        outputs: Outputs,
        deliver: Callable[[int, Result], None],
        *,
        priority: Priority,
        batch_size: int = 0,
    ) -> Stream:
        """As `embed`, of tokenized texts, each result handed over as it comes: see `ModelPool.stream`.

        Only so many texts of all streams are ahead of their release that the model stays busy and their vectors
        fit into memory.
        """
        return self._pool.stream(texts, outputs, priority, deliver, batch_size=batch_size)

    def _within_limits(
        self, call: Callable[[Sequence[str], int], list[T]], texts: Sequence[str], max_length: int
    ) -> list[T]:
        if not 3 <= max_length <= self.max_length:
            raise InvalidRequest(f"maxLength must be from 3 to the model's {self.max_length}, got {max_length}")
        try:
            return call(texts, max_length)
        except UnicodeEncodeError as error:
            raise InvalidRequest("a text is not valid Unicode (a lone surrogate)") from error

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
    def label(self) -> str:
        """Engine, type and devices, for a person: `packed, bfloat16, cpu`."""
        first = self._engines[0]
        return f"{first.name}, {first.dtype}, {' + '.join(engine.device for engine in self._engines)}"

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call this, from a lane's thread, when no device is left that computes."""
        self._pool.when_lost(callback)

    def watch(self, callback: Watch) -> None:
        """Call this, from a lane's thread, after every batch: see `embedder.pool.Watch`."""
        self._pool.watch(callback)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for the model."""
        return self._pool.waiting_tokens

    def encoded(self, ids: Sequence[int]) -> EncodedText:
        """A text that its caller has tokenized: see `Tokenizer.wrapped`."""
        return self._tokenizer.wrapped(ids)

    def close(self) -> None:
        """Finish what was accepted, then stop. Blocks until the lanes have stopped."""
        self._pool.close()


def _fulfil(future: Future[Embedder], load: Callable[[ModelOptions], Embedder], options: ModelOptions) -> None:
    try:
        future.set_result(load(options))
    except BaseException as error:  # noqa: BLE001 - whoever waits for the future raises it
        future.set_exception(error)


def _engine(name: str, checkpoint: Path, device: str, dtype: str, tokenizer: Tokenizer) -> Engine:
    if name == "flagembedding":
        from embedder.reference import ReferenceEngine

        return ReferenceEngine(checkpoint, device=device, dtype=dtype, dropped_ids=tokenizer.dropped_ids)
    from embedder.encoder import PackedEngine

    return PackedEngine(checkpoint, device=device, dtype=dtype, dropped_ids=tokenizer.dropped_ids)
