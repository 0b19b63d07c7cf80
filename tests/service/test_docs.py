"""The code in `docs/` runs as written; `tests/test_readme.py` runs that of the README."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from qdrant_sink.server import ServerStore
from tests.service.client import ENVIRONMENT, Client
from tests.service.conftest import Serve
from tests.service.served import Served
from tests.sink.grpc_double import GrpcDouble
from tests.sink.inference_front import InferenceFront

ROOT = Path(__file__).parents[2]
TEXTS = [
    "rsync copies only the changed parts of files to another machine.",
    "PhotoRec recovers deleted files from memory cards.",
    "A relational database server sends only what was asked for.",
]
VECTORS = '["dense", "sparse"]'
FUSED = "query=models.RrfQuery(rrf=models.Rrf(k=61))"
RERANKED = 'query=query["colbert"], using="colbert"'
SERVER = '"http://localhost:6333"'


@pytest.fixture
def double(tmp_path: Path) -> Iterator[GrpcDouble]:
    """A Qdrant server on a loopback port."""
    server = GrpcDouble(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def served(serve: Serve, double: GrpcDouble) -> Iterator[Client]:
    """A worker that has stored `TEXTS` on that server."""
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port)
    worker = serve(store=store)
    worker.good({"texts": TEXTS, "isPassage": True, "qdrant": {"collection": "notes"}})
    yield worker
    store.close()


def first_block(page: str, heading: str, language: str) -> str:
    """The first code in a language under a heading of a page."""
    section = ("\n" + (ROOT / "docs" / page).read_text(encoding="utf-8")).partition(f"\n{heading}\n")[2]
    block = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return block[1]


def run(code: str) -> list[Any]:
    """What the code prints, from a process of its own: a Python literal per line."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [ast.literal_eval(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_query_vectors_go_into_query_points_as_they_are(served: Client, double: GrpcDouble) -> None:
    """The code of the page finds what the worker's own search finds, with the same scores: fused, and reranked."""
    code = first_block("search.md", "## Your own queries to Qdrant", "python")
    assert all(part in code for part in (SERVER, FUSED, VECTORS))
    # The double speaks gRPC alone, on a port of its own; nothing else of the lines is changed.
    code = code.replace(SERVER, f'"http://127.0.0.1:9", grpc_port={double.port}, check_compatibility=False')
    reranked = code.replace(FUSED, RERANKED).replace(VECTORS, '["dense", "sparse", "colbert"]')
    search = {"operation": "search", "collection": "notes", "queries": ["send only what changed"]}
    for found, more in zip(run(code + reranked), ({}, {"rerank": "colbert"}), strict=True):
        (result,) = served.good({**search, **more})["results"]
        scores = {identity: (score, text) for identity, score, text in found}
        assert len(scores) == len(TEXTS)
        for hit in result["hits"]:
            assert scores[hit["id"]] == (pytest.approx(hit["score"], abs=1e-4), hit["payload"]["text"])
        assert [score for _, score, _ in found] == sorted((score for _, score, _ in found), reverse=True)


@pytest.mark.parametrize(("page", "title"), [("rerank.md", "# Rerank"), ("tei.md", "## Rerank")])
def test_one_curl_ranks(serve: Serve, page: str, title: str) -> None:
    """The command of the page ranks the better document first, with the fields that the page shows."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = first_block(page, title, "sh")
    with Served(serve(API_KEY="choose-one").operations) as door:
        here = command.replace("localhost:8000", f"127.0.0.1:{door.port}").replace("curl -s", "curl -s --noproxy '*'")
        done = subprocess.run(["/bin/sh", "-c", here], capture_output=True, text=True, timeout=60, check=True)
    answer = json.loads(done.stdout)
    if page == "rerank.md":
        shown = json.loads(first_block(page, title, "json"))
        assert answer.keys() == shown.keys()
        assert [result["index"] for result in answer["results"]] == [result["index"] for result in shown["results"]]
        assert answer["usage"] == shown["usage"]
        assert answer["meta"] == shown["meta"]
    else:
        assert [(rank["index"], rank.keys()) for rank in answer] == [(1, {"index", "score"}), (0, {"index", "score"})]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["rerank.md", "tei.md"])
def test_the_sdks_work_as_the_page_shows(serve: Serve, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    """The lines for Cohere's and Hugging Face's clients work with the address of a worker."""
    monkeypatch.setenv("NO_PROXY", "*")
    title = "# Rerank" if page == "rerank.md" else "# Text Embeddings Inference"
    code = first_block(page, title, "python")
    worker = serve(API_KEY="choose-one", SERVED_MODEL_NAME="BAAI/bge-m3")
    with Served(worker.operations) as door:
        lines = code.replace("localhost:8000", f"127.0.0.1:{door.port}")
        if page == "rerank.md":
            printed = run(lines.replace("print(result.index, ", "print((result.index, ").replace("score)", "score))"))
            assert [index for index, _ in printed] == [1, 0]
        else:
            assert run(lines) == [(2, 192)]


@pytest.mark.parametrize(
    ("page", "heading"), [("http.md", "In another terminal:"), ("running.md", "## Docker compose")]
)
def test_one_curl_ingests_and_one_searches(serve: Serve, double: GrpcDouble, page: str, heading: str) -> None:
    """The commands of the page do what they say, on a worker with the compose file's settings and a Qdrant server."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    settings = {
        key: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)
        for key, value in compose["services"]["worker"]["environment"].items()
    }
    commands = first_block(page, heading, "sh")
    key = "choose-one" if "Bearer" in commands else ""
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port)
    worker = serve(store=store, **{**settings, "MODEL_ID": "mini", "API_KEY": key})
    with Served(worker.operations) as door:
        here = commands.replace("localhost:8000", f"127.0.0.1:{door.port}").replace(
            "curl -s", "curl -s --noproxy '*' -w '\\n'"
        )
        done = subprocess.run(["/bin/sh", "-c", here], capture_output=True, text=True, timeout=60, check=True)
    store.close()
    stored, found = map(json.loads, done.stdout.splitlines())
    assert stored["upsert"] == {"collection": "notes", "stored": 1, "skipped": 0, "rejected": []}
    (hit,) = found["results"][0]["hits"]
    assert hit["payload"]["text"].startswith("rsync copies only")


