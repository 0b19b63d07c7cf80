"""The examples of the README run as written, against a worker over HTTP and one behind an endpoint of RunPod."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedder import Embedder
from loopback_endpoint import ENDPOINT, KEY, RunPodEndpoint
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from service.wire import Codec
from tests.service.client import ENVIRONMENT
from tests.service.served import Served

README = Path(__file__).parents[1] / "README.md"
FRAMEWORKS = r"bge_m3_qdrant_client\.(langchain|llama_index|haystack) import"


def examples_of(page: Path) -> list[str]:
    """The code of a page in Python."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operations]:
    """A worker with the README's key over Qdrant Edge."""
    settings = Settings.from_environment({**ENVIRONMENT, "API_KEY": "choose-one"})
    embedder = Embedder.load(settings.model_options)
    store = EdgeStore(tmp_path_factory.mktemp("readme"))
    yield Operations(settings, embedder, store)
    store.close()
    embedder.close()


@pytest.mark.slow
def test_the_examples_run_as_written(
    operations: Operations, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each prints what its text promises; only addresses and the id of the endpoint are replaced."""
    codec = Codec(operations)
    examples = [
        code for code in examples_of(README) if not re.search(FRAMEWORKS, code)
    ]  # test_client_adapters runs those
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    printed: list[list[str]] = []
    with Served(operations) as served, RunPodEndpoint(lambda raw, _: asyncio.run(codec.job(raw))) as endpoint:
        replaced = {
            "http://localhost:8000": served.url,
            '"your-endpoint-id"': f'"{ENDPOINT}", base_url="{endpoint.base_url}"',
            "range(1000)": "range(300)",
        }
        for example in examples:
            code = example
            for shown, actual in replaced.items():
                code = code.replace(shown, actual)
            exec(compile(code, str(README), "exec"), {"__name__": "example"})  # noqa: S102 - the project's own README
            printed.append(capsys.readouterr().out.splitlines())
    stored, vectors, many, awaited, runpod = printed
    assert stored[0] == "2 ()"
    assert re.fullmatch(r"rsync \d+\.\d+", stored[1])
    assert vectors == ["float16 1 2", "uint32 float32"]
    assert [line for line in many if " of " in line][-1] == "300 of 300 texts"
    assert many[-1] == "300 points are stored"
    assert awaited == ["['rsync copies only the changed parts of files.', 'PhotoRec recovers deleted files.']"]
    assert runpod == ["302"]
