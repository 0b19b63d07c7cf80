"""OpenAI's embeddings API over HTTP: the size of answers."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from service.transports.http.state import RESPONSE_MB
from service.wire.body import Body
from service.wire.size import SizeLimit
from tests.service.client import Client, Json
from tests.service.conftest import Serve
from tests.service.served import Served


def test_answers_over_http_may_be_larger_than_on_the_queue(worker: Client, serve: Serve) -> None:
    """HTTP carries what RunPod's load balancer does, and the queue what `/run` does; a setting holds for both."""
    body: Json = {"input": ["word"] * 10_000, "encoding_format": "base64"}
    job = {"openai_route": "/v1/embeddings", "openai_input": body}
    (refused,) = asyncio.run(worker.job(job))
    assert refused["error"]["code"] == "response_too_large"
    assert "at most 10000000 bytes" in refused["error"]["message"]
    with Served(worker.operations) as served, served.client() as client:
        response = client.post("/v1/embeddings", json=body)
        assert (response.status_code, len(response.content) > 10_000_000) == (200, True)
    with Served(serve(MAX_RESPONSE_MB="10").operations) as served, served.client() as client:
        assert client.post("/v1/embeddings", json=body).status_code == 413


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_an_answer_over_http_holds_openais_2048_inputs(encoding: str) -> None:
    """2048 vectors of 1024 components fit into the limit over HTTP, as numbers too."""
    vectors = np.random.default_rng(7).standard_normal((2048, 1024), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    data = [
        {"object": "embedding", "index": index, "embedding": vector if encoding == "float" else "A" * 5464}
        for index, vector in enumerate(vectors)
    ]
    body = Body.of({"object": "list", "data": data, "model": "m" * 255, "usage": {"total_tokens": 10**7}})
    SizeLimit(int(RESPONSE_MB * 1e6), "").check(body)
    assert len(body) > 11_000_000
