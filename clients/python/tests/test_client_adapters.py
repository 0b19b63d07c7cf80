"""The adapters for LangChain, LlamaIndex and Haystack: requests, errors, asyncio and keys. Nothing is stored here."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.utils import Secret
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document as LangChainDocument
from llama_index.core.schema import NodeWithScore, TextNode

from bge_m3_qdrant_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    InvalidOption,
    InvalidRequest,
    ModelFailure,
    SparseAnswer,
    Unauthorized,
    UnexpectedAnswer,
    haystack,
    langchain,
    llama_index,
)
from bge_m3_qdrant_client.component_clients import ComponentClients
from bge_m3_qdrant_client.kept_vectors import KeptVectors
from bge_m3_qdrant_client.runpod_target import RunPodTarget
from loopback_endpoint import ENDPOINT, KEY, Report, RunPodEndpoint
from loopback_server import Answer, LoopbackServer, scripted
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from test_client_readme import README, examples_of
from tests.service.client import ENVIRONMENT
from tests.service.doubles import Watched
from tests.service.served import Served
from tests.sink.grpc_double import GrpcDouble
from tests.sink.rest_front import RestFront

SRC = Path(__file__).parents[1] / "src"
TEXTS = ["rsync copies only the changed parts of files.", "PhotoRec recovers deleted files.", "A relational database."]
QUERY = "send only what changed"
FAILING = "a zebra"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A worker whose queries end at 8 tokens, and whose model fails on texts with the word `zebra`."""
    watched, store = Watched.loaded(), EdgeStore(tmp_path_factory.mktemp("adapters"))
    settings = Settings.from_environment({**ENVIRONMENT, "QUERY_MAX_LENGTH": "8"})
    with Served(Operations(settings, watched.embedder, store)) as server:
        yield server
    store.close()
    watched.embedder.close()


class Counted:
    """A client of a worker that records the texts of its requests."""

    def __init__(self, url: str) -> None:
        self.requests: list[list[str]] = []
        self.http = httpx.Client(event_hooks={"request": [self._record]}, trust_env=False)
        self.client = Client(url, http=self.http)

    def _record(self, request: httpx.Request) -> None:
        self.requests.append(json.loads(request.content)["texts"])


@pytest.fixture
def counted(served: Served) -> Iterator[Counted]:
    """A client that records its requests."""
    made = Counted(served.url)
    with made.http:
        yield made


class Halves:
    """The dense and the sparse half of an adapter with shared requests, in numbers of plain Python."""

    def __init__(self, framework: str, client: Client, **options: Any) -> None:
        self.dense: Callable[[list[str]], list[list[float]]]
        self.sparse: Callable[[list[str]], list[list[int]]]
        self.query: Callable[[str], list[float]]
        self.sparse_query: Callable[[str], list[int]]
        if framework == "langchain":
            chain = langchain.BGEM3Vectors(client, **options)
            self.dense, self.query = chain.dense.embed_documents, chain.dense.embed_query
            self.sparse = lambda texts: [vector.indices for vector in chain.sparse.embed_documents(texts)]
            self.sparse_query = lambda text: chain.sparse.embed_query(text).indices
        else:
            index = llama_index.BGEM3Vectors(client, **options)
            self.dense, self.query = index.dense.get_text_embedding_batch, index.dense.get_query_embedding
            self.sparse = lambda texts: index.sparse_doc_fn(texts)[0]
            self.sparse_query = lambda text: index.sparse_query_fn([text])[0][0]


@pytest.fixture(params=["langchain", "llama_index"])
def halves(request: pytest.FixtureRequest, counted: Counted) -> Halves:
    """The halves of each framework that asks for them one after the other."""
    return Halves(request.param, counted.client)


def test_one_request_serves_both_halves(halves: Halves, counted: Counted) -> None:
    """The sparse half has the vectors of the dense half's request, in batches of any size, once for each time."""
    alone = [vector.indices for vector in langchain.BGEM3SparseEmbeddings(counted.client).embed_documents(TEXTS)]
    counted.requests.clear()
    dense = halves.dense([*TEXTS, TEXTS[0]])
    assert dense[0] == dense[3]
    assert halves.sparse(TEXTS[:2]) == alone[:2]
    assert halves.sparse([TEXTS[2], TEXTS[0]]) == [alone[2], alone[0]]
    assert counted.requests == [[*TEXTS, TEXTS[0]]]
    assert halves.sparse(TEXTS[1:]) == alone[1:]  # each was asked for as often as it was embedded, and is forgotten
    assert counted.requests[1:] == [TEXTS[1:]]


