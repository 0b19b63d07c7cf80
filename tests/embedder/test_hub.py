"""The hub client's cache and failures, each in a fresh process because the client reads its settings once."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from embedder.checkpoint import DEFAULT_MODEL, DEFAULT_REVISION
from tests.embedder.checkpoints import as_bin, cached

ROOT = Path(__file__).parents[2]

LOCATE = """
import sys
from pathlib import Path
from embedder.checkpoint import find_checkpoint, find_tokenizer
from embedder.errors import ConfigurationError
what, model, revision, platform_cache = sys.argv[1:]
find = find_tokenizer if what == "tokenizer" else find_checkpoint
try:
    print(find(model, revision or None, platform_cache=Path(platform_cache)))
except ConfigurationError as error:
    print("refused:", error)
"""


def located(
    model: str,
    home: Path,
    *,
    what: str = "checkpoint",
    revision: str = "",
    platform_cache: str = "/nowhere",
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run `find_checkpoint` or `find_tokenizer` in a fresh process whose hub cache is under `home`."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    return subprocess.run(
        [sys.executable, "-c", LOCATE, what, model, revision, platform_cache],
        env=inherited | {"HF_HOME": str(home)} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run a local HTTP server and yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def forbidding_proxy() -> Iterator[str]:
    """Yield the address of an HTTP proxy that rejects every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with serving(Handler) as address:
        yield address


@contextmanager
def hub(checkpoint: Path, revision: str) -> Iterator[str]:
    """Yield the address of a hub that serves this checkpoint under any name."""
    tree = [
        {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name}
        for file in checkpoint.iterdir()
    ]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if "/tree/" in path:
                body = json.dumps(tree).encode()
            elif f"/resolve/{revision}/" in path:
                body = (checkpoint / path.rpartition("/")[2]).read_bytes()
            else:
                body = b""
            self.send_response(200)
            self.send_header("X-Repo-Commit", revision)
            self.send_header("ETag", path.rpartition("/")[2] or "root")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with serving(Handler) as address:
        yield address


@contextmanager
def silent_port() -> Iterator[str]:
    """Yield the address of a server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def closed_port() -> Iterator[str]:
    """Yield an address whose port stays closed while the context runs."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["bin", "safetensors"])
def test_a_model_is_downloaded_from_a_hub_that_answers(tmp_path: Path, small_checkpoint: Path, layout: str) -> None:
    """The default model's pinned revision is downloaded completely, as published or with safetensors."""
    if layout == "bin":
        as_bin(small_checkpoint)
    with hub(small_checkpoint, DEFAULT_REVISION) as endpoint:
        folder = Path(located(DEFAULT_MODEL, tmp_path / "home", HF_ENDPOINT=endpoint).stdout.strip())
    assert folder.is_relative_to(tmp_path / "home" / "hub")
    for file in folder.iterdir():
        assert file.read_bytes() == (small_checkpoint / file.name).read_bytes()


@pytest.mark.slow
def test_a_tokenizer_is_downloaded_without_the_weights(tmp_path: Path, small_checkpoint: Path) -> None:
    """A plan that only tokenizes does not wait for gigabytes of weights."""
    with hub(small_checkpoint, DEFAULT_REVISION) as endpoint:
        found = located(DEFAULT_MODEL, tmp_path / "home", what="tokenizer", HF_ENDPOINT=endpoint)
    names = {file.name for file in Path(found.stdout.strip()).iterdir()}
    assert {"config.json", "tokenizer.json"} <= names
    assert not {"model.safetensors", "pytorch_model.bin"} & names


@pytest.mark.parametrize(
    ("network", "cause"),
    [
        (closed_port, "ConnectionRefusedError"),
        pytest.param(silent_port, "TimeoutError|ReadTimeout", marks=pytest.mark.slow),
    ],
)
def test_without_network_the_refusal_comes_within_seconds(
    tmp_path: Path, network: Callable[[], AbstractContextManager[str]], cause: str
) -> None:
    """One line says that the hub cannot be reached and that `mini` needs no download; it names no host."""
    with network() as endpoint:
        started = time.monotonic()
        done = located(DEFAULT_MODEL, tmp_path, HF_ENDPOINT=endpoint)
        seconds = time.monotonic() - started
    (line,) = (done.stdout + done.stderr).splitlines()
    assert line.startswith("refused: MODEL_ID: ")
    assert re.search(rf"the Hugging Face hub cannot be reached \(({cause})\)", line)
    assert "set MODEL_ID=mini, a miniature that ships with the project" in line
    assert "127.0.0.1" not in line
    assert seconds < 20  # the bound is 5; the hub client's own attempts take 24, or have no limit


