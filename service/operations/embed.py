"""Texts to vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from embedder import (
    Embedder,
    Embedding,
    EncodedText,
    FieldError,
    InvalidRequest,
    Outputs,
    Priority,
    Result,
    ResultObserver,
    WorkerError,
    is_quick,
    most_tokens,
)

Role = Literal["query", "passage", "either"]
"""What texts are: it decides the limit on their length, and whether they go before others. One text that is no longer
than a query may be counts as a query where the caller does not say (`either`); all others are passages there.
"""

QUICK_MAX_TOKEN_IDS: Final = 1024
"""Token ids of a request that are checked in less time than a change of threads takes."""

Admit = Callable[[Sequence[int]], None]
"""Called with the number of tokens of each text before the model runs; what it raises ends the operation.

Before that it may be called with numbers that are larger. If it accepts these, it is not called again.
"""


@dataclass(frozen=True, slots=True)
class LengthLimits:
    """Tokens after which a text is cut, special tokens included, unless a request sets its own limit.

    Attributes:
        query: for queries.
        passage: for passages.
    """

    query: int
    passage: int

    def of(self, role: Role) -> int:
        """The limit for texts of this role."""
        return self.query if role == "query" else self.passage


@dataclass(frozen=True, slots=True, eq=False)
class EmbedRequest:
    """Texts, and what to compute of them.

    Attributes:
        texts: the texts, at least one; empty where there are token ids.
        token_ids: in place of texts, the ids of their tokens in the model's vocabulary.
        outputs: the vectors to compute, and the type of ColBERT rows.
        role: see `Role`.
        max_length: tokens after which a text is cut; None for the limit of the role.
        batch_size: most of these texts in one batch of the model; 0 leaves it to the token budget.
        refuse_truncation: whether a text that would be cut is an error.
        label: what errors call the list of texts.

    Raises:
        ValueError: there are neither texts nor token ids, or both, or a number is out of its limits.
    """

    texts: Sequence[str] = ()
    token_ids: Sequence[Sequence[int]] = ()
    outputs: Outputs = field(default_factory=Outputs)
    role: Role = "query"
    max_length: int | None = None
    batch_size: int = 0
    refuse_truncation: bool = False
    label: str = "texts"

    def __post_init__(self) -> None:
        """Check what a caller in Python could break; the wire has checked it with better words."""
        if bool(self.texts) == bool(self.token_ids):
            raise ValueError("either texts or token_ids must have at least one item, and the other none")
        check_numbers(self.max_length, batch_size=self.batch_size)


@dataclass(frozen=True, slots=True, eq=False)
class EmbedResult:
    """What became of each text.

    Attributes:
        texts: in the order of the request, an embedding or why the model made none.
    """

    texts: Sequence[Result]

    @property
    def embeddings(self) -> list[Embedding]:
        """Those of the texts that were embedded."""
        return [result for result in self.texts if isinstance(result, Embedding)]

    @property
    def tokens(self) -> int:
        """Tokens of all texts that were embedded."""
        return sum(embedding.tokens for embedding in self.embeddings)


def check_numbers(*max_lengths: int | None, batch_size: int = 0) -> None:
    """Check the numbers of a request value.

    Args:
        max_lengths: limits in tokens; None where the limit of the role holds.
        batch_size: of a request value.

    Raises:
        ValueError: a limit is below 1, or the batch size is negative.
    """
    for length in max_lengths:
        if length is not None and length < 1:
            raise ValueError(f"a limit on the length of texts must be at least 1 token, got {length}")
    if batch_size < 0:
        raise ValueError(f"batch_size must be at least 0, got {batch_size}")


def admit_all(_tokens: Sequence[int]) -> None:
    """Admit texts of any number and length."""


class Embed:
    """The operation. Usable from any event loop.

    Args:
        embedder: the loaded model.
        limits: on the lengths of texts.
    """

    def __init__(self, embedder: Embedder, limits: LengthLimits) -> None:
        self._embedder = embedder
        self._limits = limits

    async def __call__(
        self, request: EmbedRequest, admit: Admit = admit_all, observer: ResultObserver | None = None
    ) -> EmbedResult:
        """Embed all texts together.

        Args:
            request: at least one text.
            admit: sees the lengths before the model runs.
            observer: sees each result, with the index of its text, before all are there; see `Embedder.embed`.

        Raises:
            InvalidRequest: a text is not valid, or would be cut and must not be, or there are too many.
            Overloaded: the queue of the model has no room now.
        """
        limit = request.max_length or self._limits.of(request.role)
        if self._overlaps(request, limit, admit):
            return EmbedResult(await self._embed_texts(request, limit, observer))
        quick = is_quick(request.texts) and sum(map(len, request.token_ids)) <= QUICK_MAX_TOKEN_IDS
        texts = self._tokenized(request, limit) if quick else await asyncio.to_thread(self._tokenized, request, limit)
        admit([len(text) for text in texts])
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

    def _overlaps(self, request: EmbedRequest, limit: int, admit: Admit) -> bool:
        """Whether the model may run while texts are tokenized: only if nothing that they turn out to be is refused."""
        if request.token_ids or request.refuse_truncation or request.role == "either":
            return False
        if not self._embedder.overlaps(request.texts, limit):
            return False
        try:
            admit(most_tokens(request.texts, limit))
        except WorkerError:
            return False  # their real lengths decide
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

    def _tokenized(self, request: EmbedRequest, limit: int) -> list[EncodedText]:
        if request.token_ids:
            texts = [self._framed(f"{request.label}[{index}]", ids) for index, ids in enumerate(request.token_ids)]
        else:
            try:
                texts = self._embedder.tokenize(request.texts, limit, at_once=True)
            except InvalidRequest as error:
                raise error.at(request.label) from None
        if request.refuse_truncation:
            for index, text in enumerate(texts):
                _refuse_truncated(f"{request.label}[{index}]", text, limit)
        return texts

    def _framed(self, field: str, ids: Sequence[int]) -> EncodedText:
        try:
            return self._embedder.encoded(ids)
        except ValueError as error:
            message = f"{field}{error}"
            raise InvalidRequest(message, fields=[FieldError(field, message)]) from None

    def _priority(self, request: EmbedRequest, texts: Sequence[EncodedText]) -> Priority:
        if request.role == "either":
            short = len(texts) == 1 and len(texts[0]) <= self._limits.query
            return Priority.QUERY if short else Priority.PASSAGE
        return Priority.QUERY if request.role == "query" else Priority.PASSAGE


def _refuse_truncated(field: str, text: EncodedText, limit: int) -> None:
    if text.truncated or len(text) > limit:
        got = "got more" if text.truncated else f"got {len(text)} with the special ones"
        raise InvalidRequest(f"must have at most {limit} tokens (PASSAGE_MAX_LENGTH), {got}").at(field)
