"""Haystack's components over a worker: embedders of texts and documents, dense and sparse in one, and a ranker.

from bge_m3_qdrant_client.haystack import BGEM3DocumentEmbedder

embedder = BGEM3DocumentEmbedder(url="http://localhost:8000")
store.write_documents(embedder.run(documents)["documents"])
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from typing_extensions import NotRequired, Self, TypedDict

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.dataclasses import SparseEmbedding
    from haystack.utils import Secret, deserialize_secrets_inplace
except ImportError as error:
    raise ImportError(f"{__name__} needs haystack-ai: pip install 'bge-m3-qdrant-client[haystack]'") from error

from bge_m3_qdrant_client.answers import EmbedAnswer, RerankAnswer, SparseAnswer
from bge_m3_qdrant_client.component_clients import ComponentClients
from bge_m3_qdrant_client.core import TIMEOUT_S
from bge_m3_qdrant_client.options import RerankOptions
from bge_m3_qdrant_client.text_vectors import Kind, dense_of, embed_options, sparse_of

__all__ = ["BGEM3DocumentEmbedder", "BGEM3Ranker", "BGEM3TextEmbedder"]

URL: Final = "http://localhost:8000"

API_KEY: Final = Secret.from_env_var("BGE_M3_API_KEY", strict=False)
"""The key of the worker, or no key if the variable is not set."""


class TextOutput(TypedDict):
    """What `BGEM3TextEmbedder` returns."""

    embedding: list[float]
    sparse_embedding: NotRequired[SparseEmbedding]
    meta: dict[str, Any]


class DocumentsOutput(TypedDict):
    """What `BGEM3DocumentEmbedder` returns."""

    documents: list[Document]
    meta: dict[str, Any]


class RankerOutput(TypedDict):
    """What `BGEM3Ranker` returns."""

    documents: list[Document]


class _WorkerComponent:
    """A component that calls a worker, with its parameters as values for a file of a pipeline.

    Components call its constructor by name: `@component` makes the class anew, and `super()` means the one before.
    """

    def __init__(
        self, url: str, api_key: Secret | None, runpod_endpoint_id: str | None, timeout: float, **parameters: Any
    ) -> None:
        self._api_key = api_key
        self._parameters = {"url": url, "runpod_endpoint_id": runpod_endpoint_id, "timeout": timeout, **parameters}
        self._clients = ComponentClients(
            url,
            api_key=lambda: api_key.resolve_value() if api_key else None,
            runpod_endpoint_id=runpod_endpoint_id,
            timeout=timeout,
        )

    def close(self) -> None:
        """Close the connections of `run`. A later `run` makes new ones."""
        self._clients.close()

    async def close_async(self) -> None:
        """Close the connections of `run_async`. A later `run_async` makes new ones."""
        await self._clients.aclose()

    def to_dict(self) -> dict[str, Any]:
        """The parameters, with the name of the key's variable in place of the key.

        Raises:
            ValueError: the key was given as a token, which must not be written to a file.
        """
        key = None if self._api_key is None else self._api_key.to_dict()
        return default_to_dict(self, **self._parameters, api_key=key)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The component of these parameters."""
        parameters = dict(data["init_parameters"])
        deserialize_secrets_inplace(parameters, keys=["api_key"])
        return default_from_dict(cls, {**data, "init_parameters": parameters})


@component
class BGEM3TextEmbedder(_WorkerComponent):
    """The dense and the sparse vector of a query, with one request.

    Args:
        url: the address of the worker.
        api_key: the key of the worker, or RunPod's with `runpod_endpoint_id`.
        runpod_endpoint_id: the id of an endpoint on RunPod, called in place of `url`.
        timeout: maximum seconds of a request, with its retries and waits.
        sparse: whether the sparse vector is computed too.

    Both methods raise `ClientError`.
    """

    def __init__(
        self,
        url: str = URL,
        api_key: Secret | None = API_KEY,
        runpod_endpoint_id: str | None = None,
        timeout: float = TIMEOUT_S,
        *,
        sparse: bool = True,
    ) -> None:
        _WorkerComponent.__init__(self, url, api_key, runpod_endpoint_id, timeout, sparse=sparse)
        self._kinds: list[Kind] = ["dense", "sparse"] if sparse else ["dense"]

    @component.output_types(embedding=list[float], sparse_embedding=SparseEmbedding, meta=dict[str, Any])
    def run(self, text: str) -> TextOutput:
        """Embed a text as a query.

        Args:
            text: the text.

        Returns:
            `embedding`, `sparse_embedding` unless `sparse` is false, and `meta` with `model` and `usage`.
        """
        return self._output(self._clients.blocking().embed([text], **embed_options(self._kinds, is_passage=False)))

    @component.output_types(embedding=list[float], sparse_embedding=SparseEmbedding, meta=dict[str, Any])
    async def run_async(self, text: str) -> TextOutput:
        """See `run`."""
        return self._output(await self._clients.awaited().embed([text], **embed_options(self._kinds, is_passage=False)))

    def _output(self, answer: EmbedAnswer) -> TextOutput:
        output: TextOutput = {"embedding": dense_of(answer.results)[0], "meta": _meta(answer)}
        if "sparse" in self._kinds:
            output["sparse_embedding"] = _sparse(sparse_of(answer.results)[0])
        return output