def test_only_what_is_missing_is_requested(halves: Halves, counted: Counted) -> None:
    """A half whose texts were embedded in part requests the others, in the right order."""
    halves.dense(TEXTS[1:])
    vectors = halves.sparse(TEXTS)
    assert counted.requests == [TEXTS[1:], TEXTS[:1]]
    assert vectors == halves.sparse(TEXTS)


def test_a_query_is_no_passage(halves: Halves, counted: Counted) -> None:
    """A query ends at the worker's limit of queries, also where the same text was embedded as a passage."""
    long = " ".join(TEXTS)
    passage, query = halves.dense([long])[0], halves.query(long)
    assert passage != query
    assert len(halves.sparse_query(long)) < len(halves.sparse([long])[0])
    assert len(counted.requests) == 2


def test_one_kind_alone_requests_one_kind(counted: Counted) -> None:
    """Embeddings that share nothing ask the model for their own kind."""
    kinds: list[Any] = []
    embed = counted.client.embed

    def recorded(texts: Any, **options: Any) -> Any:
        kinds.append(options["vectors"])
        return embed(texts, **options)

    counted.client.embed = recorded  # type: ignore[method-assign]
    langchain.BGEM3Embeddings(counted.client).embed_documents(TEXTS)
    llama_index.BGEM3Embedding(counted.client).get_text_embedding_batch(TEXTS)
    langchain.BGEM3SparseEmbeddings(counted.client).embed_query(QUERY)
    assert kinds == [["dense"], ["dense"], ["sparse"]]


def test_texts_come_from_any_iterable(counted: Counted) -> None:
    """An iterator is read once for both halves, and one text is embedded as a whole."""
    halves, alone = Halves("langchain", counted.client), langchain.BGEM3SparseEmbeddings(counted.client)
    assert halves.dense(iter(TEXTS)) == halves.dense(TEXTS)  # type: ignore[arg-type]
    assert halves.sparse(iter(TEXTS)) == halves.sparse(TEXTS)  # type: ignore[arg-type]
    assert len(counted.requests) == 2
    assert halves.dense(TEXTS[0]) == halves.dense(TEXTS[:1])  # type: ignore[arg-type]
    assert len(halves.sparse(TEXTS[0])) == len(alone.embed_documents(TEXTS[0])) == 1  # type: ignore[arg-type]


def test_memory_is_bounded_if_no_sparse_vector_is_asked_for(counted: Counted) -> None:
    """Without room for all of them the oldest go first, and are requested again."""
    halves = Halves("langchain", counted.client, kept_max_bytes=3000)
    for text in TEXTS:
        halves.dense([text])
    counted.requests.clear()
    halves.sparse([TEXTS[2]])
    assert not counted.requests
    halves.sparse([TEXTS[0]])
    assert counted.requests == [[TEXTS[0]]]
    with pytest.raises(InvalidOption, match="kept_max_bytes must be at least 0, got -1"):
        Halves("langchain", counted.client, kept_max_bytes=-1)


def vector(text: str) -> SparseAnswer:
    """A sparse vector that no other text has."""
    number = int.from_bytes(text.encode()[:3].ljust(3, b"."), "big")
    return SparseAnswer(indices=np.array([number], np.uint32), values=np.ones(1, np.float32))


@given(
    st.lists(
        st.tuples(st.booleans(), st.booleans(), st.lists(st.sampled_from(["a", "b", "c", "é" * 400]), max_size=6)),
        max_size=12,
    ),
    st.integers(0, 6000),
)
def test_kept_vectors_are_bounded_and_right(steps: list[tuple[bool, bool, list[str]]], max_bytes: int) -> None:
    """Whatever is put and taken, no more than the limit is kept, and a vector is that of its text, or none."""
    kept = KeptVectors(max_bytes)
    waiting: dict[tuple[str, bool], int] = {}
    for puts, is_passage, texts in steps:
        if puts:
            kept.put(texts, [vector(text) for text in texts], is_passage=is_passage)
            for text in texts:
                waiting[text, is_passage] = waiting.get((text, is_passage), 0) + 1
        else:
            for text, taken in zip(texts, kept.take(texts, is_passage=is_passage), strict=True):
                if taken is not None:
                    assert taken.indices.tolist() == vector(text).indices.tolist()
                    waiting[text, is_passage] -= 1
                    assert waiting[text, is_passage] >= 0
        assert 0 <= kept.bytes_ <= max_bytes
    for is_passage in (False, True):
        for _ in range(100):
            kept.take(["a", "b", "c", "é" * 400], is_passage=is_passage)
    assert kept.bytes_ == 0


