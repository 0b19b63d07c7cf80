"""docs/runpod.md: its examples run as written against a RunPod endpoint on loopback, and its figures are measured."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest
from loopback_endpoint import ENDPOINT, KEY, Report, RunPodEndpoint
from loopback_server import Answer, LoopbackServer, Request

import corpus
from embedder import Embedder
from embedder.checkpoint import MINI, revision_of
from embedder.scheduling import ModelPool
from embedder.tokenizer import Tokenizer
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from service.wire import Codec
from tests.full_size_engine import FullSizeEngine
from tests.loopback import JobQueue, Worker
from tests.service.client import ENVIRONMENT, PATIENCE, Json
from tests.test_readme import assert_shows

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "runpod.md"
TEXT: Final = PAGE.read_text(encoding="utf-8")
VARIABLES: Final = {**ENVIRONMENT, "SERVED_MODEL_NAME": "mini,BAAI/bge-m3"}
IDS: Final = 100
"""Points of the examples at most, with ids from 0."""

QUEUE_MB: Final = 10
"""Maximum answer that the queue carries in megabytes, for `/run`."""

ENCODINGS: Final[dict[str, Json]] = {
    "lists": {},
    "base64, float32": {"encoding": "base64"},
    "base64, float16": {"encoding": "base64", "dtype": "float16"},
}
KINDS: Final = {
    "dense": ["dense"],
    "dense and sparse": ["dense", "sparse"],
    "all three kinds": ["dense", "sparse", "colbert"],
}
LONG: Final = [" ".join(passage.text for passage in corpus.passages()[start : start + 40]) for start in range(0, 80, 8)]
"""Texts of more than 512 tokens."""


Answering = Callable[[Any], Any]
"""The answer to the input of a job."""


@dataclass
class Gate:
    """A handler that answers as the worker. While the gate is closed, jobs report progress, and end when it opens.

    Attributes:
        answer: the worker's answer to the input of a job.
        open: set while jobs reach the worker.
    """

    answer: Answering
    open: threading.Event = field(default_factory=threading.Event)

    def __call__(self, raw: Any, report: Report) -> Any:
        """Answer a job."""
        if not self.open.is_set():
            report({"settled": 0, "points": 2})
            self.open.wait(PATIENCE)
            return {"error": "the job did not reach the worker"}
        return self.answer(raw)


@contextmanager
def in_process(root: Path) -> Iterator[Answering]:
    """The worker's handler over `mini` and Qdrant Edge, in this process."""
    operations = Operations.build(Settings.from_environment({**VARIABLES, "QDRANT_PATH": str(root)}))
    codec = Codec(operations)
    yield lambda raw: asyncio.run(codec.job(raw))
    operations.close()


@contextmanager
def through_sdk(root: Path) -> Iterator[Answering]:
    """The worker's program, to which RunPod's own SDK brings the jobs of a queue."""
    settings = {**VARIABLES, "QDRANT_PATH": str(root), "PYTHONPATH": str(ROOT)}
    with JobQueue() as queue, Worker(queue, cwd=ROOT, env=settings) as worker:
        worker.wait_for_first_poll(2 * PATIENCE)

        def answer(raw: Any) -> Any:
            posted = queue.result(queue.submit(raw), PATIENCE)
            return {"error": posted["error"], **posted["output"]} if "error" in posted else posted["output"]

        yield answer


@pytest.fixture(
    scope="module", params=[in_process, pytest.param(through_sdk, marks=pytest.mark.slow)], ids=["handler", "program"]
)
def answering(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answering]:
    """A worker's answers to the inputs of jobs."""
    with request.param(tmp_path_factory.mktemp("worker") / "store") as answer:
        yield answer


@pytest.fixture
def gate(answering: Answering) -> Iterator[Gate]:
    """An open gate before the worker, whose points are deleted after the test."""
    opened = Gate(answering)
    opened.open.set()
    yield opened
    answering({"operation": "delete", "collection": "notes", "ids": list(range(IDS))})


@pytest.fixture
def endpoint(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunPodEndpoint]:
    """The endpoint in front of the worker, with its key in the environment."""
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with RunPodEndpoint(gate) as served:
        yield served
        gate.open.set()


