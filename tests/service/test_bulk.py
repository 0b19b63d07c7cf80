"""A load from the command line: every line is stored or named, and the collection is ready when it says so."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from embedder.checkpoint import MINI
from embedder.embedder import Embedder
from embedder.encoder import PackedEngine
from embedder.pool import ModelPool
from embedder.tokenizer import Tokenizer
from qdrant_sink.edge import EdgeStore
from qdrant_sink.points import point_id, text_id
from service import bulk
from service.bulk import Bulk
from service.lines import JOB_BYTES, JOB_TEXTS, BadLineError, jobs, parse_line
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, PATIENCE
from tests.service.conftest import Serve

ROOT = Path(__file__).parents[2]


def line(**fields: Any) -> bytes:
    """A line of JSON."""
    return json.dumps(fields).encode() + b"\n"


class Loader:
    """Loads lines through operations over a store of its own."""

    def __init__(self, embedder: Embedder, store: EdgeStore, folder: Path) -> None:
        self._operations = Operations(Settings.from_environment(ENVIRONMENT), embedder, store)
        self._rejects = folder / "rejects.jsonl"
        self.bulk: Bulk

    def __call__(self, raw: Iterable[bytes], *options: str) -> bulk.Total:
        """What became of the lines."""
        arguments = bulk.arguments_of(["--collection", "notes", *options])
        with self._rejects.open("w", encoding="utf-8") as rejects:
            self.bulk = Bulk(self._operations, arguments, rejects)
            return self.bulk.load(raw)

    @property
    def rejected(self) -> list[dict[str, Any]]:
        """What the file of rejects holds."""
        return [json.loads(one) for one in self._rejects.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def load(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> Loader:
    """A loader into an empty Qdrant Edge."""
    return Loader(embedder, store, tmp_path)


def test_every_line_is_a_point(load: Loader, store: EdgeStore) -> None:
    """Lines with and without ids and payloads are stored, blank ones are nothing, and the total is exact."""
    lines = [line(text="a", id=1, payload={"n": 1}), b"\n", line(text="b"), line(text="c", id="three"), line(text="d")]
    total = load(lines)
    assert total.json("notes") | {"seconds": 0} == {
        "collection": "notes", "submitted": 4, "stored": 4, "skipped": 0, "rejected": 0, "seconds": 0,
    }  # fmt: skip
    assert store.count("notes") == 4


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "not JSON"),
        (b'{"text": "\xff"}', "not UTF-8 (byte 10)"),
        (b"[1]", "must be an object, got a list"),
        (line(txt="a"), "unknown field 'txt'"),
        (line(text=1), "text must be a string, got an integer"),
        (line(text="a", id=1.5), "id must be an integer or a string, got a number"),
        (line(text="a", id=True), "id must be an integer or a string, got a boolean"),
        (line(text="a", payload=[]), "payload must be an object, got a list"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_line_is_named_and_costs_no_other(load: Loader, raw: bytes, reason: str) -> None:
    """The file of rejects has its number and the reason, and nothing of what it says."""
    total = load([line(text="secret one"), raw, line(text="secret two")])
    assert (total.stored, total.rejected) == (2, 1)
    (one,) = load.rejected
    assert (one["line"], one["code"]) == (2, "invalid_request")
    assert reason in one["message"]
    assert "secret" not in json.dumps(one)


def test_a_point_that_is_refused_is_named_by_its_line(load: Loader) -> None:
    """What the job rejects by index is the line's number in the file, over all jobs."""
    lines = [line(text=f"text {n}", payload={"n": n if n != 3 else float("inf")}) for n in range(6)]
    total = load(lines)
    assert (total.stored, total.rejected) == (5, 1)
    assert [(one["line"], one["code"]) for one in load.rejected] == [(4, "invalid_payload")]