def test_threads_share_kept_vectors() -> None:
    """Each vector that threads put is taken once, and nothing is left."""
    kept = KeptVectors()
    together = threading.Barrier(4)

    def work(number: int) -> int:
        texts = [f"{number} {text}" for text in range(50)] + ["shared"]
        together.wait(10)
        taken = 0
        for _ in range(20):
            kept.put(texts, [vector(text) for text in texts], is_passage=True)
            taken += sum(found is not None for found in kept.take(texts, is_passage=True))
        return taken

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 4 * 20 * 51
    assert kept.bytes_ == 0


@pytest.mark.parametrize("native", [True, False])
def test_awaited_methods_give_the_same(served: Served, *, native: bool) -> None:
    """Vectors and rankings do not depend on the method, with a client for asyncio or without one."""

    async def awaited(client: Client) -> None:
        async with AsyncClient(served.url) as made:
            second = made if native else None
            chain, index = langchain.BGEM3Vectors(client, second), llama_index.BGEM3Vectors(client, second)
            sparse = langchain.BGEM3SparseEmbeddings(client, second)
            dense = chain.dense.embed_documents(TEXTS)
            assert np.allclose(await chain.dense.aembed_documents(TEXTS), dense, atol=1e-6)
            assert np.allclose(await index.dense.aget_text_embedding_batch(TEXTS), dense, atol=1e-6)
            assert np.allclose(await index.dense.aget_text_embedding(TEXTS[0]), dense[0], atol=1e-6)
            query = chain.dense.embed_query(QUERY)
            assert np.allclose(await chain.dense.aembed_query(QUERY), query, atol=1e-6)
            assert np.allclose(await index.dense.aget_query_embedding(QUERY), query, atol=1e-6)
            alone = await sparse.aembed_documents(TEXTS)
            assert await chain.sparse.aembed_documents(TEXTS) == alone
            assert await chain.sparse.aembed_query(QUERY) == await sparse.aembed_query(QUERY)
            documents = [LangChainDocument(page_content=text) for text in TEXTS]
            nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
            compressor = langchain.BGEM3Rerank(client=client, async_client=second, top_n=2)
            compressed = compressor.compress_documents(documents, QUERY)
            assert await compressor.acompress_documents(documents, QUERY) == compressed
            postprocessor = llama_index.BGEM3Rerank(client, second, top_n=2)
            processed = postprocessor.postprocess_nodes(nodes, query_str=QUERY)
            assert await postprocessor.apostprocess_nodes(nodes, query_str=QUERY) == processed
            assert len(processed) == len(compressed) == 2

    with Client(served.url) as client:
        asyncio.run(awaited(client))


def test_haystack_runs_in_any_event_loop(served: Served) -> None:
    """A pipeline that is awaited gives what one that blocks gives, in a second event loop too."""
    documents = [Document(content=text) for text in TEXTS]
    embedder, ranker = haystack.BGEM3DocumentEmbedder(url=served.url), haystack.BGEM3Ranker(url=served.url, top_k=2)
    query = haystack.BGEM3TextEmbedder(url=served.url)
    blocking = embedder.run(documents)["documents"], ranker.run(QUERY, documents), query.run(QUERY)

    async def awaited() -> Any:
        embedded = (await embedder.run_async(documents))["documents"]
        return embedded, await ranker.run_async(QUERY, documents), await query.run_async(QUERY)

    async def closed() -> Any:
        result = await awaited()
        for component in (embedder, ranker, query):
            component.close()
            await component.close_async()
        return result

    for run in (closed, closed):
        embedded, ranked, vectors = asyncio.run(run())
        assert ranked == blocking[1]
        assert [document.sparse_embedding for document in embedded] == [
            document.sparse_embedding for document in blocking[0]
        ]
        assert np.allclose(vectors["embedding"], blocking[2]["embedding"], atol=1e-6)