def test_a_cached_model_loads_without_network(tmp_path: Path, small_checkpoint: Path) -> None:
    """A hub that cannot be reached does not matter where the cache has the revision, as with `HF_HUB_OFFLINE=1`."""
    snapshot = cached(tmp_path / "hub", DEFAULT_MODEL, DEFAULT_REVISION, small_checkpoint)
    with closed_port() as endpoint:
        assert located(DEFAULT_MODEL, tmp_path, HF_ENDPOINT=endpoint).stdout.strip() == str(snapshot)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["bin", "safetensors"])
def test_a_cached_model_loads_offline(tmp_path: Path, small_checkpoint: Path, layout: str) -> None:
    """With `HF_HUB_OFFLINE=1` the hub's own cache serves the pinned revision, with `.bin` weights as published."""
    if layout == "bin":
        as_bin(small_checkpoint)
    snapshot = cached(tmp_path / "hub", DEFAULT_MODEL, DEFAULT_REVISION, small_checkpoint)
    assert located(DEFAULT_MODEL, tmp_path, HF_HUB_OFFLINE="1").stdout.strip() == str(snapshot)


def test_a_revision_that_the_platform_lacks_is_asked_of_the_hub(tmp_path: Path, small_checkpoint: Path) -> None:
    """An explicit `MODEL_REVISION` that the platform's cache lacks is downloaded, never replaced."""
    platform = tmp_path / "platform"
    other = cached(platform, DEFAULT_MODEL, "1" * 40, small_checkpoint)
    (other.parents[1] / "refs").mkdir()
    (other.parents[1] / "refs" / "main").write_text("1" * 40, encoding="utf-8")
    snapshot = cached(tmp_path / "hub", DEFAULT_MODEL, "2" * 40, small_checkpoint)
    process = located(DEFAULT_MODEL, tmp_path, revision="2" * 40, platform_cache=str(platform), HF_HUB_OFFLINE="1")
    assert process.stdout.strip() == str(snapshot)
    assert f"MODEL_REVISION={'2' * 40}" in process.stderr


def test_nothing_found_offline_names_the_way_out(tmp_path: Path) -> None:
    """Without network and cache the worker refuses to start and says what to check."""
    answer = located(DEFAULT_MODEL, tmp_path, HF_HUB_OFFLINE="1").stdout
    assert answer.startswith(f"refused: MODEL_ID: {DEFAULT_MODEL}")
    for way_out in ("HF_TOKEN", "HF_HUB_OFFLINE", "network", "local directory", "MODEL_ID=mini"):
        assert way_out in answer
    assert str(tmp_path) not in answer


def test_an_incomplete_cache_offline_is_refused_by_name(tmp_path: Path, small_checkpoint: Path) -> None:
    """The error for an incomplete download lists the missing files."""
    (small_checkpoint / "model.safetensors").unlink()
    cached(tmp_path / "hub", DEFAULT_MODEL, DEFAULT_REVISION, small_checkpoint)
    answer = located(DEFAULT_MODEL, tmp_path, HF_HUB_OFFLINE="1").stdout
    assert answer.startswith("refused: MODEL_ID: the checkpoint lacks model.safetensors or pytorch_model.bin")


@pytest.mark.slow
def test_a_proxy_that_forbids_is_a_refusal_to_start(tmp_path: Path) -> None:
    """Every error of the hub client's HTTP library becomes a refusal to start that says what to check."""
    with forbidding_proxy() as proxy:
        answer = located("me/tuned", tmp_path, HTTPS_PROXY=proxy).stdout
    assert answer.startswith("refused: MODEL_ID: me/tuned")
    assert "network" in answer
    assert "127.0.0.1" not in answer


def test_a_name_that_the_hub_does_not_allow_is_refused(tmp_path: Path) -> None:
    """A name that is invalid on the hub is a refusal to start, not a crash."""
    answer = located("my models/tuned", tmp_path, HF_HUB_OFFLINE="1").stdout
    assert answer.startswith("refused: MODEL_ID")
