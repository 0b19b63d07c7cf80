"""The examples run as a user would type them, and print what their page shows."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from loopback_endpoint import ENDPOINT, KEY, RunPodEndpoint

from embedder import Embedder
from qdrant_sink import Store
from qdrant_sink.server import ServerStore
from service.operations import Operations
from service.settings import Settings
from service.wire import Codec
from tests.service.client import ENVIRONMENT
from tests.service.served import Served
from tests.sink.grpc_double import GrpcDouble
from tests.sink.rest_front import RestFront
from tests.sink.stores import drop, real_grpc_port, real_server

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
EXAMPLES: Final = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
WAIT_MAX_S: Final = 120.0
WORKER_KEY: Final = "sesame"

SLOW: Final = r"^(?:import|from) (?:haystack|langchain|llama_index|mcp|ray|runpod)"
"""Imports that alone take more than a second."""

ELSEWHERE: Final = ("QDRANT_", "WORKER_", "RUNPOD_", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
"""Variables of the caller that would lead an example elsewhere."""


class Shown(NamedTuple):
    """What the page shows of an example."""

    command: str
    output: str


def shown() -> dict[str, Shown]:
    """The command and the output of each example by its file."""
    section = r"^## `(\w+\.py)`\n.*?^```sh\n(.*?)^```\n.*?^```text\n(.*?)^```"
    return {name: Shown(*rest) for name, *rest in re.findall(section, PAGE, re.DOTALL | re.MULTILINE)}


def collections() -> dict[str, str]:
    """The collection of each example by its file, empty for an example without one."""
    return dict(re.findall(r"^\| \[`(\w+\.py)`\]\(#[\w-]+\) \|.*\| *`?([\w-]*)`? *\|$", PAGE, re.MULTILINE))


@contextmanager
def double(root: Path) -> Iterator[tuple[Store, dict[str, str]]]:
    """A server double with its REST API, as a store of a worker and as variables."""
    server = GrpcDouble(root)
    front, store = RestFront(server), ServerStore("http://127.0.0.1:9", grpc_port=server.port)
    yield store, {"QDRANT_URL": f"http://127.0.0.1:{front.port}", "QDRANT_GRPC_PORT": str(server.port)}
    store.close()
    front.stop()
    server.stop()


@contextmanager
def real() -> Iterator[tuple[Store, dict[str, str]]]:
    """The server of `QDRANT_URL`, from which the collections of the examples are deleted before and after."""
    url, key = real_server()
    store = ServerStore(url, key, grpc_port=real_grpc_port())
    names = [name for name in collections().values() if name]
    variables = {name: value for name, value in os.environ.items() if name.startswith("QDRANT_")}
    drop(*names)
    yield store, variables
    drop(*names)
    store.close()


@pytest.fixture(scope="module")
def embedder() -> Iterator[Embedder]:
    """The model of `mini`."""
    loaded = Embedder.load(Settings.from_environment(ENVIRONMENT).model_options)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module", params=["double", pytest.param("server", marks=pytest.mark.server)])
def variables(
    request: pytest.FixtureRequest, embedder: Embedder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The variables of a worker over HTTP with a key, of a RunPod endpoint and of their Qdrant server."""
    settings = Settings.from_environment({**ENVIRONMENT, "SERVED_MODEL_NAME": "BAAI/bge-m3", "API_KEY": WORKER_KEY})
    with double(tmp_path_factory.mktemp("double")) if request.param == "double" else real() as (store, server):
        operations = Operations(settings, embedder, store)
        codec = Codec(operations)
        with Served(operations) as worker, RunPodEndpoint(lambda raw, _: asyncio.run(codec.job(raw))) as endpoint:
            yield {
                **server,
                "WORKER_URL": worker.url,
                "WORKER_API_KEY": WORKER_KEY,
                "RUNPOD_ENDPOINT_BASE_URL": endpoint.base_url,
                "RUNPOD_ENDPOINT_ID": ENDPOINT,
                "RUNPOD_API_KEY": KEY,
            }


def run(command: str, variables: dict[str, str]) -> str:
    """What a command prints in a shell in the project's directory, with the packages of this interpreter."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ELSEWHERE)}
    programs, sources = Path(sys.executable).parent, (ROOT, ROOT / "clients" / "python" / "src")
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] = os.pathsep.join(map(str, sources))
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=ROOT,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=WAIT_MAX_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same(printed: str, expected: str) -> None:
    """Assert that two outputs have the same words, and decimal numbers that differ only by rounding."""
    number = r"-?\d+\.\d+"
    assert re.sub(number, "N", printed) == re.sub(number, "N", expected)
    for value, wanted in zip(re.findall(number, printed), re.findall(number, expected), strict=True):
        assert float(value) == pytest.approx(float(wanted), abs=0.02), printed


def _cases() -> list[object]:
    sources = {name: (ROOT / "examples" / name).read_text(encoding="utf-8") for name in EXAMPLES}
    slow = {name for name, source in sources.items() if re.search(SLOW, source, re.MULTILINE)}
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in EXAMPLES]


@pytest.mark.parametrize("name", _cases())
def test_an_example_prints_what_its_page_shows(name: str, variables: dict[str, str]) -> None:
    """The command of the page runs without an error, and prints the lines of the page."""
    example = shown()[name]
    assert_same(run(example.command, variables), example.output)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_page_shows_each_example_with_its_output(name: str) -> None:
    """Each file has a row and a section with its command; what it stores is in a collection of its own."""
    assert f"examples/{name}" in shown()[name].command
    collection = collections()[name]
    if collection:
        assert collection.startswith("example-")
        assert f'"{collection}"' in (ROOT / "examples" / name).read_text(encoding="utf-8")


def test_the_page_shows_no_example_that_is_missing() -> None:
    """Every row and every section is that of a file, and no two examples share a collection."""
    assert set(shown()) == set(collections()) == set(EXAMPLES)
    names = [name for name in collections().values() if name]
    assert len(set(names)) == len(names)