def test_haystack_runs_in_threads_and_their_event_loops() -> None:
    """A component that threads share makes one client, and one for each event loop, whose connections it keeps."""
    clients = ComponentClients("http://127.0.0.1:9", api_key=lambda: None, runpod_endpoint_id=None, timeout=1)
    together = threading.Barrier(4)
    made: list[tuple[Client, AsyncClient]] = []

    async def awaited() -> AsyncClient:
        first = clients.awaited()
        await asyncio.to_thread(together.wait, 10)
        assert clients.awaited() is first
        return first

    def work(_: int) -> None:
        together.wait(10)
        made.append((clients.blocking(), asyncio.run(awaited())))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len({id(blocking) for blocking, _ in made}) == 1
    assert len({id(native) for _, native in made}) == 4

    async def after() -> None:
        assert clients.awaited() not in {native for _, native in made}
        assert len(clients._async_clients) == 1  # those of event loops that are closed are given up
        await clients.aclose()

    asyncio.run(after())
    clients.close()


def test_haystack_calls_an_endpoint_on_runpod(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Components with the id of an endpoint send its key and give what they give over HTTP, awaited or not."""

    def answered(raw: Any, _: Report) -> Any:
        if "openai_route" in raw:
            return [httpx.post(served.url + raw["openai_route"], json=raw["openai_input"], trust_env=False).json()]
        return httpx.post(f"{served.url}/{raw.pop('operation')}", json=raw, trust_env=False).json()

    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    key, documents = Secret.from_env_var("RUNPOD_API_KEY"), [Document(content=text) for text in TEXTS]
    with RunPodEndpoint(answered) as endpoint:
        target = partial(RunPodTarget, base_url=endpoint.base_url)
        monkeypatch.setattr("bge_m3_qdrant_client.component_clients.RunPodTarget", target)
        for component, arguments in (
            (haystack.BGEM3DocumentEmbedder, (documents,)),
            (haystack.BGEM3TextEmbedder, (QUERY,)),
            (haystack.BGEM3Ranker, (QUERY, documents)),
        ):
            with closing(component(url=served.url)) as direct, closing(component("", key, ENDPOINT)) as called:
                expected = direct.run(*arguments)
                assert called.run(*arguments) == expected
                assert asyncio.run(_awaited_once(called, arguments)) == expected
        assert endpoint.paths == ["runsync"] * 6


async def _awaited_once(component: Any, arguments: Sequence[Any]) -> Any:
    result = await component.run_async(*arguments)
    await component.close_async()
    return result


def test_haystack_embeds_the_fields_that_are_named(served: Served) -> None:
    """Values of the metadata stand in front of the content; a store without sparse vectors gets none."""
    document = Document(content=TEXTS[0], meta={"title": "Tools", "year": 2000, "draft": None})
    together = Document(content=f"Tools\n2000\n{TEXTS[0]}")
    embedder = haystack.BGEM3DocumentEmbedder(
        url=served.url, sparse=False, meta_fields_to_embed=["title", "missing", "draft", "year"]
    )
    [embedded], [expected] = embedder.run([document])["documents"], embedder.run([together])["documents"]
    assert embedded.embedding == expected.embedding
    assert embedded.sparse_embedding is None
    assert document.embedding is None
    with closing(haystack.BGEM3TextEmbedder(url=served.url, sparse=False)) as query:
        assert "sparse_embedding" not in query.run(QUERY)
    assert embedder.run([])["documents"] == []
    embedder.close()


def test_haystack_never_writes_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline's file has the name of the variable; a key that is given as such cannot be written."""
    monkeypatch.setenv("BGE_M3_API_KEY", "k3y-in-the-environment")
    pipeline = Pipeline()
    pipeline.add_component("query", haystack.BGEM3TextEmbedder(url="http://worker:8000", sparse=False))
    pipeline.add_component("documents", haystack.BGEM3DocumentEmbedder(meta_fields_to_embed=["title"]))
    pipeline.add_component("ranker", haystack.BGEM3Ranker(api_key=Secret.from_env_var("OTHER"), weights=[1, 1, 0]))
    written = pipeline.dumps()
    assert "k3y" not in written
    assert "BGE_M3_API_KEY" in written
    assert Pipeline.loads(written, allowed_modules=["bge_m3_qdrant_client.haystack"]).dumps() == written
    given = haystack.BGEM3Ranker(api_key=Secret.from_token("k3y-in-the-code"))
    with pytest.raises(ValueError, match="Cannot serialize token-based secret") as refused:
        given.to_dict()
    assert "k3y" not in str(refused.value)


def test_haystack_sends_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is read when a component first runs and goes to the worker; an endpoint on RunPod needs one."""
    with LoopbackServer(scripted(Answer({"error": "no", "error_code": "invalid_request"}, 401))) as server:
        embedder = haystack.BGEM3TextEmbedder(url=server.url)
        monkeypatch.setenv("BGE_M3_API_KEY", "k3y")
        with pytest.raises(Unauthorized):
            embedder.run(QUERY)
        assert server.requests[0].headers["authorization"] == "Bearer k3y"
        embedder.close()
    monkeypatch.delenv("BGE_M3_API_KEY")
    with pytest.raises(InvalidOption, match="needs RunPod's key"):
        haystack.BGEM3TextEmbedder(runpod_endpoint_id="abc").run(QUERY)


@pytest.mark.parametrize("native", [True, False])
def test_a_text_that_fails_is_named(served: Served, *, native: bool) -> None:
    """The error is that of the worker's code, with the index of the text and without the text."""

    async def awaited(client: Client) -> None:
        async with AsyncClient(served.url) as made:
            await langchain.BGEM3Embeddings(client, made if native else None).aembed_documents([*TEXTS, FAILING])

    with Client(served.url) as client:
        halves = Halves("langchain", client)
        for call in (
            lambda: halves.dense([*TEXTS, FAILING]),
            lambda: Halves("llama_index", client).dense([*TEXTS, FAILING]),
            lambda: asyncio.run(awaited(client)),
        ):
            with pytest.raises(ModelFailure, match=r"^texts\[3\] cannot be embedded: ") as failed:
                call()
            assert failed.value.details["index"] == 3
            assert "zebra" not in str(failed.value)
        assert len(halves.sparse(TEXTS)) == 3  # nothing is kept of a request that failed
    embedder = haystack.BGEM3DocumentEmbedder(url=served.url)
    with pytest.raises(ModelFailure, match=r"^documents\[1\] cannot be embedded: "):
        embedder.run([Document(content=TEXTS[0]), Document(content=FAILING)])
    embedder.close()


def test_the_index_is_that_of_the_caller() -> None:
    """A sparse vector that fails after others were kept is named by its index among all texts."""
    sparse = {"indices": [1], "values": [0.5]}
    both = {"model": "m", "results": [{"dense": [1.0], "sparse": sparse}], "usage": {"tokens": 1}}
    failure = {"error": "too large", "error_code": "invalid_request", "retryable": False, "details": {}}
    failed = {"model": "m", "results": [failure], "usage": {"tokens": 0}}
    lacking = {"model": "m", "results": [{"dense": [1.0]}], "usage": {"tokens": 0}}
    with LoopbackServer(scripted(Answer(both), Answer(failed), Answer(lacking))) as server:
        with Client(server.url) as client:
            halves = Halves("langchain", client)
            halves.dense(["a"])
            with pytest.raises(InvalidRequest, match=r"^texts\[1\] cannot be embedded: too large"):
                halves.sparse(["a", "b"])
            with pytest.raises(UnexpectedAnswer, match=r"lacks a vector of texts\[0\]"):
                halves.dense(["a"])


def test_errors_are_those_of_the_client(served: Served) -> None:
    """What goes wrong on the way, or is invalid, is an error of the client's own tree."""
    documents = [LangChainDocument(page_content=text) for text in TEXTS]
    with Client("http://127.0.0.1:9", retries=0) as client:
        with pytest.raises(ConnectionFailed):
            langchain.BGEM3Embeddings(client).embed_query(QUERY)
        with pytest.raises(ConnectionFailed):
            langchain.BGEM3Rerank(client=client).compress_documents(documents, QUERY)
    with Client(served.url) as client:
        with pytest.raises(InvalidRequest, match="weights"):
            langchain.BGEM3Rerank(client=client, weights=[0, 0, 0]).compress_documents(documents, QUERY)
        with pytest.raises(InvalidOption, match="needs a query"):
            llama_index.BGEM3Rerank(client).postprocess_nodes([NodeWithScore(node=TextNode(text=TEXTS[0]))])


@pytest.mark.parametrize("component", [llama_index.BGEM3Embedding, llama_index.BGEM3Rerank])
def test_a_component_stays_in_its_process(counted: Counted, component: Callable[[Client], Any]) -> None:
    """LlamaIndex refuses to send it to another process, for instance in an ingestion, and says the way out."""
    with pytest.raises(TypeError, match="make one in each process, and use an ingestion without num_workers"):
        pickle.dumps(component(counted.client))


def test_fields_of_an_embedding_are_checked(counted: Counted) -> None:
    """LlamaIndex's own fields are taken, and come back from a file; one that it does not have is refused by name."""
    embedding = llama_index.BGEM3Embedding(counted.client, embed_batch_size=2, num_workers=3)
    again = llama_index.BGEM3Embedding.from_dict(embedding.to_dict(), client=counted.client)
    assert (again.embed_batch_size, again.num_workers) == (2, 3)
    assert len(again.get_text_embedding_batch(TEXTS)) == 3
    assert counted.requests == [TEXTS[:2], TEXTS[2:]]
    with pytest.raises(ValueError, match="embed_batchsize"):
        llama_index.BGEM3Embedding(counted.client, embed_batchsize=2)


def ranked(client: Client, **options: Any) -> Sequence[Sequence[float]]:
    """The scores of each framework's reranker for the same texts."""
    documents = [LangChainDocument(page_content=text, metadata={"kept": 1}, id="7") for text in TEXTS]
    compressed = langchain.BGEM3Rerank(client=client, **options).compress_documents(documents, QUERY)
    assert {(document.id, document.metadata["kept"]) for document in compressed} == {("7", 1)}
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    processed = llama_index.BGEM3Rerank(client, **options).postprocess_nodes(nodes, query_str=QUERY)
    return [document.metadata["relevance_score"] for document in compressed], [node.get_score() for node in processed]


def test_options_of_a_ranking_reach_the_worker(served: Served) -> None:
    """Weights and the truncation of documents are those of the caller, in every framework."""
    documents = [Document(content=text) for text in TEXTS]
    with Client(served.url) as client:
        scores = []
        for options in ({}, {"weights": [1, 0, 0]}, {"max_tokens_per_doc": 3}):
            ranker = haystack.BGEM3Ranker(url=served.url, **options)
            third = [document.score for document in ranker.run(QUERY, documents)["documents"]]
            ranker.close()
            first, second = ranked(client, **options)
            assert first == second == third
            scores.append(first)
    assert len({tuple(each) for each in scores}) == 3


@pytest.fixture
def qdrant(tmp_path: Path) -> Iterator[str]:
    """The address of a Qdrant server's REST API."""
    double = GrpcDouble(tmp_path)
    front = RestFront(double)
    yield f"http://127.0.0.1:{front.port}"
    front.stop()
    double.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("framework", ["langchain", "llama_index", "haystack"])
def test_the_example_of_the_readme(
    served: Served, qdrant: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    """It runs as written, but for the addresses and the size of a vector, and prints the best text."""
    monkeypatch.setenv("BGE_M3_API_KEY", "choose-one")
    [code] = [code for code in examples_of(README) if f"bge_m3_qdrant_client.{framework} import" in code]
    with Client(served.url) as client:
        size = len(langchain.BGEM3Embeddings(client).embed_query(QUERY))
    replaced = {
        "http://localhost:8000": served.url,
        "http://localhost:6333": qdrant,
        "embedding_dim=1024": f"embedding_dim={size}",
    }
    for shown, actual in replaced.items():
        code = code.replace(shown, actual)
    names = {"__name__": "example"}
    exec(compile(code, str(README), "exec"), names)  # noqa: S102 - the project's own README
    names.clear()
    gc.collect()  # the connections that a program leaves to its end
    assert capsys.readouterr().out == "0.7 rsync copies only the changed parts of files.\n"


PROGRAM = """
import sys
import bge_m3_qdrant_client
frameworks = ["haystack", "langchain", "llama_index"]
packages = ["haystack", "langchain_core", "langchain_qdrant", "llama_index"]
print(sorted(set(packages) & set(sys.modules)))
for package in packages:
    sys.modules[package] = None
for framework in frameworks:
    try:
        __import__("bge_m3_qdrant_client." + framework)
    except ImportError as error:
        print(error)
"""


def test_the_client_needs_no_framework() -> None:
    """It imports none of them, and an adapter whose extra is missing says how to install it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=True
    )
    imported, *messages = done.stdout.splitlines()
    assert imported == "[]"
    install = "pip install 'bge-m3-qdrant-client"
    assert messages == [
        f"bge_m3_qdrant_client.haystack needs haystack-ai: {install}[haystack]'",
        f"bge_m3_qdrant_client.langchain needs langchain-core and langchain-qdrant: {install}[langchain]'",
        f"bge_m3_qdrant_client.llama_index needs llama-index-core: {install}[llama-index]'",
    ]