def section(heading: str) -> str:
    """The page from a heading to the next."""
    return TEXT.partition(f"{heading}\n")[2].partition("\n#")[0]


def code(heading: str, language: str) -> list[str]:
    """The blocks of a language below a heading."""
    return re.findall(rf"^```{language}\n(.*?)^```$", section(heading), re.DOTALL | re.MULTILINE)


def curl(command: str, endpoint: RunPodEndpoint) -> Json:
    """The answer to a command of the page."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    setup = f"export ENDPOINT={endpoint.base_url}/{ENDPOINT} RUNPOD_API_KEY={KEY}\n"
    done = subprocess.run(["/bin/sh", "-c", setup + command], capture_output=True, text=True, timeout=60, check=True)
    answer: Json = json.loads(done.stdout)
    return answer


def run(source: str, endpoint: RunPodEndpoint) -> None:
    """Run a program of the page; only the address and the id of the endpoint are replaced."""
    own = f'"{ENDPOINT}", base_url="{endpoint.base_url}"'
    replaced = {
        "https://api.runpod.ai/v2/your-endpoint-id": f"{endpoint.base_url}/{ENDPOINT}",
        'Client.runpod("your-endpoint-id"': f"Client.runpod({own}",
        "your-endpoint-id": ENDPOINT,
        "range(1000)": f"range({IDS})",
    }
    for written, actual in replaced.items():
        source = source.replace(written, actual)
    exec(compile(source, str(PAGE), "exec"), {"__name__": "example"})  # noqa: S102 - the project's own page


def test_the_lines_for_curl_have_the_answers_of_the_page(endpoint: RunPodEndpoint, gate: Gate) -> None:
    """An ingest as a job, its status and a search are answered as shown; a job that runs is cancelled."""
    submit, status, search = code("### curl", "sh")
    submitted, ended, found = map(json.loads, code("### curl", "json"))
    job = curl(submit, endpoint)
    endpoint.wait_for("COMPLETED")
    answers = [job, curl(status.replace("JOB_ID", job["id"]), endpoint), curl(search, endpoint)]
    for shown, answer in zip((submitted, ended, found), answers, strict=True):
        assert_shows({**shown, "id": answer["id"]}, answer)
    gate.open.clear()
    (cancel,) = re.findall(r"`(curl [^`]*cancel[^`]*)`", section("### curl"))
    (cancelled,) = re.findall(r'^`(\{"id".*\})`', section("### curl"), re.MULTILINE)
    job = curl(submit, endpoint)
    endpoint.wait_for("IN_PROGRESS")
    answer = curl(cancel.replace("JOB_ID", job["id"]), endpoint)
    assert {key: answer[key] for key in ("id", "status")} == {**json.loads(cancelled), "id": job["id"]}


@pytest.mark.slow
def test_runpods_package_runs_jobs(
    endpoint: RunPodEndpoint, gate: Gate, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program ingests and searches; a failed job has no message, and a job that runs has its progress."""
    import runpod

    monkeypatch.setattr(runpod, "endpoint_url_base", endpoint.base_url)
    (program,) = code("### RunPod's package", "python")
    run(program, endpoint)
    assert capsys.readouterr().out.splitlines() == [
        "COMPLETED 1",
        "rsync copies only the changed parts of files to another machine.",
    ]
    client = runpod.Endpoint(ENDPOINT)
    failed = client.run_sync({"operation": "search", "queries": ["a"], "collection": "missing"})
    assert failed.keys() == {"error_code", "retryable", "details"}
    assert (failed["error_code"], failed["retryable"]) == ("not_found", False)
    gate.open.clear()
    job = client.run({"operation": "count", "collection": "notes"})
    endpoint.wait_for("IN_PROGRESS")
    assert job.output() == {"settled": 0, "points": 2}
    assert job.cancel()["status"] == "CANCELLED"
    gate.open.set()
    assert added(client, endpoint, ["ab"], ["ab", "ab"]) == len("ab") + 4
    assert added(client, endpoint, ["\u6570"], ["\u6570\u6570"]) == 6
    assert added(client, endpoint, ["\N{GRINNING FACE}"], ["\N{GRINNING FACE}" * 2]) == 12


