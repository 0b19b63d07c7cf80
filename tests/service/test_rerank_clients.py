"""Clients of Cohere, Jina and Text Embeddings Inference work as they are, with the address of a worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import cohere
import httpx
import numpy as np
import pytest
from cohere.core.api_error import ApiError

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from tests.embedder.oracle import TOLERANCE
from tests.service.client import ENVIRONMENT, Client, Json
from tests.service.served import Served

KEY: Final = "k3y-0123456789"
QUERY: Final = "send only what changed"
DOCUMENTS: Final = [
    "A relational database.",
    "rsync copies only the changed parts of files.",
    "tar packs files into an archive.",
]
ORDER: Final = [1, 2, 0]
ROOT: Final = Path(__file__).parents[2]

RANKED: Final[dict[str, tuple[str, Json]]] = {
    "Open WebUI, external engine": (
        "/v1/rerank",
        {"model": "mini", "query": QUERY, "documents": DOCUMENTS, "top_n": len(DOCUMENTS)},
    ),
    "Dify, OpenAI-API-compatible": (
        "/v1/rerank",
        {"model": "mini", "query": QUERY, "documents": DOCUMENTS, "top_n": 3, "return_documents": True},
    ),
    "Dify, Jina": (
        "/v1/rerank",
        {"model": "mini", "query": QUERY, "documents": DOCUMENTS, "top_n": None, "return_documents": False},
    ),
    "Dify, Jina, a model for several media": (
        "/v1/rerank",
        {
            "model": "mini",
            "query": QUERY,
            "documents": [{"text": document} for document in DOCUMENTS],
            "top_n": None,
            "return_documents": False,
        },
    ),
    "Dify, LocalAI": ("/rerank", {"model": "mini", "query": QUERY, "documents": DOCUMENTS, "top_n": 3}),
    "LangChain, JinaRerank": ("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, "model": "mini", "top_n": 3}),
    "LiteLLM, hosted_vllm": (
        "/rerank",
        {"model": "mini", "query": QUERY, "documents": DOCUMENTS, "top_n": 3, "return_documents": True},
    ),
}
"""Recorded requests whose answers have `results`, by client."""

RANKED_BY_TEI: Final[dict[str, Json]] = {
    "Dify, Text Embedding Inference": {"query": QUERY, "texts": DOCUMENTS, "return_text": True},
    "Haystack, HuggingFaceTEIRanker": {"query": QUERY, "texts": DOCUMENTS, "raw_scores": False},
    "Haystack, with a direction": {
        "query": QUERY,
        "texts": DOCUMENTS,
        "raw_scores": False,
        "truncate": True,
        "truncation_direction": "Right",
    },
    "LiteLLM, huggingface": {
        "raw_scores": False,
        "truncation_direction": "Right",
        "query": QUERY,
        "texts": DOCUMENTS,
        "top_n": 3,
        "return_text": True,
    },
}
"""Recorded requests of `/rerank` whose answers are lists, by client."""

EMBEDDED: Final[dict[str, tuple[str, Json]]] = {
    "LangChain, HuggingFaceEndpointEmbeddings": ("/", {"inputs": DOCUMENTS}),
    "Haystack, HuggingFaceAPITextEmbedder": ("/", {"inputs": DOCUMENTS[0], "normalize": True, "truncate": True}),
    "Haystack, HuggingFaceAPIDocumentEmbedder": ("/", {"inputs": DOCUMENTS, "normalize": True, "truncate": True}),
    "LlamaIndex, TextEmbeddingsInference": ("/embed", {"inputs": DOCUMENTS, "truncate": True}),
}
"""Recorded requests whose answers are vectors, by client."""

LITELLM: Final = """
import json, litellm
documents, query = json.loads(sys.argv[2]), sys.argv[3]
for provider, base in (
    ("cohere", url), ("cohere", url + "/v1/rerank"), ("jina_ai", url), ("huggingface", url), ("hosted_vllm", url)
):
    answer = litellm.rerank(
        model=provider + "/mini", query=query, documents=documents, top_n=3, api_base=base, api_key=key
    )
    print(json.dumps([result["index"] for result in answer.results]))
"""

LLAMA_INDEX: Final = """
import json
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

documents, query = json.loads(sys.argv[2]), sys.argv[3]
model = TextEmbeddingsInference(model_name="BAAI/bge-m3", base_url=url, auth_token=key)
print(json.dumps([model.get_text_embedding_batch(documents), [model.get_query_embedding(query)]]))
"""


@pytest.fixture(scope="module")
def worker(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A worker with a key."""
    store = EdgeStore(tmp_path_factory.mktemp("clients"))
    yield Client(Operations(Settings.from_environment({**ENVIRONMENT, "API_KEY": KEY}), embedder, store))
    store.close()