def test_a_compressed_body_goes_in_one_pipe(serve: Serve) -> None:
    """The command of the page compresses a request, and curl reads the answer."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = first_block("http.md", "## Compression", "sh")
    with Served(serve(API_KEY="choose-one").operations) as served:
        here = command.replace("localhost:8000", f"127.0.0.1:{served.port}").replace("curl -s", "curl -s --noproxy '*'")
        done = subprocess.run(["/bin/sh", "-c", here], capture_output=True, text=True, timeout=60, check=True)
    assert len(json.loads(done.stdout)["results"][0]["dense"]) == 192


def test_a_job_is_accepted_polled_and_deleted(serve: Serve, tmp_path: Path) -> None:
    """The commands of the page send an ingest as a job, wait for its end and forget it."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    commands = first_block("http.md", "## Jobs", "sh")
    with Served(serve(API_KEY="choose-one").operations) as served:
        here = commands.replace("localhost:8000", f"127.0.0.1:{served.port}").replace("sleep 1", "sleep 0.1")
        here = here.replace("curl -s", "curl --noproxy '*' -s")
        done = subprocess.run(
            ["/bin/sh", "-c", here], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path
        )
    polled, deleted = map(json.loads, done.stdout.replace("}{", "}\n{").splitlines())
    assert polled == deleted
    assert polled["answer"]["upsert"] == {"collection": "notes", "stored": 1, "skipped": 0, "rejected": []}


@pytest.fixture
def calling(serve: Serve, double: GrpcDouble) -> Iterator[tuple[Client, int]]:
    """A worker that serves `mini` as BGE-M3, and the REST port of a server that calls it for documents."""
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port)
    worker = serve(store=store, SERVED_MODEL_NAME="BAAI/bge-m3")
    with Served(worker.operations) as door:
        front = InferenceFront(double, f"{door.url}/qdrant/inference")
        yield worker, front.port
        front.stop()
    store.close()


@pytest.mark.slow
def test_documents_of_the_python_client_are_stored_and_searched(calling: tuple[Client, int]) -> None:
    """The lines of the page find what the worker's own search finds in the same collection, in its order."""
    worker, port = calling
    code = first_block("qdrant-inference.md", "### Python", "python")
    assert code.count(SERVER) == 1
    assert code.count("size=1024") == 2
    found = run(code.replace(SERVER, f'"http://127.0.0.1:{port}", check_compatibility=False').replace("1024", "192"))
    search = {"operation": "search", "collection": "articles", "queries": ["send only what changed"]}
    (result,) = worker.good({**search, "rerank": "colbert", "limit": 3})["results"]
    assert [text for _, _, text in found] == [hit["payload"]["text"] for hit in result["hits"]]
    assert [score for _, score, _ in found] == pytest.approx([hit["score"] for hit in result["hits"]], abs=2e-3)


def test_documents_need_no_client_at_all(calling: tuple[Client, int]) -> None:
    """The three commands of the page create a collection, store a text and find it."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    commands = first_block("qdrant-inference.md", "### curl", "sh").replace("1024", "192")
    here = commands.replace("localhost:6333", f"127.0.0.1:{calling[1]}").replace(
        "curl -s", "curl -s --noproxy '*' -w '\\n'"
    )
    done = subprocess.run(["/bin/sh", "-c", here], capture_output=True, text=True, timeout=60, check=True)
    created, stored, found = map(json.loads, done.stdout.splitlines())
    assert created["result"] is True
    assert stored["result"]["status"] == "completed"
    (point,) = found["result"]["points"]
    assert point["payload"] == {"text": "rsync copies only the changed parts."}
