"""`bge-m3-qdrant complete` reports what became of every point, and goes on where it was interrupted."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import corpus
from embedder import Embedder
from qdrant_sink import PointId
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.transports.cli.complete import CompleteOptions, complete
from tests.command_line import PROGRAM, Ended, invoke
from tests.service.client import ENVIRONMENT, PATIENCE
from tests.service.test_completion import BOTH, TEXTS, Meddling, Site

ROOT = Path(__file__).parents[2]
CONFIG = json.dumps({"vectorNames": {"dense": ""}})


@pytest.fixture
def site(embedder: Embedder, store: EdgeStore) -> Site:
    """An empty site on Qdrant Edge."""
    return Site(store, embedder)


class Shared(Operations):
    """Operations over a store that the test closes."""

    def close(self) -> None:
        """Leave the model and the store open."""


def run(site: Site, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> Ended:
    """Run the command over the model and the store of the site."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name, value in {**ENVIRONMENT, "QDRANT_COLLECTION_CONFIG": CONFIG}.items():
        monkeypatch.setenv(name, value)
    return invoke("complete", *arguments, build=lambda settings: Shared(settings, site.embedder, site.store))


def test_a_complete_collection_is_a_success(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The summary is one line for a person or of JSON, and the status is 0."""
    site.fill(TEXTS[:5])
    ended = run(site, "notes", "--kinds", "sparse,colbert", monkeypatch=monkeypatch)
    assert (ended.status, ended.err) == (0, "")
    assert re.fullmatch(r"notes: 5 of 5 points completed \(0 were complete before\), in [\d.]+ s\n", ended.out)
    again = run(
        site, "notes", "--kinds", "sparse", "--kinds", "colbert", "--alias", "x", "--json", monkeypatch=monkeypatch
    )
    assert (again.status, again.err) == (0, "the vectors were added in place, so --alias did not apply\n")
    assert json.loads(again.out) | {"seconds": 0} == {
        "collection": "notes", "points": 5, "completed": 0, "already": 5, "without_text": 0, "without_weights": 0,
        "rejected": 0, "vanished": 0, "pending": 0, "truncated": 0, "seconds": 0, "unfinished": [],
    }  # fmt: skip


def test_unfinished_points_are_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status is 1; each point without a text is named with its id and the reason."""
    ids = site.fill(["a fox", *[None] * 12])
    ended = run(site, "notes", "--kinds", "sparse", monkeypatch=monkeypatch)
    assert ended.status == 1
    assert ended.out.startswith("notes: 1 of 13 points completed (0 were complete before), in ")
    assert ended.out.endswith(" s; 12 without a text\n")
    lines = ended.err.splitlines()
    assert f"point {ids[1]}: payload: must have a text under 'text', got none" in lines
    assert (len(lines), lines[-1]) == (11, "further points are not shown; use --json for more")
    named = json.loads(run(site, "notes", "--kinds", "sparse", "--json", monkeypatch=monkeypatch).out)["unfinished"]
    assert [point["id"] for point in named] == sorted(
        (i if isinstance(i, int) else str(i) for i in ids[1:]), key=lambda i: (isinstance(i, str), i)
    )
    assert {point["code"] for point in named} == {"invalid_payload"}


def test_a_copy_says_where_the_alias_leads(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --into the points are copied, and the alias leads to the copy."""
    site.fill(TEXTS[:3])
    ended = run(site, "notes", "--kinds", "sparse", "--into", "new", "--alias", "current", monkeypatch=monkeypatch)
    assert ended.status == 0
    assert ended.out.startswith("new: 3 of 3 points completed")
    assert ended.out.endswith("; 3 copied; the alias 'current' moved\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("notes", "--kinds", "sparse", "--text-key", "body"), "--text-key must be the payload key of the texts"),
        (("notes", "--kinds", "sparse", "--into", "new"), "--alias is required: the points are copied"),
        (("missing", "--kinds", "sparse"), "collection 'missing' does not exist"),
    ],
)
def test_what_cannot_begin_says_why(
    site: Site, arguments: Sequence[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status is 2, and the summary has the reason in the words of the command."""
    site.fill(TEXTS[:2])
    ended = run(site, *arguments, monkeypatch=monkeypatch)
    assert ended.status == 2
    assert f": nothing was completed: {message}" in ended.out


def test_kinds_are_required() -> None:
    """Without kinds the command says so before it loads a model."""
    ended = invoke("complete", "notes")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("bge-m3-qdrant complete: --kinds is required, such as --kinds sparse,colbert.")


@pytest.mark.slow
def test_a_signal_ends_it_after_the_running_texts(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 2, what was written is counted, the way to go on is said, and the next run completes the rest."""
    handlers: dict[int, Any] = {}
    site.fill(TEXTS[:24])
    monkeypatch.setattr(signal, "signal", handlers.setdefault)
    monkeypatch.setattr("service.operations.completion_job.PART_MAX_POINTS", 5)
    interrupted = Meddling(site.store, lambda _: handlers[signal.SIGINT](signal.SIGINT, None))
    options = CompleteOptions(collection="notes", kinds=BOTH, as_json=True)
    assert complete(Operations(site.settings, site.embedder, interrupted), options) == 2
    captured = capsys.readouterr()
    first = json.loads(captured.out)
    assert first["error"] == "interrupted; run the same command again to continue"
    assert "stopping after the texts that are being embedded" in captured.err
    assert 5 <= first["completed"] < 24
    assert complete(Operations(site.settings, site.embedder, site.store), options) == 0
    second = json.loads(capsys.readouterr().out)
    assert (second["already"], second["completed"]) == (first["completed"], 24 - first["completed"])
    site.assert_complete()


def started(folder: Path) -> subprocess.Popen[str]:
    """The command in a process of its own, over a store in this folder."""
    return subprocess.Popen(
        [*PROGRAM, "complete", "notes", "--kinds", "sparse,colbert", "--json"],
        cwd=ROOT,
        env={
            **ENVIRONMENT,
            "QDRANT_PATH": str(folder / "edge"),
            "QDRANT_COLLECTION_CONFIG": CONFIG,
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "OMP_WAIT_POLICY": "PASSIVE",
            "LOG_LEVEL": "INFO",
            "TOKEN_BUDGET": "1024",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ready(folder: Path) -> subprocess.Popen[str]:
    """The command in a process whose model is loaded."""
    process = started(folder)
    assert process.stderr is not None
    while "model ready" not in (line := process.stderr.readline()):
        assert line, "the command ended before its model was loaded"
    return process


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(embedder: Embedder, tmp_path: Path) -> None:
    """After five kills and one undisturbed run, the collection equals one that was never disturbed."""
    draw = random.Random(5)
    texts = [f"{number}: {passage.text}" for number in range(3) for passage in corpus.passages()]
    contents: list[dict[PointId, Any]] = []
    midway = 0
    seconds = 0.0  # from the loaded model to the end, without a kill
    for name, kills in (("calm", 0), ("killed", 5)):
        folder = tmp_path / name
        store = EdgeStore(folder / "edge")
        Site(store, embedder).fill(texts)
        store.close()
        for _ in range(kills):
            process = ready(folder)
            time.sleep(draw.uniform(0.0, seconds / 3))
            process.kill()
            process.communicate(timeout=PATIENCE)
            store = EdgeStore(folder / "edge")
            done = store.count("notes", {"must": [{"has_vector": "colbert"}]})
            midway += 0 < done < len(texts)
            store.close()
        process = ready(folder)
        loaded = time.monotonic()
        out, err = process.communicate(timeout=4 * PATIENCE)
        seconds = time.monotonic() - loaded
        assert process.returncode == 0, err
        report = json.loads(out)
        assert report["already"] + report["completed"] == report["points"] == len(texts)
        store = EdgeStore(folder / "edge")
        site = Site(store, embedder)
        site.assert_complete()
        contents.append(
            {
                point: (payload, vectors.dense.tobytes(), vectors.sparse.indices.tolist(), vectors.colbert.shape)  # type: ignore[union-attr]
                for point, (payload, vectors) in site.stored().items()
            }
        )
        store.close()
    assert midway
    assert contents[0] == contents[1]
