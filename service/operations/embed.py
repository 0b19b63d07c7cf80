"""The embed operation: texts to vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from embedder import (
    Embedder,
    Embedding,
    EncodedText,
    InvalidRequest,
    Outputs,
    Priority,
    Result,
    ResultObserver,
    WorkerError,
    is_quick,
    most_tokens,
    text_threads,
)
from service.memory_budget import MemoryBudget, Reservation
from service.operations.vector_memory import VectorMemory
from service.validation import invalid_field

Role = Literal["query", "passage", "either"]
"""The role of texts, which sets the limit on their length and their priority.

With `either`, a single text that is within the limit of queries has their priority; other texts have that of passages.
"""

QUICK_MAX_TOKEN_IDS: Final = 1024
"""Maximum token ids of a request that are validated in less time than a thread switch takes."""

_LIMIT_SETTINGS: Final[Mapping[Role, str]] = {
    "query": "QUERY_MAX_LENGTH",
    "passage": "PASSAGE_MAX_LENGTH",
    "either": "PASSAGE_MAX_LENGTH",
}
"""The setting that limits the length of texts of a role."""

Admit = Callable[[Sequence[int]], None]
"""Callback with the number of tokens of each text, before the model runs. An error that it raises ends the operation.

It may be called with upper bounds first. If it accepts these, it is not called again.
"""


@dataclass(frozen=True, slots=True)
class LengthLimits:
    """The default limits in tokens, special tokens included, beyond which texts are truncated.

    Attributes:
        query: limit of queries.
        passage: limit of passages.
    """

    query: int
    passage: int

    def of(self, role: Role) -> int:
        """The limit for texts of this role."""
        return self.query if role == "query" else self.passage


@dataclass(frozen=True, slots=True, eq=False)
class EmbedRequest:
    """Texts to embed, and the vectors to compute.

    Attributes:
        texts: the texts, at least one; empty with `token_ids`.
        token_ids: lists of token ids in the model's vocabulary, instead of texts.
        outputs: the vectors to compute, and the type of ColBERT rows.
        role: the role of the texts; see `Role`.
        max_length: tokens beyond which a text is truncated; None for the limit of the role.
        batch_size: maximum number of these texts in one batch of the model; 0 for no limit but the token budget.
        refuse_truncation: whether truncation of a text is an error.
        length_remedy: advice for a caller whose text is too long, at the end of that error.
        label: name of the list of texts in errors.
        is_single: whether the caller gave one text by itself rather than in a list, so that `label` is its name.

    Raises:
        ValueError: there are neither texts nor token ids, or both, or a number is out of range.
    """

    texts: Sequence[str] = ()
    token_ids: Sequence[Sequence[int]] = ()
    outputs: Outputs = field(default_factory=Outputs)
    role: Role = "query"
    max_length: int | None = None
    batch_size: int = 0
    refuse_truncation: bool = False
    length_remedy: str = "shorten it"
    label: str = "texts"
    is_single: bool = False

    def field(self, index: int) -> str:
        """The name of a text in errors."""
        return self.label if self.is_single else f"{self.label}[{index}]"

    def __post_init__(self) -> None:
        """Validate for callers in Python; requests in JSON are validated before, with better messages."""
        if bool(self.texts) == bool(self.token_ids):
            raise ValueError(
                f"either texts or token_ids must have items, got {len(self.texts)} and {len(self.token_ids)}"
            )
        check_numbers(self.max_length, batch_size=self.batch_size)


@dataclass(frozen=True, slots=True, eq=False)
class EmbedResult:
    """The results of all texts.

    Attributes:
        texts: an embedding or the model's failure for each text, in the order of the request.
    """

    texts: Sequence[Result]

    @property
    def embeddings(self) -> list[Embedding]:
        """The embeddings of the texts without a failure."""
        return [result for result in self.texts if isinstance(result, Embedding)]

    @property
    def tokens(self) -> int:
        """Number of tokens of all embedded texts."""
        return sum(embedding.tokens for embedding in self.embeddings)


def check_numbers(*max_lengths: int | None, batch_size: int = 0) -> None:
    """Validate the numbers of a request value.

    Args:
        max_lengths: limits in tokens; None for the limit of the role.
        batch_size: the batch size.

    Raises:
        ValueError: a limit is below 1, or the batch size is negative.
    """
    for length in max_lengths:
        if length is not None and length < 1:
            raise ValueError(f"a limit on the length of texts must be at least 1 token, got {length}")
    if batch_size < 0:
        raise ValueError(f"batch_size must be at least 0, got {batch_size}")


def admit_all(_tokens: Sequence[int]) -> None:
    """Accept texts of any number and length."""


class Embed:
    """The embed operation. Usable from any event loop.

    Args:
        embedder: the loaded model.
        limits: default limits on the lengths of texts.
        memory: the memory that requests may hold together.
    """

    def __init__(self, embedder: Embedder, limits: LengthLimits, *, memory: MemoryBudget) -> None:
        self._embedder = embedder
        self._limits = limits
        self._memory = memory
        self._vectors = VectorMemory(embedder.hidden_size, embedder.colbert_size)

    async def __call__(
        self, request: EmbedRequest, admit: Admit = admit_all, observer: ResultObserver | None = None
    ) -> EmbedResult:
        """Embed all texts together. The memory of their vectors is reserved before the model runs.

        Args:
            request: the texts.
            admit: callback with the lengths before the model runs.
            observer: callback with each batch of results and the indices of their texts; see `Embedder.embed`.

        Raises:
            InvalidRequest: a text is invalid or would be truncated against the request, or there are too many texts.
            Overloaded: the queue of the model is full, or the vectors do not fit into memory now.
        """
        with self._memory.joined() as held:
            return await self._embedded(request, admit, observer, held)

    async def _embedded(
        self, request: EmbedRequest, admit: Admit, observer: ResultObserver | None, held: Reservation
    ) -> EmbedResult:
        limit = request.max_length or self._limits.of(request.role)
        if self._overlaps(request, limit, admit, held):
            return EmbedResult(await self._embed_texts(request, limit, observer))
        quick = is_quick(request.texts) and sum(map(len, request.token_ids)) <= QUICK_MAX_TOKEN_IDS
        texts = self._tokenized(request, limit) if quick else await self._in_thread(request, limit)
        self._admit([len(text) for text in texts], request, admit, held)
        try:
            results = await self._embedder.embed_tokens(
                texts,
                request.outputs,
                priority=self._priority(request, texts),
                batch_size=request.batch_size,
                observer=observer,
            )
        except InvalidRequest as error:
            raise error.at(request.label) from None
        return EmbedResult(results)

    def _admit(self, tokens: Sequence[int], request: EmbedRequest, admit: Admit, held: Reservation) -> None:
        """Check texts with these numbers of tokens, and reserve the memory of their vectors."""
        before = held.size_bytes
        try:
            admit(tokens)
            held.grow(self._vectors.of(tokens, request.outputs))
        except WorkerError:
            held.shrink(held.size_bytes - before)
            raise

    def _overlaps(self, request: EmbedRequest, limit: int, admit: Admit, held: Reservation) -> bool:
        """Whether the model may start while texts are tokenized: only if no length that they can have is refused."""
        if request.token_ids or request.refuse_truncation or request.role == "either":
            return False
        if not self._embedder.overlaps(request.texts, limit):
            return False
        try:
            self._admit(most_tokens(request.texts, limit), request, admit, held)
        except WorkerError:
            return False  # only the real lengths can decide
        return True

    async def _embed_texts(self, request: EmbedRequest, limit: int, observer: ResultObserver | None) -> list[Result]:
        try:
            return await self._embedder.embed(
                request.texts,
                request.outputs,
                max_length=limit,
                priority=self._priority(request, ()),
                batch_size=request.batch_size,
                observer=observer,
            )
        except InvalidRequest as error:
            raise error.at(request.label) from None

    async def _in_thread(self, request: EmbedRequest, limit: int) -> list[EncodedText]:
        characters = sum(map(len, request.texts)) + sum(map(len, request.token_ids))
        return await text_threads(characters).run(lambda: self._tokenized(request, limit), characters=characters)

    def _tokenized(self, request: EmbedRequest, limit: int) -> list[EncodedText]:
        if request.token_ids:
            texts = [self._encoded(request.field(index), ids) for index, ids in enumerate(request.token_ids)]
            if not request.refuse_truncation:
                texts = [_truncated(text, limit) for text in texts]
        else:
            try:
                texts = self._embedder.tokenize(request.texts, limit, at_once=True)
            except InvalidRequest as error:
                raise error.at(request.label) from None
        if request.refuse_truncation:
            for index, text in enumerate(texts):
                check_length(request.field(index), text, limit, _LIMIT_SETTINGS[request.role], request.length_remedy)
        return texts

    def _encoded(self, field: str, ids: Sequence[int]) -> EncodedText:
        try:
            return self._embedder.encoded(ids)
        except ValueError as error:
            item, _, message = str(error).partition(" ")  # its index stands first
            raise invalid_field(f"{field}{item}", message) from None

    def _priority(self, request: EmbedRequest, texts: Sequence[EncodedText]) -> Priority:
        if request.role == "either":
            short = len(texts) == 1 and len(texts[0]) <= self._limits.query
            return Priority.QUERY if short else Priority.PASSAGE
        return Priority.QUERY if request.role == "query" else Priority.PASSAGE


def _truncated(text: EncodedText, limit: int) -> EncodedText:
    """The text with its first tokens and the special ones around them, within the limit."""
    if len(text) <= limit:
        return text
    return EncodedText(np.concatenate([text.ids[: limit - 1], text.ids[-1:]]), truncated=True)


def check_length(field: str, text: EncodedText, limit: int, setting: str, remedy: str = "shorten it") -> None:
    """Check that a text was not truncated.

    Args:
        field: name of the text in the error.
        text: the text, whose tokens are within the limit if it was tokenized here.
        limit: maximum tokens, special tokens included.
        setting: name of the setting that sets the limit.
        remedy: advice for the caller, at the end of the error.

    Raises:
        InvalidRequest: the text was truncated, or is longer than the limit.
    """
    if text.truncated or len(text) > limit:
        got = "more" if text.truncated else f"{len(text)} with special tokens"
        raise invalid_field(field, f"must have at most {limit} tokens ({setting}), got {got}; {remedy}")
