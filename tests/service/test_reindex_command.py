"""`bge-m3-qdrant reindex` reports what became of every point, and goes on where it was interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedder import Embedder
from qdrant_sink import ColbertSchema, CollectionSchema, DenseSchema, Point, PointId, SparseSchema, Store
from qdrant_sink.edge import EdgeStore
from qdrant_sink.server import ServerStore
from service.operations import Operations
from service.settings import Settings
from service.transports.cli.reindex import ReindexOptions, copy
from tests.command_line import PROGRAM, invoke
from tests.service.client import ENVIRONMENT, PATIENCE
from tests.service.test_reindex import TEXTS, Meddling, Site
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import sample_vectors
from tests.sink.stores import drop, real_grpc_port, real_server

ROOT = Path(__file__).parents[2]
SIZE = 8
REASON = "dense: the norm must be 0.001 to 1e+18, got 0"
SCHEMA = CollectionSchema(DenseSchema(SIZE), SparseSchema())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the store that the command uses."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name, value in {**ENVIRONMENT, "QDRANT_PATH": str(tmp_path / "edge")}.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "edge"


def fill(store: Store, numbers: Sequence[int], collection: str = "notes-v1") -> None:
    """Store points with dense and sparse vectors."""
    store.ensure(collection, SCHEMA)
    points = []
    for number in numbers:
        vectors = sample_vectors(number, kinds=("dense", "sparse"))
        points.append(Point(number, {"text": f"text {number}"}, vectors.dense, vectors.sparse))
    for start in range(0, len(points), 500):
        store.upsert(collection, points[start : start + 500])


def prepared(folder: Path, numbers: Sequence[int] = range(12)) -> None:
    """Fill a collection with an alias, and close the store for the command."""
    store = EdgeStore(folder)
    fill(store, numbers)
    store.alias("notes", "notes-v1")
    store.close()


@pytest.mark.slow
def test_a_copy_a_way_back_and_the_end_of_the_old_collection(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output says what was done and how to go back; a copy needs no model, whose loading would fail here."""
    prepared(folder)
    monkeypatch.setenv("MODEL_ID", str(folder / "no model"))
    ended = invoke("reindex", "notes", "notes-v2", "--config", '{"dense": {"distance": "dot"}}')
    assert ended.status == 0
    assert ended.out.startswith("notes-v2: 12 points copied (0 were there before); 12 points of 12, in ")
    assert ended.out.endswith(" s; the alias 'notes' moved\n")
    lines = ended.err.splitlines()
    assert lines[-3:] == [
        "dense: vectors of the distance cosine are stored with norm 1, and stay so",
        "the old collection stays; the way back is: bge-m3-qdrant reindex notes-v1 notes-v2 --alias notes --back",
        "to delete it: bge-m3-qdrant reindex notes-v1 notes-v2 --drop-old",
    ]
    again = invoke("reindex", "notes", "notes-v2")
    assert (again.status, again.out) == (
        0, "notes-v2: the alias 'notes' leads here already; nothing was copied\n",
    )  # fmt: skip
    back = invoke("reindex", "notes-v1", "notes-v2", "--alias", "notes", "--back")
    assert (back.status, back.out) == (
        0, "the alias 'notes' leads to 'notes-v1' again, which has 12 points; 'notes-v2' has 12\n",
    )  # fmt: skip
    used = invoke("reindex", "notes-v1", "notes-v2", "--drop-old")
    assert (used.status, used.out) == (2, "")
    assert "FROM must not be in use, and the alias 'notes' leads to 'notes-v1'; move it first" in used.err
    assert invoke("reindex", "notes", "notes-v2", "--config", '{"dense": {"distance": "dot"}}').status == 0
    dropped = invoke("reindex", "notes-v1", "notes-v2", "--drop-old", "--json")
    assert json.loads(dropped.out) == {
        "from": "notes-v1", "points": 12, "collection": "notes-v2", "stored": 12, "alias": None, "deleted": True,
    }  # fmt: skip
    store = EdgeStore(folder)
    assert (store.collections(), store.aliases()) == (["notes-v2"], {"notes": "notes-v2"})
    store.close()


