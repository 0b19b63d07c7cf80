"""Vectors of texts for frameworks, which have no place for a text without a vector."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

from bge_m3_qdrant_client.answers import EmbedAnswer, SparseAnswer, TextAnswer
from bge_m3_qdrant_client.async_client import AsyncClient
from bge_m3_qdrant_client.errors import UnexpectedAnswer, worker_error
from bge_m3_qdrant_client.kept_vectors import KeptVectors
from bge_m3_qdrant_client.options import EmbedOptions
from bge_m3_qdrant_client.sync_client import Client

T = TypeVar("T")
Kind = Literal["dense", "sparse"]


class TextVectors:
    """Dense and sparse vectors of texts.

    Args:
        client: the client that requests them.
        async_client: the client of the methods that are awaited; without one they run `client` in a thread.
        kept: where the sparse vectors of texts are kept whose dense ones are requested, so that one request serves
            both; None requests each kind for itself.

    Every method raises `ClientError`. For a text that the model cannot encode the error names its index.
    """

    def __init__(
        self, client: Client, async_client: AsyncClient | None = None, kept: KeptVectors | None = None
    ) -> None:
        self._client = client
        self._async_client = async_client
        self._kept = kept

    def dense(self, texts: Iterable[str], *, is_passage: bool) -> list[list[float]]:
        """The dense vectors of texts.

        Args:
            texts: the texts, or one text.
            is_passage: whether they are passages, or else queries.
        """
        texts = _listed(texts)
        options = embed_options(self._with_dense(), is_passage=is_passage)
        return self._dense(texts, self._client.embed(texts, **options), is_passage=is_passage)

    async def adense(self, texts: Iterable[str], *, is_passage: bool) -> list[list[float]]:
        """See `dense`."""
        if self._async_client is None:
            return await asyncio.to_thread(self.dense, texts, is_passage=is_passage)
        texts = _listed(texts)
        options = embed_options(self._with_dense(), is_passage=is_passage)
        return self._dense(texts, await self._async_client.embed(texts, **options), is_passage=is_passage)

    def sparse(self, texts: Iterable[str], *, is_passage: bool) -> list[SparseAnswer]:
        """The sparse vectors of texts.

        Args:
            texts: the texts, or one text.
            is_passage: whether they are passages, or else queries.
        """
        texts = _listed(texts)
        vectors, missing = self._taken(texts, is_passage=is_passage)
        if missing:
            options = embed_options(["sparse"], is_passage=is_passage)
            _fill(vectors, missing, self._client.embed([texts[index] for index in missing], **options))
        return [vector for vector in vectors if vector is not None]

    async def asparse(self, texts: Iterable[str], *, is_passage: bool) -> list[SparseAnswer]:
        """See `sparse`."""
        if self._async_client is None:
            return await asyncio.to_thread(self.sparse, texts, is_passage=is_passage)
        texts = _listed(texts)
        vectors, missing = self._taken(texts, is_passage=is_passage)
        if missing:
            options = embed_options(["sparse"], is_passage=is_passage)
            _fill(vectors, missing, await self._async_client.embed([texts[index] for index in missing], **options))
        return [vector for vector in vectors if vector is not None]

    def _with_dense(self) -> list[Kind]:
        return ["dense"] if self._kept is None else ["dense", "sparse"]

    def _dense(self, texts: Sequence[str], answer: EmbedAnswer, *, is_passage: bool) -> list[list[float]]:
        dense = dense_of(answer.results)
        if self._kept is not None:
            self._kept.put(texts, sparse_of(answer.results), is_passage=is_passage)
        return dense

    def _taken(self, texts: Sequence[str], *, is_passage: bool) -> tuple[list[SparseAnswer | None], list[int]]:
        vectors: list[SparseAnswer | None] = [None] * len(texts)
        if self._kept is not None:
            vectors = self._kept.take(texts, is_passage=is_passage)
        return vectors, [index for index, vector in enumerate(vectors) if vector is None]


def embed_options(kinds: list[Kind], *, is_passage: bool) -> EmbedOptions:
    """The options of a request for these kinds of vectors, without the texts in its answer.

    Args:
        kinds: the kinds.
        is_passage: whether the texts are passages, or else queries.
    """
    return {"vectors": kinds, "is_passage": is_passage, "include_text": False}


def dense_of(results: Sequence[TextAnswer], name: str = "texts") -> list[list[float]]:
    """The dense vectors of results.

    Args:
        results: the result of each text.
        name: what the texts are, for the message of an error.

    Raises:
        ClientError: a text has no vector; the message names its index.
    """
    check(results, range(len(results)), name)
    return [_given(result.dense, index, name).tolist() for index, result in enumerate(results)]


def sparse_of(results: Sequence[TextAnswer], name: str = "texts") -> list[SparseAnswer]:
    """The sparse vectors of results, as `dense_of`."""
    check(results, range(len(results)), name)
    return [_given(result.sparse, index, name) for index, result in enumerate(results)]


def check(results: Sequence[TextAnswer], indices: Sequence[int], name: str) -> None:
    """Check that all texts were embedded.

    Args:
        results: the results.
        indices: the index of the text of each.
        name: what the texts are.

    Raises:
        WorkerError: one was not; its class is that of the error's code, and `details` has the `index`.
    """
    for index, result in zip(indices, results, strict=True):
        if result.error is not None:
            block: dict[str, Any] = {
                "error": f"{name}[{index}] cannot be embedded: {result.error}",
                "error_code": result.error_code or "internal",
                "retryable": result.retryable,
                "details": {**(result.details or {}), "index": index},
            }
            raise worker_error(block)


def _fill(vectors: list[SparseAnswer | None], missing: Sequence[int], answer: EmbedAnswer) -> None:
    check(answer.results, missing, "texts")
    for index, result in zip(missing, answer.results, strict=True):
        vectors[index] = _given(result.sparse, index, "texts")


def _given(vector: T | None, index: int, name: str) -> T:
    if vector is None:
        raise UnexpectedAnswer(f"the answer lacks a vector of {name}[{index}]")
    return vector


def _listed(texts: Iterable[str]) -> list[str]:
    """The texts as a list, since they are read twice; one text is that of itself and not its characters."""
    return [texts] if isinstance(texts, str) else list(texts)