def test_rejected_lines_are_named_without_a_file_too(
    embedder: Embedder, store: EdgeStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first ten by number and reason, and then how to have them all."""
    operations = Operations(Settings.from_environment(ENVIRONMENT), embedder, store)
    arguments = bulk.arguments_of(["--collection", "notes", "--chunk-tokens", "32"])

    def told(lines: Iterable[bytes]) -> list[str]:
        Bulk(operations, arguments, None).load(lines)
        return [one for one in capsys.readouterr().err.splitlines() if "line" in one or "--rejects" in one]

    long = "The first words of a line that is cut. And the others."
    assert told([b"[1]", line(text="a"), line(text=long, payload={"n": float("inf")})])[:2] == [
        "line 1: must be an object, got a list",
        "line 3, chunk 0: payload.n: must be a finite number, got inf",
    ]
    many = told([b"nonsense"] * 13)
    assert many[:10] == [f"line {n}: not JSON (column 1)" for n in range(1, 11)]
    assert many[10:] == ["more were rejected; use --rejects FILE for all"]


def test_one_bad_id_does_not_take_its_job_along(load: Loader) -> None:
    """An id that is none, or a key that the worker writes, is refused for its own line."""
    lines = [
        line(text="a", id=1), line(text="b", id=-1), line(text="c", id=""), line(text="d", id=2**64),
        line(text="e", id=5, payload={"text": "mine"}), line(text="\ud800", id=6), line(text="g", id=7),
    ]  # fmt: skip
    total = load(lines)
    assert (total.stored, total.rejected) == (2, 5)
    assert sorted(one["line"] for one in load.rejected) == [2, 3, 4, 5, 6]


def test_a_second_run_goes_on_where_the_first_ended(load: Loader, store: EdgeStore) -> None:
    """With `--insert-only` what is there is skipped and counted, and nothing is doubled."""
    lines = [line(text=f"text {n}") for n in range(8)]
    load(lines[:5])
    total = load(lines, "--insert-only")
    assert (total.stored, total.skipped) == (8, 5)
    assert store.count("notes") == 8


def test_an_alias_moves_when_all_is_there(load: Loader, store: EdgeStore) -> None:
    """A search by the alias sees the old collection until the new one is complete and indexed."""
    load([line(text="old")], "--collection", "v1", "--alias", "live")
    assert store.count("live") == 1
    seen: list[int] = []

    def lines() -> Iterable[bytes]:
        for n in range(3):
            seen.append(store.count("live"))
            yield line(text=f"new {n}")

    load(lines(), "--collection", "v2", "--alias", "live")
    assert seen == [1, 1, 1]
    assert store.count("live") == 3


def test_long_documents_are_cut(load: Loader, store: EdgeStore) -> None:
    """`--chunk-tokens` stores a point per chunk, and the total counts points."""
    text = " ".join(f"Sentence number {n} speaks of topic {n % 7}." for n in range(40))
    total = load([line(text=text, id=1)], "--chunk-tokens", "48", "--chunk-overlap", "0")
    assert total.stored == store.count("notes") > 3


def test_a_load_that_is_stopped_says_so(load: Loader, store: EdgeStore) -> None:
    """After a signal no further job begins, what was begun is accounted for, and no alias is set."""

    def lines() -> Iterable[bytes]:
        yield from (line(text=f"text {n}") for n in range(JOB_TEXTS))
        load.bulk.stop()
        yield from (line(text=f"later {n}") for n in range(2 * JOB_TEXTS))

    total = load(lines(), "--vectors", "dense", "--alias", "live")
    assert total.failure is not None
    assert "interrupted" in total.failure
    assert total.stored == store.count("notes") < 2 * JOB_TEXTS
    assert total.rejected == 0


def test_an_interrupted_load_says_what_it_waits_for(load: Loader, capsys: pytest.CaptureFixture[str]) -> None:
    """Who presses Ctrl-C reads why nothing happens for a while, and that a second time ends it at once."""

    def lines() -> Iterable[bytes]:
        yield from (line(text=f"some words of text {n} " * 10) for n in range(JOB_TEXTS + 1))
        while not load.bulk._running:
            time.sleep(0.001)
        load.bulk.interrupt()

    total = load(lines())
    assert total.failure is not None
    assert "interrupted" in total.failure
    told = [one for one in capsys.readouterr().err.splitlines() if one.startswith("stopping")]
    assert told == [f"stopping: up to {JOB_TEXTS} texts under way are finished first; a second signal ends at once"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--chunk-tokens", "5"], "qdrant.chunk.maxTokens"),
        (["--collection", "../notes"], "qdrant.collection"),
        (["--text-key", ""], "qdrant.textKey"),
    ],
)
def test_an_option_that_cannot_be_is_no_fault_of_a_line(load: Loader, options: list[str], named: str) -> None:
    """The load ends before it begins, with the reason, and no line is rejected."""
    total = load([line(text="a")], *options)
    assert total.failure is not None
    assert named in total.failure
    assert (total.stored, total.rejected) == (0, 0)


def test_jobs_are_small_and_never_mix_ids() -> None:
    """A job has a bounded number of texts, characters and bytes, alone if it must, and ids for all lines or none."""
    lines = [parse_line(n, line(text=f"{n}" + "x" * 300_000)) for n in range(1, 6)]
    lines += [
        parse_line(6, line(text="x" * 2_000_000)),
        parse_line(7, line(text="x", id=1)),
        parse_line(8, line(text="x")),
    ]
    found = [[one.number for one in job.lines] for job in jobs(lines, "notes")]
    assert sorted(found) == [[1, 2, 3], [4, 5], [6], [7], [8]]
    heavy = [parse_line(n, line(text=f"{n}", payload={"body": "x" * (JOB_BYTES // 3)})) for n in range(1, 6)]
    heavy.append(parse_line(6, line(text="6", payload={"body": "x" * (2 * JOB_BYTES)})))
    assert [[one.number for one in job.lines] for job in jobs(heavy, "notes")] == [[1, 2], [3, 4], [5], [6]]
    many = [parse_line(n, line(text="x", id=n)) for n in range(1, 2 * JOB_TEXTS + 2)]
    assert [len(job.lines) for job in jobs(many, "notes")] == [JOB_TEXTS, JOB_TEXTS, 1]
    mixed = [parse_line(n, line(text=f"x {n}", **({"id": n} if n % 2 else {}))) for n in range(1, 101)]
    assert [len(job.lines) for job in jobs(mixed, "notes")] == [50, 50]


def test_a_later_line_wins(load: Loader, store: EdgeStore) -> None:
    """A point that comes again is stored as it came last, though jobs run side by side."""
    ids = range(JOB_TEXTS // 5)
    lines = [line(text=f"version {version} of {n}", id=n) for version in range(4) for n in ids]
    total = load(lines, "--vectors", "dense")
    assert (total.stored, total.rejected) == (len(lines), 0)
    wanted = {"must": [{"key": "text", "match": {"any": [f"version 3 of {n}" for n in ids]}}]}
    assert store.count("notes", wanted) == store.count("notes") == len(ids)


def test_a_later_line_wins_whatever_the_spelling_of_its_id(load: Loader, store: EdgeStore) -> None:
    """One UUID in several forms, or named where it would be derived, is one point: the last line is stored."""
    plain = "0f2f4a3e-5a70-4c5e-9a53-1b7f7b8f2c11"
    forms = [plain, plain.upper(), f"{{{plain}}}", plain.replace("-", ""), f"urn:uuid:{plain}"]
    derived = str(point_id("named", "notes"))
    lines = [line(text=f"version {n}", id=one) for n, one in enumerate([*forms, "named", derived])]
    of_text = str(text_id("the text", "notes"))
    total = load([*lines, line(text="the text"), line(text="another text", id=of_text)])
    assert (total.stored, total.rejected) == (9, 0), load.rejected
    assert store.count("notes") == 3
    stored = {"must": [{"key": "text", "match": {"any": ["version 4", "version 6", "another text"]}}]}
    assert store.count("notes", stored) == 3


@pytest.mark.parametrize("lines", [[], [b"nonsense"], [line(text="a"), b"nonsense"]])
def test_an_alias_never_moves_to_less_than_everything(load: Loader, store: EdgeStore, lines: list[bytes]) -> None:
    """A rejected line, or a pipe that brought nothing, leaves the alias where it was; unless that is allowed."""
    load([line(text="old"), line(text="older")], "--collection", "v1", "--alias", "live")
    load(lines, "--collection", "v2", "--alias", "live")
    assert store.count("live") == 2
    total = load(lines, "--collection", "v2", "--alias", "live", "--allow-rejected")
    assert store.count("live") == (total.stored or 2)


@pytest.mark.parametrize(
    ("lines", "options", "outcome"),
    [
        ([], [], (False, 1, "no line was read")),
        ([b"nonsense"], [], (False, 1, "not every line is stored")),
        ([line(text="a"), b"nonsense"], ["--allow-rejected"], (True, 1, None)),
        ([line(text="a")], [], (True, 0, None)),
    ],
)
def test_a_script_reads_whether_the_alias_moved(
    load: Loader,
    capsys: pytest.CaptureFixture[str],
    lines: list[bytes],
    options: list[str],
    outcome: tuple[bool, int, str | None],
) -> None:
    """The summary has it where there is an alias, and a load that left it is no success, with the reason."""
    moved, status, said = outcome
    nothing = load([])
    assert nothing.status == 0
    assert "alias" not in nothing.json("notes")
    total = load(lines, "--alias", "live", *options)
    assert (total.json("notes")["alias"], total.status) == (moved, status)
    told = [one for one in capsys.readouterr().err.splitlines() if "alias" in one]
    assert told == ([] if said is None else [f"the alias stays where it is: {said}"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--alias", "taken"], "alias: 'taken' is the name of a collection; choose another"),
        (["--alias", "notes"], "alias: 'notes' is the name of a collection; choose another"),
        (
            ["--collection", "live", "--alias", "other"],
            "collection: 'live' is an alias; an alias leads to a collection",
        ),
    ],
)
def test_an_alias_that_cannot_be_is_said_at_once(load: Loader, store: EdgeStore, options: list[str], why: str) -> None:
    """Not after hours of embedding: nothing is stored, and no collection is made."""
    load([line(text="old")], "--collection", "taken", "--alias", "live")
    total = load([line(text="a")], *options)
    assert (total.failure, total.stored) == (why, 0)
    assert store.collection_of("notes") is None
    assert store.count("taken") == 1


def test_a_graph_that_is_still_deferred_is_no_secret(
    load: Loader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who defers the graph of a collection in use learns that its searches stay slow, and what ends that."""

    async def broken(_self: Operations, _request: object) -> dict[str, Any]:
        raise KeyError("secret")

    load([line(text="a")])
    assert "still deferred" not in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr(Operations, "answer", broken)
        for options, said in (([], False), (["--defer-index"], True)):
            assert load([line(text="b")], *options).failure is not None
            assert ("the graph is still deferred" in capsys.readouterr().err) is said
    assert load([line(text="b")]).failure is None
    assert "still deferred" not in capsys.readouterr().err


def test_a_job_that_breaks_is_a_failure(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load never reports success for points of which it knows nothing."""

    async def broken(_self: Operations, _request: object) -> dict[str, Any]:
        raise KeyError("secret")

    monkeypatch.setattr(Operations, "answer", broken)
    total = load([line(text="a"), line(text="b", id=1)])
    assert (total.failure, total.stored) == ("internal error (KeyError)", 0)


def test_lines_that_break_off_are_a_failure(load: Loader, store: EdgeStore) -> None:
    """What was read before is stored; the load ends, and says that it is not all."""

    def lines() -> Iterable[bytes]:
        yield from (line(text=f"text {n}") for n in range(JOB_TEXTS + 1))
        raise ValueError("secret")

    total = load(lines(), "--vectors", "dense")
    assert total.failure == "internal error (ValueError)"
    assert total.stored == store.count("notes")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to write to")
def test_rejects_that_cannot_be_written_are_a_failure(embedder: Embedder, store: EdgeStore) -> None:
    """A full disk is named, and a rejected line is still counted."""
    operations = Operations(Settings.from_environment(ENVIRONMENT), embedder, store)
    with suppress(OSError), Path("/dev/full").open("w", encoding="utf-8") as full:
        total = Bulk(operations, bulk.arguments_of(["--collection", "notes"]), full).load([b"nonsense"] * 3)
    assert total.failure == "--rejects cannot be written (No space left on device)"
    assert total.rejected >= 1


def test_derived_ids_are_those_of_the_alias(load: Loader, store: EdgeStore, serve: Serve) -> None:
    """What a job writes or deletes through the alias is the point that the load has stored."""
    load([line(text="one"), line(text="two", id="second")], "--collection", "v1", "--alias", "live")
    worker = serve()
    worker.good({"texts": ["one", "two, again"], "isPassage": True, "qdrant": {"collection": "live"}})
    assert store.count("v1") == 3
    assert worker.good({"operation": "delete", "collection": "live", "ids": ["second"]}) == {"deleted": 1}


def test_a_pool_without_room_is_waited_for(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """A load takes what room there is, and rejects nothing for want of it."""
    tokenizer = Tokenizer(MINI)
    engine = PackedEngine(MINI, device="cpu", dtype="float32", dropped_ids=tokenizer.dropped_ids)
    pool = ModelPool([engine], lanes=1, token_budget=512, queue_tokens=4_000)
    small = Embedder(tokenizer, [engine], pool)
    try:
        total = Loader(small, store, tmp_path)([line(text=f"some words, number {n}") for n in range(1200)])
    finally:
        small.close()
    assert (total.stored, total.rejected, total.failure) == (1200, 0, None)


def test_a_line_is_refused_without_its_content() -> None:
    """The reason can be printed anywhere."""
    with pytest.raises(BadLineError, match=r"^not JSON \(column 10\)$"):
        parse_line(1, b'{"text": secret}')


def test_the_command_loads_and_reports(tmp_path: Path) -> None:
    """`python -m service.bulk` reads files and a pipe, prints one line of JSON, and its status says how it went."""
    (tmp_path / "one.jsonl").write_bytes(line(text="a") + b"nonsense\n")
    environment = {**ENVIRONMENT, "QDRANT_PATH": str(tmp_path / "edge"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "service.bulk", "--collection", "notes", str(tmp_path / "one.jsonl"), "-"]
    done = subprocess.run(
        command,
        input=line(text="b").decode(),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout) | {"seconds": 0} == {
        "collection": "notes", "submitted": 3, "stored": 2, "skipped": 0, "rejected": 1, "seconds": 0,
    }  # fmt: skip
    assert "Traceback" not in done.stderr


def test_a_signal_ends_a_load_that_waits_for_lines(tmp_path: Path) -> None:
    """SIGTERM while a pipe is silent: what was read is stored, the summary is printed, and the status says so."""
    environment = {**ENVIRONMENT, "QDRANT_PATH": str(tmp_path / "edge"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "service.bulk", "--collection", "notes"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(line(text="a") * 2)
        process.stdin.flush()
        assert b"graph" in process.stderr.readline()  # it is loaded, and reads
        process.send_signal(signal.SIGTERM)
        out = process.stdout.read() if process.stdout is not None else b""
        assert process.wait(PATIENCE) == 2
    assert "interrupted" in json.loads(out)["error"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_load_whose_model_is_not_there_yet(tmp_path: Path, number: signal.Signals) -> None:
    """At once, in one line and with the status of a load that was not finished."""
    environment = {**ENVIRONMENT, "QDRANT_PATH": str(tmp_path / "edge"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "service.bulk", "--collection", "notes"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while not (tmp_path / "edge").exists() and time.monotonic() < deadline:  # opened before the model is loaded
            time.sleep(0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (2, b"", b"interrupted; run the same command again to go on\n")


def test_the_command_says_what_is_wrong_before_it_loads(tmp_path: Path) -> None:
    """A file that is not there, or a store that somebody owns, is one line and status 2."""
    command = [sys.executable, "-m", "service.bulk", "--collection", "notes"]
    for options, named in (
        ([str(tmp_path / "absent.jsonl")], "absent.jsonl"),
        ([str(tmp_path)], "no such file"),
        (["--rejects", str(tmp_path / "absent" / "rejects.jsonl"), "-"], "--rejects cannot be written (No such file"),
    ):
        done = subprocess.run(
            [*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 2
        assert named in done.stderr
        assert "Traceback" not in done.stderr