@pytest.fixture(scope="module")
def served(worker: Client) -> Iterator[Served]:
    """That worker over HTTP."""
    with Served(worker.operations) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clients connect to the server directly."""
    monkeypatch.setenv("NO_PROXY", "*")


def dense(worker: Client, texts: list[str]) -> Any:
    """The dense vectors [N, H] of texts."""
    answer = worker.good({"texts": texts, "isPassage": True, "vectors": ["dense"]})
    return np.array([text["dense"] for text in answer["results"]])


def printed(code: str, served: Served) -> list[Any]:
    """The JSON lines that a client prints, in a process of its own, since it takes seconds to import."""
    head = f"import sys\nurl, key = sys.argv[1], {KEY!r}\n"
    environment = {**os.environ, "NO_PROXY": "*", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        [sys.executable, "-c", head + code, served.url, json.dumps(DOCUMENTS), QUERY],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_the_sdk_of_cohere(served: Served) -> None:
    """Both versions of the client rank, return documents and raise their own errors."""
    with httpx.Client(trust_env=False) as transport:
        latest = cohere.ClientV2(api_key=KEY, base_url=served.url, httpx_client=transport)
        answer = latest.rerank(model="mini", query=QUERY, documents=DOCUMENTS, top_n=2, max_tokens_per_doc=4096)
        assert [result.index for result in answer.results] == ORDER[:2]
        assert all(0 < result.relevance_score < 1 for result in answer.results)
        assert answer.meta is not None
        assert answer.meta.api_version is not None
        assert answer.meta.api_version.version == "2"
        first = cohere.Client(api_key=KEY, base_url=served.url, httpx_client=transport)
        documents = [{"text": document} for document in DOCUMENTS]
        ranking = first.rerank(model="mini", query=QUERY, documents=documents, return_documents=True).results
        assert [result.document.text for result in ranking if result.document] == [DOCUMENTS[index] for index in ORDER]
        with pytest.raises(cohere.NotFoundError) as unknown:
            latest.rerank(model="rerank-v3.5", query=QUERY, documents=DOCUMENTS)
        assert "model must be 'mini'" in unknown.value.body["message"]
        stranger = cohere.ClientV2(api_key="wrong", base_url=served.url, httpx_client=transport)
        with pytest.raises(ApiError) as refused:
            stranger.rerank(model="mini", query=QUERY, documents=DOCUMENTS)
        assert refused.value.status_code == 401


def test_the_client_of_hugging_face(served: Served, worker: Client) -> None:
    """`feature_extraction` gives the dense vectors, for the worker's address as `model` and as `base_url`."""
    from huggingface_hub import InferenceClient  # takes a second, which not every process of a test run needs
    from huggingface_hub.errors import HfHubHTTPError

    wanted = dense(worker, DOCUMENTS)
    for client in (
        InferenceClient(model=served.url, token=KEY),
        InferenceClient(base_url=served.url, api_key=KEY),
        InferenceClient(model=f"{served.url}/embed", token=KEY),
    ):
        many = client.feature_extraction(DOCUMENTS, normalize=True, truncate=True, truncation_direction="right")
        assert np.abs(many - wanted).max() <= TOLERANCE
        assert client.feature_extraction(DOCUMENTS[0], prompt_name="passage").shape == (1, wanted.shape[1])
        with pytest.raises(HfHubHTTPError, match="normalize must be true, got false"):
            client.feature_extraction(DOCUMENTS[0], normalize=False)


@pytest.mark.parametrize("client", RANKED)
def test_a_recorded_request_of_a_ranking(served: Served, client: str) -> None:
    """The answer has what these clients read: `index`, `relevance_score`, and documents only where asked for."""
    path, body = RANKED[client]
    with served.client(Authorization=f"Bearer {KEY}") as transport:
        response = transport.post(path, json=body)
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert [result["index"] for result in results] == ORDER
    for result in results:
        assert 0 < result["relevance_score"] < 1
        if body.get("return_documents"):
            assert result["document"]["text"] == DOCUMENTS[result["index"]]
        else:
            assert "document" not in result


@pytest.mark.parametrize("client", RANKED_BY_TEI)
def test_a_recorded_request_of_a_list_of_ranks(served: Served, client: str) -> None:
    """The answer has what these clients read: `index`, `score`, and `text` only where asked for."""
    body = RANKED_BY_TEI[client]
    with served.client(Authorization=f"Bearer {KEY}") as transport:
        response = transport.post("/rerank", json=body)
    assert response.status_code == 200, response.text
    ranks = response.json()
    assert [rank["index"] for rank in ranks] == ORDER
    for rank in ranks:
        assert 0 < rank["score"] < 1
        assert rank.get("text") == (DOCUMENTS[rank["index"]] if body.get("return_text") else None)


@pytest.mark.parametrize("client", EMBEDDED)
def test_a_recorded_request_of_vectors(served: Served, worker: Client, client: str) -> None:
    """The answer is the list of vectors that these clients take as it is."""
    path, body = EMBEDDED[client]
    with served.client(Authorization=f"Bearer {KEY}") as transport:
        response = transport.post(path, json=body)
    assert response.status_code == 200, response.text
    texts = [body["inputs"]] if isinstance(body["inputs"], str) else body["inputs"]
    assert np.abs(np.array(response.json()) - dense(worker, texts)).max() <= TOLERANCE


@pytest.mark.slow
def test_litellm(served: Served) -> None:
    """`litellm.rerank` ranks with its providers for Cohere, Jina, TEI and vLLM."""
    assert printed(LITELLM, served) == [ORDER] * 5


@pytest.mark.slow
def test_llama_index(served: Served, worker: Client) -> None:
    """LlamaIndex's class for TEI gives the dense vectors of texts and of a query."""
    ((many, one),) = printed(LLAMA_INDEX, served)
    assert np.abs(np.array(many) - dense(worker, DOCUMENTS)).max() <= TOLERANCE
    assert np.abs(np.array(one) - dense(worker, [QUERY])).max() <= TOLERANCE
