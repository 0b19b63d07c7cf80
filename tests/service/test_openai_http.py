"""OpenAI's embeddings API over HTTP: clients as they are, keys, warnings and the size of answers."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import httpx2
import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from service.transports.http.state import RESPONSE_MB
from service.wire.body import Body
from service.wire.openai_requests import ignored_warning
from service.wire.size import SizeLimit
from tests.service.client import ENVIRONMENT, PATIENCE, Client, Json, unpacked
from tests.service.conftest import Serve
from tests.service.served import Served

KEY = "k3y-0123456789"
JSON = {"Content-Type": "application/json"}
ROOT = Path(__file__).parents[2]
TEXTS = ["send only what changed", "rsync"]

LANGCHAIN: Final[dict[str, Json]] = {
    "default": {
        "model": "text-embedding-3-small",
        "input": [[6820, 1193, 1148, 5614], [5544, 1910]],
        "encoding_format": "base64",
    },
    "check_embedding_ctx_length=False": {
        "model": "text-embedding-3-small",
        "input": TEXTS,
        "encoding_format": "base64",
    },
}
"""Bodies of `OpenAIEmbeddings.embed_documents` of langchain-openai, by the option of the client."""


@pytest.fixture(scope="module")
def keyed(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a key that accepts any model name."""
    store = EdgeStore(tmp_path_factory.mktemp("keyed"))
    settings = Settings.from_environment({**ENVIRONMENT, "API_KEY": KEY, "SERVED_MODEL_NAME": "BAAI/bge-m3,*"})
    with Served(Operations(settings, embedder, store)) as served:
        yield served
    store.close()


@pytest.fixture
def http(keyed: Served) -> Iterator[httpx.Client]:
    """A client with the key."""
    with keyed.client(Authorization=f"Bearer {KEY}") as client:
        yield client


@pytest.fixture
def transport() -> Iterator[httpx2.Client]:
    """The connections of an OpenAI client."""
    with httpx2.Client(trust_env=False, timeout=PATIENCE) as client:
        yield client


def dense(http: httpx.Client, texts: list[str]) -> list[list[float]]:
    """The dense vectors that the worker's own operation gives."""
    results = http.post("/embed", json={"texts": texts, "vectors": ["dense"]}).json()["results"]
    return [result["dense"] for result in results]


@pytest.mark.parametrize("base", ["/v1", "/v1/", "//v1/"])
def test_openais_client(keyed: Served, http: httpx.Client, transport: httpx2.Client, base: str) -> None:
    """OpenAI's client works with its base URL with and without a slash, and takes the other vectors as they are."""
    client = openai.OpenAI(base_url=keyed.url + base, api_key=KEY, max_retries=0, http_client=transport)
    more = {"vectors": ["sparse", "colbert"], "truncate_prompt_tokens": -1}
    answer = client.embeddings.create(model="text-embedding-3-small", input=TEXTS, extra_body=more)
    assert answer.model == "BAAI/bge-m3"
    assert np.allclose([item.embedding for item in answer.data], dense(http, TEXTS), atol=1e-5)
    wanted = http.post("/embed", json={"texts": TEXTS}).json()["results"]
    for item, result in zip(answer.data, wanted, strict=True):
        assert item.sparse_embedding["indices"] == result["sparse"]["indices"]  # type: ignore[attr-defined]
        rows = unpacked(item.colbert_embedding)  # type: ignore[attr-defined]
        assert np.allclose(rows, result["colbert"], atol=1e-5)
    assert [model.id for model in client.models.list()] == ["BAAI/bge-m3"]
    assert client.models.retrieve("BAAI/bge-m3").owned_by == "BAAI"