def added(client: Any, endpoint: RunPodEndpoint, fewer: list[str], more: list[str]) -> int:
    """The bytes by which a request of RunPod's package grows."""
    sizes = []
    for texts in (fewer, more):
        client.run_sync({"texts": texts, "vectors": ["dense"]})
        sizes.append(len(endpoint.requests[-1].content))
    return sizes[1] - sizes[0]


def test_openais_package_embeds(endpoint: RunPodEndpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """The program gets a vector and the list of models; an error with status 200 is the package's ValueError."""
    import openai

    (program,) = code("### OpenAI's package", "python")
    run(program, endpoint)
    assert capsys.readouterr().out == "192\n"
    with openai.OpenAI(base_url=f"{endpoint.base_url}/{ENDPOINT}/openai/v1", api_key=KEY) as client:
        assert [model.id for model in client.models.list()] == ["mini", "BAAI/bge-m3"]
        with pytest.raises(ValueError, match="No embedding data received"):
            client.embeddings.create(model="another", input="a")
    (rerank,) = code("### OpenAI's package", "sh")
    (ranking,) = curl(rerank, endpoint)["output"]
    assert [result["index"] for result in ranking["results"]] == [1]


def test_the_client_of_the_project_calls_the_endpoint(
    endpoint: RunPodEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program stores its notes, and gets arrays."""
    (program,) = code("### The client of this project", "python")
    run(program, endpoint)
    assert capsys.readouterr().out.splitlines() == ["100 ()", "float16 2"]


def test_a_webhook_gets_the_state_of_the_job(endpoint: RunPodEndpoint, gate: Gate) -> None:
    """The job of the page runs with its webhook and its policy, and the webhook gets what `/status` answers."""
    gate.answer({"texts": ["a"], "vectors": ["dense"], "qdrant": {"collection": "notes"}})
    posted = threading.Event()

    def receive(_: Request) -> Answer:
        posted.set()
        return Answer({})

    with LoopbackServer(receive) as receiver:
        (command,) = code("### Webhooks and policies", "sh")
        job = curl(command.replace("https://example.com/jobs", receiver.url), endpoint)
        assert posted.wait(PATIENCE)
        state = receiver.requests[0].json
    assert (state["id"], state["status"], state["output"]) == (job["id"], "COMPLETED", {"count": 1})


def test_a_failed_job_has_the_form_of_the_page(endpoint: RunPodEndpoint) -> None:
    """The message is under `error`, the rest under `output`."""
    (command,) = code("## Errors", "sh")
    (shown,) = code("## Errors", "json")
    answer = curl(command, endpoint)
    assert_shows({**json.loads(shown), "id": answer["id"]}, answer)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Codec]:
    """A worker whose vectors have the sizes of BGE-M3's, with the queue's limit on answers raised a hundredfold."""
    tokenizer, engine = Tokenizer(MINI), FullSizeEngine()
    pool = ModelPool([engine], batches_per_gpu=1, token_budget=8192, queue_tokens=100_000)
    embedder = Embedder(tokenizer, [engine], pool, revision_of(MINI))
    store = EdgeStore(tmp_path_factory.mktemp("store"))
    yield Codec(Operations(Settings.from_environment(ENVIRONMENT), embedder, store), 100 * QUEUE_MB)
    store.close()
    embedder.close()


def answered(codec: Codec, texts: int, tokens: int, **fields: Any) -> Json:
    """The answer to a request with this number of texts, each cut to this number of tokens."""
    request = {"texts": LONG[:texts], "isPassage": True, "maxLength": tokens, "includeText": False, **fields}
    answer: Json = asyncio.run(codec.job(request))
    return answer


def size(codec: Codec, texts: int, tokens: int, **fields: Any) -> int:
    """The bytes of an answer as RunPod's SDK writes it."""
    answer = answered(codec, texts, tokens, **fields)
    assert [result["tokens"] for result in answer["results"]] == [tokens] * texts
    return len(json.dumps({"output": answer}, ensure_ascii=False).encode())


def text_size(codec: Codec, tokens: int, **fields: Any) -> int:
    """The bytes by which an answer grows with a text, as a mean."""
    return (size(codec, len(LONG), tokens, **fields) - size(codec, 1, tokens, **fields)) // (len(LONG) - 1)


def row_size(codec: Codec, **encoding: Any) -> float:
    """The bytes of a ColBERT row."""
    sizes = [size(codec, 1, tokens, vectors=["colbert"], **encoding) for tokens in (20, 60)]
    return (sizes[1] - sizes[0]) / 40


def weights_of(codec: Codec, tokens: int) -> int:
    """The number of different tokens that a text of this length has, as a mean."""
    results = answered(codec, len(LONG), tokens, vectors=["sparse"])["results"]
    return sum(len(result["sparse"]["indices"]) for result in results) // len(results)


def weight_size(codec: Codec, **encoding: Any) -> float:
    """The bytes of a different token in a sparse vector."""
    sizes = [text_size(codec, tokens, vectors=["sparse"], **encoding) for tokens in (20, 512)]
    return (sizes[1] - sizes[0]) / (weights_of(codec, 512) - weights_of(codec, 20))


def grouped(number: int) -> str:
    """A number with spaces between thousands."""
    return f"{number:,}".replace(",", " ")


def rounded(number: float, digits: int) -> int:
    """The number with these digits that is nearest."""
    step: int = 10 ** max(len(str(int(number))) - digits, 0)
    return round(number / step) * step


def cut(number: int, digits: int) -> int:
    """The number with these digits that is below."""
    step: int = 10 ** max(len(str(number)) - digits, 0)
    return number // step * step


def test_the_table_of_bytes_is_measured(full_size: Codec) -> None:
    """Each part of an answer has the bytes of the page, which shows three digits."""
    parts: dict[str, Callable[..., float]] = {
        "a text with its dense vector": partial(text_size, full_size, 20, vectors=["dense"]),
        "each different token of its sparse vector": partial(weight_size, full_size),
        "each row of its ColBERT vectors, one per token but the first": partial(row_size, full_size),
    }
    for part, measure in parts.items():
        cells = [grouped(rounded(measure(**encoding), 3)) for encoding in ENCODINGS.values()]
        assert f"| {part} | {' | '.join(cells)} |" in TEXT
    assert f"{weights_of(full_size, 20)} of 20, and {weights_of(full_size, 512)} of 512" in TEXT
    stored = text_size(full_size, 20, vectors=["dense"], qdrant={"collection": "notes"})
    assert f"| a text that is stored, without its vectors | {stored} | | |" in TEXT


def fitting(codec: Codec, kinds: Sequence[str], encoding: str, tokens: int) -> int:
    """The number of texts whose vectors fit into an answer of the queue."""
    fields = ENCODINGS[encoding]
    one = text_size(codec, tokens, vectors=[kind for kind in kinds if kind != "colbert"], **fields)
    if "colbert" in kinds:
        one += int((tokens - 1) * row_size(codec, **fields))
    return QUEUE_MB * 1_000_000 // one


def test_the_table_of_texts_that_fit_is_measured(full_size: Codec) -> None:
    """The texts that fit into 10 MB are those of the page, which shows two digits."""
    rows = [("dense", "any"), *product(("dense and sparse", "all three kinds"), ("20", "512"))]
    for kinds, tokens in rows:
        length = 20 if tokens == "any" else int(tokens)
        counts = [fitting(full_size, KINDS[kinds], encoding, length) for encoding in ENCODINGS]
        assert f"| {kinds} | {tokens} | {' | '.join(grouped(cut(count, 2)) for count in counts)} |" in TEXT


@pytest.mark.parametrize("encoding", ["base64, float16", pytest.param("lists", marks=pytest.mark.slow)])
def test_one_text_more_than_fits_is_refused(full_size: Codec, encoding: str) -> None:
    """The texts that fit are answered within the queue's 10 MB, and one more is an error with its way out."""
    codec = Codec(full_size.core)
    most = fitting(full_size, KINDS["all three kinds"], encoding, 512)
    assert len(answered(codec, most, 512, **ENCODINGS[encoding])["results"]) == most
    refused = answered(codec, most + 1, 512, **ENCODINGS[encoding])
    assert (refused["error_code"], refused["retryable"]) == ("response_too_large", False)
    assert "send fewer texts" in refused["error"]
