"""The REST API of a server double that resolves documents as Qdrant does: by one call of an embedding service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx

from tests.sink.grpc_double import GrpcDouble
from tests.sink.rest_front import RestFront

Json = dict[str, Any]


class InferenceFront(RestFront):
    """REST in front of a double whose documents become vectors.

    Args:
        double: the server.
        address: URL of the embedding service, the server's setting `inference.address`.
    """

    def __init__(self, double: GrpcDouble, address: str) -> None:
        self._address = address
        super().__init__(double)

    def answer(self, request: str, body: Json) -> Any:
        """Answer a request, after the documents in it are embedded."""
        documents = list(_documents(body))
        if documents:
            inputs: list[Json] = []
            for document in reversed(documents):  # in another order, each only once
                item = {**document, "data": document["text"], "data_type": "text"}
                if item not in inputs:
                    inputs.append(item)
            inference = "search" if request.endswith("/query") else "update"
            sent = {"inputs": inputs, "inference": inference, "token": None}
            embedded = httpx.post(self._address, json=sent, trust_env=False).raise_for_status().json()["embeddings"]
            body = _resolved(body, [(item["data"], item["options"]) for item in inputs], embedded)
        return super().answer(request, body)


def _documents(value: Any) -> Iterator[Json]:
    if isinstance(value, dict) and {"text", "model"} <= value.keys():
        yield {"options": None, **value}
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _documents(part)


def _resolved(value: Any, keys: list[Any], embedded: list[Any]) -> Any:
    if isinstance(value, dict) and {"text", "model"} <= value.keys():
        return embedded[keys.index((value["text"], value.get("options")))]
    if isinstance(value, dict):
        return {name: _resolved(part, keys, embedded) for name, part in value.items()}
    return [_resolved(part, keys, embedded) for part in value] if isinstance(value, list) else value