@pytest.mark.parametrize("base", ["", "/api"])
def test_openais_client_shows_which_path_was_meant(keyed: Served, transport: httpx2.Client, base: str) -> None:
    """Without `/v1` in its base URL the client's own error names the right path, since it has OpenAI's form."""
    client = openai.OpenAI(base_url=keyed.url + base, api_key=KEY, max_retries=0, http_client=transport)
    with pytest.raises(openai.NotFoundError, match=r"did you mean /v1/embeddings[?]"):
        client.embeddings.create(model="BAAI/bge-m3", input="a")
    with pytest.raises(openai.NotFoundError, match=r"did you mean /v1/models[?]"):
        client.models.list()


def test_openais_asynchronous_client(keyed: Served, http: httpx.Client) -> None:
    """The asynchronous client works, with many requests at the same time."""

    async def embed() -> list[list[float]]:
        async with (
            httpx2.AsyncClient(trust_env=False, timeout=PATIENCE) as transport,
            openai.AsyncOpenAI(base_url=f"{keyed.url}/v1", api_key=KEY, http_client=transport) as client,
        ):
            answers = await asyncio.gather(*(client.embeddings.create(model="any", input=text) for text in TEXTS))
            return [answer.data[0].embedding for answer in answers]

    assert np.allclose(asyncio.run(embed()), dense(http, TEXTS), atol=1e-5)


@pytest.mark.parametrize("deployment", [None, "bge"])
def test_azures_client(keyed: Served, http: httpx.Client, transport: httpx2.Client, deployment: str | None) -> None:
    """Azure's client works with the worker's address as its endpoint; it sends the key in a header of its own."""
    where: Any = {} if deployment is None else {"azure_deployment": deployment}
    client = openai.AzureOpenAI(
        azure_endpoint=f"{keyed.url}/", api_key=KEY, api_version="2024-10-21", http_client=transport, **where
    )
    answer = client.embeddings.create(model="BAAI/bge-m3", input=TEXTS)
    assert answer.model == "BAAI/bge-m3"
    assert np.allclose([item.embedding for item in answer.data], dense(http, TEXTS), atol=1e-5)
    with pytest.raises(openai.BadRequestError, match="dimensions must be 192"):
        client.embeddings.create(model="BAAI/bge-m3", input=TEXTS, dimensions=8)
    with pytest.raises(openai.AuthenticationError, match="api-key"):
        client.with_options(api_key="wrong", max_retries=0).embeddings.create(model="BAAI/bge-m3", input=TEXTS)


def test_a_deployment_is_the_name_of_the_model(serve: Serve) -> None:
    """The deployment in the path is checked as a model name is, whatever model the body names."""
    worker = serve(SERVED_MODEL_NAME="BAAI/bge-m3")
    with Served(worker.operations) as served, served.client() as client:
        for name in ("BAAI%2Fbge-m3", "BAAI/bge-m3"):
            path = f"/openai/deployments/{name}/embeddings?api-version=2024-10-21"
            assert client.post(path, json={"input": "a", "model": "ada"}).json()["model"] == "BAAI/bge-m3"
        response = client.post("/openai/deployments/ada/embeddings", json={"input": "a", "model": "BAAI/bge-m3"})
        assert (response.status_code, response.json()["error"]["param"]) == (404, "model")
        response = client.post("/openai/deployments/ada/chat/completions", json={})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
        counted = client.get("/metrics").text
    assert 'route="/openai/deployments/{model}/embeddings",status="404"} 1.0' in counted
    assert 'route="other",status="404"} 1.0' in counted