@component
class BGEM3DocumentEmbedder(_WorkerComponent):
    """The dense and the sparse vectors of documents, both with one request.

    Args:
        url: the address of the worker.
        api_key: the key of the worker, or RunPod's with `runpod_endpoint_id`.
        runpod_endpoint_id: the id of an endpoint on RunPod, called in place of `url`.
        timeout: maximum seconds of a request, with its retries and waits. Many documents have many requests.
        sparse: whether the sparse vectors are computed too, for a store with `use_sparse_embeddings`.
        meta_fields_to_embed: keys of the metadata whose values are embedded in front of the content.
        embedding_separator: what stands between these values and the content.

    Both methods raise `ClientError`. For a document that the model cannot encode the error names its index.
    """

    def __init__(
        self,
        url: str = URL,
        api_key: Secret | None = API_KEY,
        runpod_endpoint_id: str | None = None,
        timeout: float = TIMEOUT_S,
        *,
        sparse: bool = True,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        _WorkerComponent.__init__(
            self,
            url,
            api_key,
            runpod_endpoint_id,
            timeout,
            sparse=sparse,
            meta_fields_to_embed=meta_fields_to_embed,
            embedding_separator=embedding_separator,
        )
        self._kinds: list[Kind] = ["dense", "sparse"] if sparse else ["dense"]
        self._keys, self._separator = meta_fields_to_embed or [], embedding_separator

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> DocumentsOutput:
        """Embed documents as passages.

        Args:
            documents: the documents.

        Returns:
            `documents`, copies with `embedding` and `sparse_embedding`, and `meta` with `model` and `usage`.
        """
        texts = _texts(documents, self._keys, self._separator)
        return self._output(
            documents, self._clients.blocking().embed(texts, **embed_options(self._kinds, is_passage=True))
        )

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> DocumentsOutput:
        """See `run`."""
        texts = _texts(documents, self._keys, self._separator)
        return self._output(
            documents, await self._clients.awaited().embed(texts, **embed_options(self._kinds, is_passage=True))
        )

    def _output(self, documents: list[Document], answer: EmbedAnswer) -> DocumentsOutput:
        dense = dense_of(answer.results, "documents")
        embedded = [replace(document, embedding=vector) for document, vector in zip(documents, dense, strict=True)]
        if "sparse" in self._kinds:
            sparse = sparse_of(answer.results, "documents")
            embedded = [
                replace(document, sparse_embedding=_sparse(vector))
                for document, vector in zip(embedded, sparse, strict=True)
            ]
        return {"documents": embedded, "meta": _meta(answer)}


@component
class BGEM3Ranker(_WorkerComponent):
    """A ranker of documents by their relevance to a query, best first.

    The documents that it returns are copies whose score is the relevance, from 0 to 1.

    Args:
        url: the address of the worker.
        api_key: the key of the worker, or RunPod's with `runpod_endpoint_id`.
        runpod_endpoint_id: the id of an endpoint on RunPod, called in place of `url`.
        timeout: maximum seconds of a request, with its retries and waits.
        top_k: number of documents that are returned; None for all.
        weights: the weights of dense, sparse and ColBERT scores; None for those of the worker.
        max_tokens_per_doc: tokens beyond which a document is truncated; None for the worker's limit of passages.
        meta_fields_to_embed: keys of the metadata whose values are ranked in front of the content.
        embedding_separator: what stands between these values and the content.

    Both methods raise `ClientError`.
    """

    def __init__(
        self,
        url: str = URL,
        api_key: Secret | None = API_KEY,
        runpod_endpoint_id: str | None = None,
        timeout: float = TIMEOUT_S,
        *,
        top_k: int | None = None,
        weights: list[float] | None = None,
        max_tokens_per_doc: int | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        _WorkerComponent.__init__(
            self,
            url,
            api_key,
            runpod_endpoint_id,
            timeout,
            top_k=top_k,
            weights=weights,
            max_tokens_per_doc=max_tokens_per_doc,
            meta_fields_to_embed=meta_fields_to_embed,
            embedding_separator=embedding_separator,
        )
        self._options: RerankOptions = {"top_n": top_k, "weights": weights, "max_tokens_per_doc": max_tokens_per_doc}
        self._keys, self._separator = meta_fields_to_embed or [], embedding_separator

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> RankerOutput:
        """Rank documents.

        Args:
            query: the query.
            documents: the documents.
            top_k: number of documents that are returned; None for that of the component.

        Returns:
            `documents`, copies with their score.
        """
        if not documents:
            return {"documents": []}
        texts, options = _texts(documents, self._keys, self._separator), self._with(top_k)
        return _ranked(documents, self._clients.blocking().rerank(query, texts, **options))

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, documents: list[Document], top_k: int | None = None) -> RankerOutput:
        """See `run`."""
        if not documents:
            return {"documents": []}
        texts, options = _texts(documents, self._keys, self._separator), self._with(top_k)
        return _ranked(documents, await self._clients.awaited().rerank(query, texts, **options))

    def _with(self, top_k: int | None) -> RerankOptions:
        return self._options if top_k is None else {**self._options, "top_n": top_k}


def _texts(documents: Sequence[Document], keys: Sequence[str], separator: str) -> list[str]:
    """The content of each document, after the values of its metadata at these keys."""
    texts = []
    for document in documents:
        values = [str(document.meta[key]) for key in keys if document.meta.get(key) is not None]
        texts.append(separator.join([*values, document.content or ""]))
    return texts


def _sparse(vector: SparseAnswer) -> SparseEmbedding:
    return SparseEmbedding(vector.indices.tolist(), vector.values.tolist())


def _meta(answer: EmbedAnswer) -> dict[str, Any]:
    return {"model": answer.model, "usage": {"prompt_tokens": answer.usage.tokens, "total_tokens": answer.usage.tokens}}


def _ranked(documents: Sequence[Document], answer: RerankAnswer) -> RankerOutput:
    ranked = [replace(documents[result.index], score=result.relevance_score) for result in answer.results]
    return {"documents": ranked}