@pytest.mark.slow
def test_the_summary_in_json_names_rejected_points(folder: Path) -> None:
    """The status is 1, the alias stays, and each point that cannot be stored is named with the reason."""
    prepared(folder)
    store = EdgeStore(folder)
    store.upsert("notes-v1", [Point(77, {}, np.zeros(SIZE, np.float32))])
    store.close()
    ended = invoke("reindex", "notes", "notes-v2", "--json")
    assert ended.status == 1
    summary = json.loads(ended.out)
    assert summary | {"seconds": 0} == {
        "from": "notes-v1", "collection": "notes-v2", "points": 13, "stored": 12, "copied": 12, "already": 0,
        "rejected": 1, "without_text": 0, "pruned": 0, "truncated": 0, "late": 0, "finished": False, "alias": None,
        "previous": None, "losses": [], "seconds": 0,
        "unfinished": [{"id": 77, "code": "invalid_vector", "message": REASON}],
    }  # fmt: skip
    text = invoke("reindex", "notes", "notes-v2")
    assert f"point 77: {REASON}" in text.err
    assert "with --allow-rejected the alias moves without the points that were rejected" in text.err
    assert "; 1 rejected; 12 points of 13, in " in text.out
    moved = invoke("reindex", "notes", "notes-v2", "--allow-rejected")
    assert (moved.status, moved.out.endswith("; the alias 'notes' moved\n")) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing", "new"), "collection 'missing' does not exist"),
        (("notes-v1", "notes-v1"), "TO must be another collection, got 'notes-v1'"),
        (
            ("notes-v1", "new", "--kinds", "colbert"),
            "--kinds must be kinds that the collection has (dense, sparse) or that are embedded, got 'colbert'",
        ),
        (("notes-v1", "a/b"), "TO must have 1 to 255 characters other than"),
        (("notes-v1", "new", "--alias", "a/b"), "--alias must have 1 to 255 characters other than"),
        (("a/b", "new"), "FROM must have 1 to 255 characters other than"),
        (("notes-v1", "new", "--vector", "dense=x"), "--vector must name a dense vector of the collection ('dense')"),
    ],
)
def test_what_cannot_begin_says_why(folder: Path, arguments: Sequence[str], message: str) -> None:
    """The status is 2, and the summary has the reason in the words of the command."""
    prepared(folder)
    ended = invoke("reindex", *arguments)
    assert ended.status == 2
    assert ended.out.startswith(f"{arguments[1]}: nothing was copied: {message}")


def without_sparse(folder: Path) -> None:
    """Fill a collection whose schema has sparse vectors, and whose points have dense ones alone; with an alias."""
    store = EdgeStore(folder)
    store.ensure("notes-v1", SCHEMA)
    points = [Point(number, {}, sample_vectors(number, kinds=("dense",)).dense) for number in range(5)]
    store.upsert("notes-v1", points)
    store.alias("notes", "notes-v1")
    store.close()


def test_a_kind_that_no_point_has_is_refused_before_anything_is_created(folder: Path) -> None:
    """The message names the kinds that points have, and advises nothing that would empty the alias."""
    without_sparse(folder)
    for kinds in ("sparse", "dense,sparse"):
        ended = invoke("reindex", "notes", "notes-v2", "--kinds", kinds)
        assert ended.status == 2
        assert ended.out.endswith(
            ": nothing was copied: --kinds must be kinds that points of 'notes-v1' have (dense) or that are embedded, "
            "got 'sparse'; leave it out, or embed it\n"
        )
        assert "--allow-rejected" not in ended.err
    store = EdgeStore(folder)
    assert (store.collections(), store.aliases()) == (["notes-v1"], {"notes": "notes-v1"})
    store.close()
    assert invoke("reindex", "notes", "notes-v2").status == 0


def test_points_without_any_vector_to_copy_are_refused(folder: Path) -> None:
    """Every one of them would be rejected."""
    store = EdgeStore(folder)
    store.ensure("notes-v1", replace(SCHEMA, colbert=ColbertSchema(SIZE)))
    store.upsert("notes-v1", [Point(1, {}, colbert=sample_vectors(1).colbert)])
    store.close()
    config = '{"kinds": ["dense", "sparse"]}'
    ended = invoke("reindex", "notes-v1", "notes-v2", "--config", config)
    assert ended.status == 2
    assert ended.out.endswith(
        "nothing was copied: FROM must have points with vectors of the kinds to copy (dense, sparse), and no point of "
        "'notes-v1' has one; embed them anew\n"
    )
    assert EdgeStore(folder).collections() == ["notes-v1"]