@pytest.mark.parametrize(
    "headers",
    [
        {"api-key": KEY},
        {"API-KEY": KEY},
        {"api-key": "wrong", "Authorization": f"Bearer {KEY}"},
        {"api-key": KEY, "Authorization": "Bearer wrong"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/collections", "/metrics"])
def test_the_key_may_stand_in_either_header(keyed: Served, path: str, headers: dict[str, str]) -> None:
    """`api-key` is taken wherever the bearer token is; one of the two must be right."""
    with keyed.client(**headers) as client:
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("key", ["", "wrong", f"Bearer {KEY}", KEY[:-1], "\xff"])
def test_a_wrong_key_in_azures_header_is_refused(keyed: Served, key: str) -> None:
    """What is not the key opens nothing, and is not quoted."""
    with keyed.client() as client:
        response = client.get("/v1/models", headers=[(b"api-key", key.encode("latin-1"))])
    assert response.status_code == 401
    assert KEY not in response.text


def test_langchains_client_is_told_what_to_change(http: httpx.Client) -> None:
    """By default it sends ids of OpenAI's tokenizer, which is an error; with the option that this names, it works."""
    refused, answered = (http.post("/v1/embeddings", json=LANGCHAIN[option]) for option in LANGCHAIN)
    assert refused.status_code == 400
    (_, option) = LANGCHAIN
    assert option in refused.json()["error"]["message"]
    data = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answered.json()["data"]]
    assert np.allclose(data, dense(http, TEXTS), atol=1e-5)


def test_ignored_fields_and_truncated_texts_are_in_a_header(http: httpx.Client) -> None:
    """What OpenAI's answer has no field for is said in `X-Warning`; an answer without warnings has none."""
    body: Json = {"input": ["a", "word " * 600], "truncate_prompt_tokens": -1, "foo": 1, "bar": {}, "none": None}
    response = http.post("/v1/embeddings", json=body)
    assert response.headers["x-warning"] == "unknown fields ignored: foo, bar; truncated: 1 input"
    assert "x-warning" not in http.post("/v1/embeddings", json={"input": "a", "none": None}).headers


@given(names=st.lists(st.text(), unique=True, min_size=1))
def test_a_warning_is_printable_and_short(names: list[str]) -> None:
    """No field name of a caller can break a header, and any number of them stays short."""
    warning = ignored_warning(names)
    assert warning.isascii()
    assert warning.isprintable()
    assert len(warning) < 1000


def test_a_field_with_an_odd_name_is_counted(http: httpx.Client) -> None:
    """Names that a header cannot carry are counted instead of shown."""
    odd = {"a\r\nSet-Cookie: b": 1, "é": 2, "x" * 100: 3}
    for extra, said in ((odd, "3 fields"), ({"foo": 0, **odd}, "foo, and 3 more")):
        response = http.post("/v1/embeddings", content=json.dumps({"input": "a", **extra}), headers=JSON)
        assert response.headers["x-warning"] == f"unknown fields ignored: {said}"
        assert "set-cookie" not in response.headers
    many = {f"field{number}": 1 for number in range(12)}
    warning = http.post("/v1/embeddings", json={"input": "a", **many}).headers["x-warning"]
    assert warning.endswith("field9, and 2 more")


def test_answers_over_http_may_be_larger_than_on_the_queue(worker: Client, serve: Serve) -> None:
    """HTTP carries what RunPod's load balancer does, and the queue what `/run` does; a setting holds for both."""
    body: Json = {"input": ["word " * 500] * 22, "vectors": ["colbert"], "encoding_format": "base64"}
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


def test_the_code_of_the_page_works(keyed: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of docs/openai.md run one after the other, as they stand but for the address and the key."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    page = (ROOT / "docs" / "openai.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("http://localhost:8000", keyed.url).replace("choose-one", KEY), names)  # noqa: S102
        assert len(names["vector"]) == 192
    assert len(blocks) == 3
    assert names["weights"]
    assert names["size"] == 192


def test_every_form_of_the_key_is_described(http: httpx.Client) -> None:
    """The OpenAPI document names both headers, and Azure's path with its parameter."""
    described = http.get("/openapi.json").json()
    schemes = described["components"]["securitySchemes"]
    assert schemes["header"] == {"type": "apiKey", "in": "header", "name": "api-key"}
    assert described["security"] == [{"key": []}, {"header": []}, {}]
    route = described["paths"]["/openai/deployments/{model}/embeddings"]["post"]
    assert [parameter["name"] for parameter in route["parameters"]] == ["model"]