def test_an_alias_does_not_move_from_points_to_none(folder: Path) -> None:
    """It moves with --allow-empty, back as well."""
    prepared(folder)
    store = EdgeStore(folder)
    store.ensure("empty", SCHEMA)
    store.close()
    stays = invoke("reindex", "empty", "empty-v2", "--alias", "notes")
    assert (stays.status, stays.out.endswith("; no alias moved\n")) == (1, True)
    assert "'empty-v2' has no points, and 'notes-v1', to which it leads, has some" in stays.err
    assert "with --allow-empty the alias moves nevertheless" in stays.err
    assert invoke("reindex", "empty", "empty-v2", "--alias", "notes", "--allow-empty").status == 0
    store = EdgeStore(folder)
    assert store.aliases() == {"notes": "empty-v2"}
    store.alias("notes", "notes-v1")
    store.close()
    back = ("reindex", "empty", "notes-v1", "--alias", "notes", "--back")
    refused = invoke(*back)
    assert (refused.status, refused.out) == (2, "")
    assert "FROM must have points to take the alias back" in refused.err
    assert "; --allow-empty moves it nevertheless" in refused.err
    assert invoke(*back, "--allow-empty").status == 0


def test_rejecting_every_point_is_not_advised(folder: Path) -> None:
    """An alias to none of the points would be no help, and does not move."""
    store = EdgeStore(folder)
    store.ensure("notes-v1", SCHEMA)
    store.upsert("notes-v1", [Point(7, {}, np.zeros(SIZE, np.float32))])
    store.alias("notes", "notes-v1")
    store.close()
    ended = invoke("reindex", "notes", "notes-v2")
    assert (ended.status, "--allow-rejected" in ended.err) == (1, False)
    forced = invoke("reindex", "notes", "notes-v2", "--allow-rejected")
    assert (forced.status, forced.out.endswith("; no alias moved\n")) == (1, True)
    assert "to which it leads, has some" in forced.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--back", "--drop-old"), "--back and --drop-old exclude each other"),
        (("--back",), "--back needs --alias"),
        (("--vector", "dense"), "'dense' must be KIND=NAME"),
        (("--vector", "dense=a", "--vector", "dense=b"), "dense is named twice"),
        (("--config", "{"), "reindex: --config: the config is not valid JSON"),
        (("--workers", "0"), "0 is not in the range"),
    ],
)
def test_wrong_arguments_are_refused(folder: Path, arguments: Sequence[str], message: str) -> None:
    """Nothing is opened before the arguments are known to be sound."""
    ended = invoke("reindex", "a", "b", *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err
    assert not folder.exists()


@pytest.mark.slow
def test_vectors_are_embedded_anew_from_another_store(embedder: Embedder, folder: Path, tmp_path: Path) -> None:
    """With --embed the model is loaded; with --from-path the old collection is in the embedded store of a directory."""
    source = EdgeStore(tmp_path / "source")
    site = Site(source, embedder)
    site.fill(TEXTS[:6])
    source.close()
    target = EdgeStore(folder)

    class Shared(Operations):
        def close(self) -> None:
            """Leave the model and the store open."""

    arguments = ("reindex", "notes-v1", "notes-v1", "--from-path", str(tmp_path / "source"), "--embed", "dense")
    ended = invoke(*arguments, build=lambda settings: Shared(settings, embedder, target))
    assert (ended.status, ended.out.startswith("notes-v1: 6 points copied")) == (0, True)
    assert target.count("notes-v1") == 6
    target.close()


def test_a_signal_ends_it_after_the_running_points(
    embedder: Embedder, store: EdgeStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 2, what was written is counted, and the next run copies the rest."""
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", handlers.setdefault)
    monkeypatch.setattr("qdrant_sink.copying.point_copy._ROUND_POINTS", 20)
    fill(store, range(200))
    settings = Settings.from_environment(ENVIRONMENT)
    interrupted = Meddling(store, "upsert", lambda _: handlers[signal.SIGINT](signal.SIGINT, None))
    options = ReindexOptions(collection="notes-v1", into="notes-v2", as_json=True)
    assert copy(Operations(settings, embedder, interrupted).reindex, options) == 2
    captured = capsys.readouterr()
    first = json.loads(captured.out)
    assert first["error"] == "interrupted; run the same command again to continue"
    assert "stopping after the points that are being written" in captured.err
    assert 20 <= first["copied"] < 200
    assert copy(Operations(settings, embedder, store).reindex, options) == 0
    second = json.loads(capsys.readouterr().out)
    assert (second["already"], second["copied"]) == (first["copied"], 200 - first["copied"])


KILLS = 4


class KilledCopy:
    """A collection, the command that copies it in processes of its own, and the stores of both.

    Args:
        kind: `edge`, `double` or `server`.
        folder: directory of the embedded store or of the double.
        prefix: beginning of the names of collections.
    """

    def __init__(self, kind: str, folder: Path, prefix: str) -> None:
        self.old, self.new, self.alias = f"{prefix}-v1", f"{prefix}-v2", prefix
        self._folder = folder
        self.double: GrpcDouble | None = None
        self._variables = {"QDRANT_PATH": str(folder / "edge")}
        if kind == "double":
            (folder / "double").mkdir()
            self.double = GrpcDouble(folder / "double")
            self._variables = {"QDRANT_URL": "http://127.0.0.1:6333", "QDRANT_GRPC_PORT": str(self.double.port)}
        elif kind == "server":
            url, key = real_server()
            self._variables = {"QDRANT_URL": url, "QDRANT_GRPC_PORT": str(real_grpc_port() or 6334)}
            self._variables |= {"QDRANT_API_KEY": key} if key else {}

    def opened(self) -> Store:
        """Open the store, which the command must not use meanwhile if it is the embedded one."""
        if "QDRANT_PATH" in self._variables:
            return EdgeStore(self._variables["QDRANT_PATH"])
        key, port = self._variables.get("QDRANT_API_KEY"), int(self._variables["QDRANT_GRPC_PORT"])
        return ServerStore(self._variables["QDRANT_URL"], key, grpc_port=port)

    def started(self) -> subprocess.Popen[str]:
        """Start the command, and return when it has begun to copy or has ended."""
        process = subprocess.Popen(
            [*PROGRAM, "reindex", self.alias, self.new, "--json", "--config", '{"dense": {"quantization": "int8"}}'],
            cwd=ROOT,
            env={**ENVIRONMENT, "LOG_LEVEL": "INFO", "PATH": os.environ["PATH"], **self._variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and not self._has_begun() and time.monotonic() < deadline:
            time.sleep(0.01)
        return process

    def stored(self) -> int:
        """Number of points of the new collection."""
        store = self.opened()
        try:
            return store.count(self.new) if self.new in store.collections() else 0
        finally:
            store.close()

    def _has_begun(self) -> bool:
        if "QDRANT_PATH" in self._variables:
            return (self._folder / "edge" / self.new).exists()
        return self.stored() > 0

    def assert_copied(self, points: int) -> None:
        """Compare all points by id, payload and every bit of their vectors."""
        store = self.opened()
        assert store.aliases()[self.alias] == self.new
        assert store.count(self.old) == store.count(self.new) == points
        after: PointId | None = None
        compared = 0
        while True:
            page, after = store.scroll(self.old, {}, False, limit=1000, after=after)
            before = store.fetch(self.old, list(page), True, ("dense", "sparse"))
            copies = store.fetch(self.new, list(page), True, ("dense", "sparse"))
            for point in page:
                old, new = before[point].vectors, copies[point].vectors
                assert copies[point].payload == before[point].payload
                assert old is not None
                assert new is not None
                np.testing.assert_allclose(np.asarray(new.dense), np.asarray(old.dense), atol=1e-6)
                assert old.sparse is not None
                assert new.sparse is not None
                assert new.sparse.indices.tobytes() == old.sparse.indices.tobytes()
                assert new.sparse.values.tobytes() == old.sparse.values.tobytes()
            compared += len(page)
            if after is None:
                break
        assert compared == points
        store.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "points"), [("edge", 6000), ("double", 6000), pytest.param("server", 100_000, marks=pytest.mark.server)]
)
def test_kills_at_any_moment_change_nothing(kind: str, points: int, tmp_path: Path) -> None:
    """After some kills and one undisturbed run, the new collection has every point of the old one, each once."""
    draw = random.Random(7)
    copying = KilledCopy(kind, tmp_path, f"test_{uuid.uuid4().hex}")
    store = copying.opened()
    fill(store, range(points), copying.old)
    store.alias(copying.alias, copying.old)
    store.close()
    midway = 0
    for _ in range(KILLS):
        process = copying.started()
        time.sleep(draw.uniform(0.0, 0.3 if points < 10_000 else 3.0))
        process.kill()
        process.communicate(timeout=PATIENCE)
        midway += 0 < copying.stored() < points
    process = copying.started()
    out, err = process.communicate(timeout=20 * PATIENCE)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert midway
    assert report["finished"] or report["already"] + report["copied"] == points
    copying.assert_copied(points)
    if kind == "server":
        drop(copying.alias)
    if copying.double is not None:
        copying.double.stop()
