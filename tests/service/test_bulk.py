"""A load from the command line: every line is stored or named, and the collection is ready when it says so."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from embedder import ConfigurationError, Embedder, InvalidRequest
from embedder.checkpoint import MINI
from embedder.scheduling import ModelPool
from embedder.tokenizer import Tokenizer
from qdrant_sink import CollectionSchema, DenseSchema, Store, StoreUnavailable, point_id, text_id
from qdrant_sink.edge import EdgeStore
from service.bulk import BulkLoad, LoadReport
from service.bulk.json_lines import parse_line, read_json_lines
from service.bulk.line import BadLine, BadLineError, Line
from service.bulk.line_batches import BATCH_MAX_BYTES, BATCH_MAX_TEXTS, batches
from service.bulk.raw_lines import LongLine
from service.bulk.reading import Reader, ReadOptions
from service.bulk.sources import sources_of
from service.operations import Operations
from service.operations.load_values import INTERRUPTED
from service.settings import Settings
from service.transports.cli.bulk import load as load_command
from service.transports.cli.bulk import load_options
from service.wire.fields import Limits
from tests.command_line import PROGRAM, bulk_options, invoke
from tests.service.client import ENVIRONMENT, PATIENCE, Client
from tests.service.conftest import Serve
from tests.service.doubles import CrowdedEmbedder, RaisingStore, Watched

ROOT = Path(__file__).parents[2]
COMMAND = [*PROGRAM, "bulk", "--collection", "notes", "--json"]


def environment(folder: Path) -> dict[str, str]:
    """The environment of a command with a store of its own, and nothing of the caller's."""
    return {**ENVIRONMENT, "QDRANT_PATH": str(folder / "edge"), "PATH": "/usr/bin:/bin", "HOME": str(folder)}


def line(**fields: Any) -> bytes:
    """A line of JSON."""
    return json.dumps(fields).encode() + b"\n"


RawLine = bytes | LongLine


class Kept(Operations):
    """Operations whose model and store are used again."""

    def close(self) -> None:
        """Do nothing."""


class Loader:
    """Loads lines into the collection `notes` through operations over one store.

    Args:
        embedder: the model.
        store: where points go.
        rejects: a file for rejected lines; None names them on the terminal.

    Attributes:
        bulk: the latest load.
        said: what its user has read on the terminal.
    """

    def __init__(self, embedder: Embedder, store: Store, rejects: Path | None) -> None:
        self._embedder, self._store = embedder, store
        self._core = Operations(Settings.from_environment(ENVIRONMENT), embedder, store)
        self._rejects = rejects
        self.bulk: BulkLoad
        self.said: list[str] = []

    def __call__(
        self,
        raw: Iterable[bytes | LongLine],
        *options: str,
        batch_texts: int = BATCH_MAX_TEXTS,
        overloaded_pause_s: float = 1.0,
    ) -> LoadReport:
        """What became of the lines."""
        if self._rejects is None:
            return self._load(raw, options, None, batch_texts, overloaded_pause_s)
        with self._rejects.open("wb") as rejects:
            return self._load(raw, options, rejects, batch_texts, overloaded_pause_s)

    def read(self, lines: Iterable[Line | BadLine]) -> LoadReport:
        """What became of lines that are read already."""
        limits = Limits(max_texts=self._core.settings.max_texts, max_length=self._core.max_length)
        options = load_options(bulk_options("--collection", "notes"), limits)
        self.bulk = BulkLoad(self._core, options, None, self.say)
        return self.bulk.run(lines)

    def _load(
        self,
        raw: Iterable[RawLine],
        options: Iterable[str],
        rejects: BinaryIO | None,
        batch_texts: int,
        overloaded_pause_s: float,
    ) -> LoadReport:
        limits = Limits(max_texts=self._core.settings.max_texts, max_length=self._core.max_length)
        self.said.clear()
        self.bulk = BulkLoad(
            self._core,
            load_options(bulk_options("--collection", "notes", *options), limits),
            rejects,
            self.say,
            batch_texts=batch_texts,
            overloaded_pause_s=overloaded_pause_s,
            progress=self.show,
        )
        return self.bulk.run(read_json_lines(raw))

    def show(self, report: LoadReport) -> None:
        """Show the progress."""

    def build(self, _settings: Settings) -> Operations:
        """The operations for a command, which closes them."""
        return Kept(Settings.from_environment(ENVIRONMENT), self._embedder, self._store)

    def say(self, text: str) -> None:
        """Tell the user."""
        self.said.append(text)

    @property
    def rejected(self) -> list[dict[str, Any]]:
        """What the file of rejects holds."""
        assert self._rejects is not None
        return [json.loads(rejection) for rejection in self._rejects.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def load(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> Loader:
    """A loader into an empty Qdrant Edge."""
    return Loader(embedder, store, tmp_path / "rejects.jsonl")


def test_every_line_is_a_point(load: Loader, store: EdgeStore) -> None:
    """Lines with and without ids and payloads are stored, blank ones are nothing, and the summary is exact."""
    lines = [line(text="a", id=1, payload={"n": 1}), b"\n", line(text="b"), line(text="c", id="three"), line(text="d")]
    report = load(lines)
    assert report.summary("notes") | {"seconds": 0} == {
        "collection": "notes", "lines": 4, "submitted": 4, "stored": 4, "skipped": 0, "rejected": 0, "repeated": 0,
        "replaced": 0, "differing": 0, "points": 4, "tokens": 16, "seconds": 0,
    }  # fmt: skip
    assert store.count("notes") == 4


def test_a_bad_line_is_named_and_costs_no_other(load: Loader) -> None:
    """The file of rejects has its number and the reason, and nothing of what it says."""
    bad: list[tuple[bytes, str, str]] = [
        (b"{", "invalid_request", "the line is not valid JSON (column "),
        (b'{"text": "\xff"}', "invalid_request", "the line is not valid UTF-8 (byte 10)"),
        (b"[1]", "invalid_request", "the line must be an object, got a list"),
        (line(txt="secret"), "invalid_request", "text is required; unknown field 'txt'"),
        (line(text=None), "invalid_request", "text is required"),
        (line(text=1), "invalid_request", "text must be a string, got an integer"),
        (line(text="secret", id=1.5), "invalid_id", "id: must be an integer or a string, got a number"),
        (line(text="secret", id=True), "invalid_id", "id: must be an integer or a string, got a boolean"),
        (line(text="secret", payload=[]), "invalid_payload", "payload: must be an object, got a list"),
        (b"[" * 100_000, "invalid_request", "the line is nested too deeply"),
    ]
    lines = [raw for wrong, *_ in bad for raw in (wrong, line(text="secret, but sound"))]
    report = load(lines)
    assert (report.stored, report.rejected) == (len(bad), len(bad))
    rejected = sorted(load.rejected, key=lambda rejection: int(rejection["line"]))
    for number, (rejection, (_, code, reason)) in enumerate(zip(rejected, bad, strict=True)):
        assert (rejection["line"], rejection["code"]) == (2 * number + 1, code)
        assert rejection["message"].startswith(reason)
        assert "secret" not in json.dumps(rejection)


def test_a_point_that_is_refused_is_named_by_its_line(load: Loader) -> None:
    """The number of a rejected line is that in the file, over all batches."""
    lines = [line(text=f"text {n}", payload={"n": n if n != 3 else float("inf")}) for n in range(6)]
    report = load(lines)
    assert (report.stored, report.rejected) == (5, 1)
    assert [(one["line"], one["code"]) for one in load.rejected] == [(4, "invalid_payload")]


def test_rejected_lines_are_named_without_a_file_too(embedder: Embedder, store: EdgeStore) -> None:
    """The first ten by number and reason, and then how to have them all."""
    load = Loader(embedder, store, None)

    def told(lines: Iterable[bytes]) -> list[str]:
        load(lines, "--chunk-tokens", "32")
        return [text for text in load.said if text.startswith("line") or "--rejects" in text]

    long = "The first words of a line that is cut. And the others."
    assert told([b"[1]", line(text="a"), line(text=long, payload={"n": float("inf")})])[:2] == [
        "line 1: the line must be an object, got a list",
        "line 3, chunk 0: payload.n: must be a finite number, got inf",
    ]
    many = told([b"nonsense"] * 13)
    assert many[:10] == [f"line {n}: the line is not valid JSON (column 1)" for n in range(1, 11)]
    assert many[10:] == ["further rejections are not shown; use --rejects FILE for all"]


def test_one_bad_id_does_not_take_its_batch_along(load: Loader) -> None:
    """An invalid id, or a payload key that the worker writes, is refused for its own line."""
    lines = [
        line(text="a", id=1), line(text="b", id=-1), line(text="c", id=""), line(text="d", id=2**64),
        line(text="e", id=5, payload={"text": "mine"}), line(text="\ud800", id=6), line(text="g", id=7),
    ]  # fmt: skip
    report = load(lines)
    assert (report.stored, report.rejected) == (2, 5)
    assert {one["line"]: one["code"] for one in load.rejected} == {
        2: "invalid_id", 3: "invalid_id", 4: "invalid_id", 5: "invalid_payload", 6: "invalid_request",
    }  # fmt: skip


def test_null_in_a_line_is_absence(load: Loader, store: EdgeStore) -> None:
    """A null id is derived from the text, a null payload is empty, and an unknown field that is null is ignored."""
    report = load([line(text="a", id=None, payload=None, title=None), line(text="a")])
    assert (report.stored, report.rejected, store.count("notes")) == (2, 0, 1)


def test_each_file_may_begin_with_a_byte_order_mark(load: Loader, store: EdgeStore) -> None:
    """A mark before the first line of any file is skipped, as editors write it."""
    mark = b"\xef\xbb\xbf"
    report = load([mark + line(text="a"), line(text="b"), mark + line(text="the first line of a second file")])
    assert (report.stored, report.rejected, store.count("notes")) == (3, 0, 3)


def test_a_file_that_holds_a_byte_order_mark_alone_is_empty(load: Loader, store: EdgeStore) -> None:
    """A blank first line, and an empty file, are no documents if an editor has written its mark before them."""
    mark = b"\xef\xbb\xbf"
    report = load([mark + b"\r\n", line(text="a"), mark])
    assert (report.stored, report.rejected, store.count("notes")) == (1, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--chunk-tokens", "32")], ids=["whole", "chunks"])
@pytest.mark.parametrize("ids", [True, False], ids=["ids", "derived ids"])
def test_a_lone_surrogate_costs_its_own_line(
    load: Loader, store: EdgeStore, options: tuple[str, ...], *, ids: bool
) -> None:
    """A text that is not valid Unicode is rejected by its line; all others of its batch are stored."""
    texts = ["one", "\ud800", "two", "three"]
    report = load([line(text=text, **({"id": n} if ids else {})) for n, text in enumerate(texts)], *options)
    assert (report.failure, report.stored, report.rejected, store.count("notes")) == (None, 3, 1, 3)
    assert load.rejected == [
        {"line": 2, "code": "invalid_request", "message": "text is not valid Unicode (a lone surrogate)"}
    ]


def test_a_line_that_is_too_long_is_rejected_with_its_number(load: Loader, store: EdgeStore) -> None:
    """The lines around it are stored, and the message names the limit and the size."""
    report = load([line(text="first"), LongLine(600_000_000), line(text="last")])
    assert (report.stored, report.rejected) == (2, 1)
    assert store.count("notes") == 2
    message = "the line must have at most 30000000 bytes, got 600000000; shorten text or payload"
    assert load.rejected == [{"line": 2, "code": "invalid_request", "message": message}]


def test_a_second_run_goes_on_where_the_first_ended(load: Loader, store: EdgeStore) -> None:
    """With `--insert-only` what is there is skipped and counted, and nothing is doubled."""
    lines = [line(text=f"text {n}") for n in range(8)]
    load(lines[:5])
    report = load(lines, "--insert-only")
    assert (report.stored, report.skipped) == (8, 5)
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
    """`--chunk-tokens` stores a point per chunk, and the summary counts points."""
    text = " ".join(f"Sentence number {n} speaks of topic {n % 7}." for n in range(40))
    report = load([line(text=text, id=1)], "--chunk-tokens", "48", "--chunk-overlap", "0")
    assert report.stored == store.count("notes") > 3


def test_a_load_that_is_stopped_says_so(load: Loader, store: EdgeStore) -> None:
    """After a signal no further batch begins, what was begun is accounted for, and no alias is set."""

    def lines() -> Iterable[bytes]:
        yield from (line(text=f"text {n}") for n in range(20))
        load.bulk.stop()
        yield from (line(text=f"later {n}") for n in range(40))

    report = load(lines(), "--vectors", "dense", "--alias", "live", batch_texts=20)
    assert report.failure == "interrupted; run the same command again to continue"
    assert report.stored == store.count("notes") < 40
    assert (report.rejected, report.alias, store.collection_of("live")) == (0, False, None)


class Waiting(Loader):
    """A loader whose user notes when the load says what it still waits for."""

    def __init__(self, embedder: Embedder, store: Store) -> None:
        super().__init__(embedder, store, None)
        self.stopping = threading.Event()

    def say(self, text: str) -> None:
        """Tell the user."""
        super().say(text)
        if text.startswith("stopping"):
            self.stopping.set()


class SlowIndex(RaisingStore):
    """A store whose index takes until it is closed."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.begun = threading.Event()
        self.closed = threading.Event()

    def build_index(self, collection: str, schema: CollectionSchema, *, timeout_s: float) -> None:
        """See `Store.build_index`."""
        self.begun.set()
        self.closed.wait(PATIENCE)
        raise StoreUnavailable("the store is closed")

    def close(self) -> None:
        """See `Store.close`."""
        self.closed.set()


def test_a_load_that_is_interrupted_while_the_index_is_built_ends(embedder: Embedder, store: EdgeStore) -> None:
    """Neither the load nor closing the store waits for the graph; who waits learns that it is not there."""
    slow = SlowIndex(store)
    load = Loader(embedder, slow, None)

    def interrupt() -> None:
        assert slow.begun.wait(PATIENCE)
        load.bulk.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    report = load([line(text="a")], "--alias", "live")
    thread.join()
    assert not slow.closed.is_set()
    assert (report.failure, report.stored, report.alias) == (INTERRUPTED, 1, False)
    assert load.said[-1].startswith("the HNSW graph is not built yet, so searches compare")
    load._core._store.close()
    assert slow.closed.is_set()


@pytest.mark.slow
def test_an_interrupted_load_says_what_it_waits_for(watched: Watched, store: EdgeStore) -> None:
    """Who presses Ctrl-C reads why nothing happens for a while, and that a second time ends it immediately."""
    load = Waiting(watched.embedder, store)
    watched.engine.batches.clear()

    def lines() -> Iterable[bytes]:
        yield from (line(text=f"text {n}") for n in range(6))
        while not watched.engine.batches:
            time.sleep(0.001)
        load.bulk.interrupt()
        load.stopping.wait(PATIENCE)
        watched.engine.gate.set()

    watched.engine.gate.clear()
    report = load(lines(), batch_texts=5)
    assert report.failure == "interrupted; run the same command again to continue"
    told = [text for text in load.said if text.startswith("stopping")]
    assert told == ["stopping after the running batches (5 lines at most); a second signal stops immediately"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--chunk-tokens", "64", "--text-key", "chunk"], "--text-key: 'chunk' is reserved for a field of a chunk"),
        (["--vectors", "dense,colbert"], "--vectors must be a kind of vector that the collection has (dense)"),
    ],
)
def test_an_option_that_no_line_can_satisfy_ends_the_load(
    load: Loader, worker: Client, capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    """What the store or the plan of the points finds is said once, and no line is rejected for it."""
    worker.operations.collections.catalogue.ensure(
        "notes", CollectionSchema(DenseSchema(worker.operations.hidden_size))
    )
    chosen = ("--vectors", "dense") if "--vectors" not in options else ()
    arguments = bulk_options("--collection", "notes", "--json", *chosen, *options)
    documents = [Line(number, f"text {number}", number, None) for number in range(1, 4)]
    assert load_command(worker.operations, arguments, documents) == 2
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["error"].startswith(named)
    assert (summary["lines"], summary["rejected"]) == (0, 0)
    assert "is reserved" not in captured.err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--load-id", "a/b"], "--load-id must have 1 to 64 letters, digits and . _ : -, and begin with a letter or"),
        (
            ["--load-id", "a" * 60, "--shard", "1/2"],
            "--load-id must have 1 to 64 letters, digits and . _ : -, and begin with a letter or a digit, the 7 of the",
        ),
    ],
)
def test_the_name_of_a_load_is_checked_as_it_was_given(
    worker: Client, capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    """A shard adds to the name, which the message says."""
    arguments = bulk_options("--collection", "notes", *options)
    assert load_command(worker.operations, arguments, [Line(1, "a", None, None)]) == 2
    assert capsys.readouterr().out.startswith(f"notes: nothing was loaded: {named}")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--chunk-tokens", "5"], "qdrant.chunk.maxTokens"),
        (["--collection", "../notes"], "qdrant.collection"),
        (["--text-key", ""], "qdrant.textKey"),
    ],
)
def test_an_invalid_option_is_the_fault_of_no_line(
    load: Loader, worker: Client, capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    """The load ends before it begins, its summary names the option, and no line is rejected."""
    with pytest.raises(InvalidRequest, match=named):
        load([line(text="a")], *options)
    arguments = bulk_options("--collection", "notes", "--alias", "live", "--json", *options)
    assert load_command(worker.operations, arguments, []) == 2
    summary = json.loads(capsys.readouterr().out)
    assert summary["error"].startswith(f"{options[0]} must ")
    assert (summary["submitted"], summary["stored"], summary["rejected"], summary["alias"]) == (0, 0, 0, False)


def test_batches_are_small() -> None:
    """A batch is bounded in texts, characters and bytes, or has one line alone."""
    lines = [parse_line(n, line(text=f"{n}" + "x" * 300_000)) for n in range(1, 6)]
    lines += [
        parse_line(6, line(text="x" * 2_000_000)),
        parse_line(7, line(text="x", id=1)),
        parse_line(8, line(text="x")),
    ]
    numbers = [[line.number for line in batch.lines] for batch in batches(lines, "notes")]
    assert numbers == [[1, 2, 3], [4, 5], [6], [7, 8]]
    heavy = [parse_line(n, line(text=f"{n}", payload={"body": "x" * (BATCH_MAX_BYTES // 3)})) for n in range(1, 6)]
    heavy.append(parse_line(6, line(text="6", payload={"body": "x" * (2 * BATCH_MAX_BYTES)})))
    assert [[line.number for line in batch.lines] for batch in batches(heavy, "notes")] == [[1, 2], [3, 4], [5], [6]]
    many = [parse_line(n, line(text="x", id=n)) for n in range(1, 2 * BATCH_MAX_TEXTS + 2)]
    assert [len(batch.lines) for batch in batches(many, "notes")] == [BATCH_MAX_TEXTS, BATCH_MAX_TEXTS, 1]
    assert [len(batch.lines) for batch in batches(many[:5], "notes", max_texts=2)] == [2, 2, 1]
    mixed = [parse_line(n, line(text=f"x {n}", **({"id": n} if n % 2 else {}))) for n in range(1, 101)]
    assert [len(batch.lines) for batch in batches(mixed, "notes")] == [100]


def test_a_later_line_wins(load: Loader, store: EdgeStore) -> None:
    """A point that comes again is stored as it came last, though batches run concurrently."""
    ids = range(20)
    lines = [line(text=f"version {version} of {n}", id=n) for version in range(4) for n in ids]
    report = load(lines, "--vectors", "dense", batch_texts=25)
    assert (report.stored, report.rejected) == (len(lines), 0)
    wanted = {"must": [{"key": "text", "match": {"any": [f"version 3 of {n}" for n in ids]}}]}
    assert store.count("notes", wanted) == store.count("notes") == len(ids)


def test_a_later_line_wins_whatever_the_spelling_of_its_id(load: Loader, store: EdgeStore) -> None:
    """One UUID in several forms, or named where it would be derived, is one point: the last line is stored."""
    plain = "0f2f4a3e-5a70-4c5e-9a53-1b7f7b8f2c11"
    forms = [plain, plain.upper(), f"{{{plain}}}", plain.replace("-", ""), f"urn:uuid:{plain}"]
    derived = str(point_id("named", "notes"))
    lines = [line(text=f"version {n}", id=one) for n, one in enumerate([*forms, "named", derived])]
    of_text = str(text_id("the text", "notes"))
    report = load([*lines, line(text="the text"), line(text="another text", id=of_text)])
    assert (report.stored, report.rejected) == (9, 0), load.rejected
    assert store.count("notes") == 3
    stored = {"must": [{"key": "text", "match": {"any": ["version 4", "version 6", "another text"]}}]}
    assert store.count("notes", stored) == 3


@pytest.mark.slow
@pytest.mark.parametrize("lines", [[], [b"nonsense"], [line(text="a"), b"nonsense"]])
def test_an_alias_never_moves_to_less_than_everything(load: Loader, store: EdgeStore, lines: list[bytes]) -> None:
    """A rejected line, or a pipe that brought nothing, leaves the alias where it was; unless that is allowed."""
    load([line(text="old"), line(text="older")], "--collection", "v1", "--alias", "live")
    load(lines, "--collection", "v2", "--alias", "live")
    assert store.count("live") == 2
    report = load(lines, "--collection", "v2", "--alias", "live", "--allow-rejected")
    assert store.count("live") == (report.stored or 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "options", "outcome"),
    [
        ([], [], (False, 1, "no line was read")),
        ([b"nonsense"], [], (False, 1, "not all points are stored")),
        ([line(text="a"), b"nonsense"], ["--allow-rejected"], (True, 1, None)),
        ([line(text="a")], [], (True, 0, None)),
    ],
)
def test_a_script_reads_whether_the_alias_moved(
    load: Loader,
    lines: list[bytes],
    options: list[str],
    outcome: tuple[bool, int, str | None],
) -> None:
    """The summary has it where there is an alias, and a load that left it is no success, with the reason."""
    moved, status, said = outcome
    nothing = load([])
    assert nothing.status == 0
    assert "alias" not in nothing.summary("notes")
    report = load(lines, "--alias", "live", *options)
    assert (report.summary("notes")["alias"], report.status) == (moved, status)
    told = [text for text in load.said if "alias" in text]
    assert told == ([] if said is None else [f"the alias is not set: {said}"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--alias", "taken"], "alias must not be the name of a collection, got 'taken'; choose another name"),
        (["--alias", "notes"], "alias must not be the name of a collection, got 'notes'; choose another name"),
        (
            ["--collection", "live", "--alias", "other"],
            "collection must not be an alias, got 'live'; give the collection itself",
        ),
    ],
)
def test_an_alias_that_cannot_be_is_said_before_the_load(
    load: Loader, store: EdgeStore, options: list[str], why: str
) -> None:
    """Not after hours of embedding: nothing is stored, and no collection is made."""
    load([line(text="old")], "--collection", "taken", "--alias", "live")
    report = load([line(text="a")], *options)
    assert (report.failure, report.stored) == (why, 0)
    assert store.collection_of("notes") is None
    assert store.count("taken") == 1


def test_a_graph_that_is_still_deferred_is_said(embedder: Embedder, store: EdgeStore) -> None:
    """Who defers the graph of a collection in use learns that its searches stay slow, and what ends that."""
    faulty = RaisingStore(store)
    load = Loader(embedder, faulty, None)

    def told() -> bool:
        return any(text.startswith("the HNSW graph is not built yet, so searches compare") for text in load.said)

    assert load([line(text="a")]).failure is None
    assert not told()
    faulty.failures["upsert"] = StoreUnavailable("Qdrant does not answer: UNAVAILABLE")
    assert load([line(text="b")]).failure is not None
    assert not told()
    assert load([line(text="b")], "--defer-index").failure is not None
    assert told()
    faulty.failures.clear()
    assert load([line(text="b")]).failure is None
    assert not told()


def test_a_batch_that_breaks_is_rejected(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """A load never reports success for points of which it knows nothing, and repeats nothing of a defect's words."""
    load = Loader(embedder, RaisingStore(store, existing=KeyError("secret")), tmp_path / "rejects.jsonl")
    report = load([line(text="a"), line(text="b", id=1)], "--insert-only")
    assert (report.stored, report.rejected, report.status) == (0, 2, 1)
    assert {(rejection["code"], rejection["message"]) for rejection in load.rejected} == {
        ("internal", "internal error (KeyError)")
    }


class Broken(Loader):
    """A loader whose terminal is gone when the first batch is done."""

    def show(self, report: LoadReport) -> None:
        """Fail to show the progress."""
        raise KeyError("secret")


def test_a_batch_that_ends_without_a_word_is_a_failure(embedder: Embedder, store: EdgeStore) -> None:
    """Whatever goes wrong beside an ingest ends the load, with the kind of the error."""
    report = Broken(embedder, store, None)([line(text="a"), line(text="b", id=1)])
    assert (report.failure, report.status) == ("internal error (KeyError)", 2)


def test_lines_that_break_off_are_a_failure(load: Loader, store: EdgeStore) -> None:
    """What was read before is stored; the load ends, and says that it is not all."""

    def lines() -> Iterable[bytes]:
        yield from (line(text=f"text {n}") for n in range(11))
        raise ValueError("secret")

    report = load(lines(), "--vectors", "dense", batch_texts=10)
    assert report.failure == "internal error (ValueError)"
    assert report.stored == store.count("notes")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to write to")
def test_rejects_that_cannot_be_written_are_a_failure(embedder: Embedder, store: EdgeStore) -> None:
    """A full disk is named, and a rejected line is still counted."""
    load = Loader(embedder, store, Path("/dev/full"))
    with suppress(OSError):  # raised again when the file is closed
        load([b"nonsense"] * 3)
    assert load.bulk.report.failure == "--rejects cannot be written (No space left on device)"
    assert load.bulk.report.rejected >= 1


def test_derived_ids_are_those_of_the_alias(load: Loader, store: EdgeStore, serve: Serve) -> None:
    """What a job writes or deletes through the alias is the point that the load has stored."""
    load([line(text="one"), line(text="two", id="second")], "--collection", "v1", "--alias", "live")
    worker = serve()
    worker.good({"texts": ["one", "two, again"], "isPassage": True, "qdrant": {"collection": "live"}})
    assert store.count("v1") == 3
    assert worker.good({"operation": "delete", "collection": "live", "ids": ["second"]}) == {"deleted": 1}


def test_a_pool_without_room_is_waited_for(watched: Watched, store: EdgeStore) -> None:
    """A load takes what room there is, and rejects nothing for want of it."""
    pool = ModelPool([watched.engine], batches_per_gpu=1, token_budget=128, queue_tokens=200)
    small = CrowdedEmbedder(Tokenizer(MINI), [watched.engine], pool)

    def lines() -> Iterable[bytes]:
        yield from (line(text=f"text {n}") for n in range(120))
        while not small.refused:
            time.sleep(0.001)
        watched.engine.gate.set()

    watched.engine.gate.clear()
    try:
        report = Loader(small, store, None)(lines(), batch_texts=30, overloaded_pause_s=0.02)
    finally:
        watched.engine.gate.set()
        small.close()
    assert (report.stored, report.rejected, report.failure) == (120, 0, None)


def test_a_line_is_refused_without_its_content() -> None:
    """The reason can be printed anywhere."""
    with pytest.raises(BadLineError, match=r"^the line is not valid JSON \(column 10\)$"):
        parse_line(1, b'{"text": secret}')


def test_the_command_loads_and_reports(tmp_path: Path) -> None:
    """`bge-m3-qdrant bulk` reads files and a pipe, prints one line of JSON, and its status says how it went."""
    (tmp_path / "one.jsonl").write_bytes(line(text="a") + b"nonsense\n")
    done = subprocess.run(
        [*COMMAND, str(tmp_path / "one.jsonl"), "-"],
        input=line(text="b").decode(),
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout) | {"seconds": 0} == {
        "collection": "notes", "lines": 3, "submitted": 3, "stored": 2, "skipped": 0, "rejected": 1, "repeated": 0,
        "replaced": 0, "differing": 0, "points": 2, "tokens": 8, "seconds": 0,
    }  # fmt: skip
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_signal_ends_a_load_that_waits_for_lines(tmp_path: Path) -> None:
    """SIGTERM while a pipe is silent: what was read is stored, the summary is printed, and the status says so."""
    with subprocess.Popen(
        COMMAND,
        cwd=ROOT,
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_load_whose_model_is_not_there_yet(tmp_path: Path, number: signal.Signals) -> None:
    """Immediately, in one line and with the status of a load that was not finished."""
    with subprocess.Popen(
        COMMAND,
        cwd=ROOT,
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while not (tmp_path / "edge").exists() and time.monotonic() < deadline:  # opened before the model is loaded
            time.sleep(0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (2, b"", b"interrupted; run the same command again to continue\n")


def test_a_wrong_file_leaves_no_collection(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """One message and status 2; from a pipe too, and from the second of two files what the first has is stored."""
    load = Loader(embedder, store, tmp_path / "rejects.jsonl")

    def of(*files: Path) -> LoadReport:
        return load.read(
            Reader(ReadOptions(), load.say).lines(sources_of(map(str, files), any_format=False, say=print))
        )

    nonsense, good = tmp_path / "nonsense.jsonl", tmp_path / "good.jsonl"
    nonsense.write_bytes(b"nonsense\n" * 1000)
    good.write_bytes(line(text="a"))
    report = of(nonsense)
    reason = "none of the first 20 lines is a document; line 1: the line is not valid JSON (column 1)"
    assert str(report.failure).startswith(f"{nonsense}: {reason}")
    assert (report.status, report.rejected, store.collection_of("notes")) == (2, 0, None)
    assert load([b"nonsense"]).status == 1
    assert store.collection_of("notes") is None
    report = of(good, nonsense)
    assert (report.status, report.stored, store.count("notes")) == (2, 1, 1)


def test_rejected_lines_are_corrected_and_loaded_again(
    embedder: Embedder, store: EdgeStore, tmp_path: Path, signals: None
) -> None:
    """`--rejects` says file, line and reason; `--rejected-lines` has the lines, once each, as JSON Lines."""
    lines, table = tmp_path / "lines.jsonl", tmp_path / "table.csv"
    lines.write_bytes(line(text="a") + b'{"text": "b"\n' + line(text="c", id=-1, payload={"n": 1}))
    table.write_text("id,text,url\n1,d,u\n2,,v\n", encoding="utf-8")
    rejects, again = tmp_path / "rejects.jsonl", tmp_path / "again.jsonl"

    keep = Loader(embedder, store, None).build
    arguments = ("bulk", "--collection", "notes", "--rejects", str(rejects), "--rejected-lines", str(again))
    ended = invoke(*arguments, str(lines), str(table), build=keep)
    assert ended.status == 1, ended.err
    reasons = sorted(map(json.loads, rejects.read_text(encoding="utf-8").splitlines()), key=lambda one: one["message"])
    assert [(one["file"], one["line"], one["message"]) for one in reasons] == [
        (str(table), 3, "'text' is required"),
        (str(lines), 3, "id: an integer id must be 0 to 18446744073709551615, got -1"),
        (str(lines), 2, "the line is not valid JSON (column 13)"),
    ]
    raw = again.read_bytes()
    assert sorted(raw.splitlines()) == [
        b'{"text": "", "id": 2, "payload": {"url": "v"}}',
        b'{"text": "b"',
        b'{"text": "c", "id": -1, "payload": {"n": 1}}',
    ]
    refused = invoke(*arguments, str(again), build=keep)
    assert (refused.status, again.read_bytes()) == (2, raw)
    assert f"{again} is read, and cannot take the rejected lines" in refused.err
    fixed = tmp_path / "fixed.jsonl"
    fixed.write_bytes(line(text="b") + line(text="c", id=3, payload={"n": 1}))
    assert invoke(*arguments, str(fixed), build=keep).status == 0
    assert store.count("notes") == 4
    assert (rejects.read_bytes(), again.read_bytes()) == (b"", b"")


def test_the_command_says_what_is_wrong_before_it_loads(tmp_path: Path) -> None:
    """A file that does not exist, or rejects that cannot be written, are one line on the terminal and status 2."""
    for options, named in (
        ([str(tmp_path / "absent.jsonl")], f"{tmp_path / 'absent.jsonl'}: there is no such file"),
        ([str(tmp_path)], f"{tmp_path}: the folder has no file of a known format"),
        ([str(tmp_path / "*.jsonl")], f"{tmp_path / '*.jsonl'}: no file has a name of this pattern"),
        (["--rejects", str(tmp_path / "absent" / "rejects.jsonl"), "-"], "--rejects cannot be written (No such file"),
    ):
        ended = invoke("bulk", "--collection", "notes", *options)
        assert (ended.status, ended.out) == (2, "")
        (said,) = ended.err.splitlines()
        assert said.startswith(f"bge-m3-qdrant bulk: {named}")
        assert str(tmp_path) in said


@pytest.mark.usefixtures("signals")
def test_the_command_loads_with_what_it_is_given(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """The builder's operations run the load and are closed after it; one that cannot build is status 2."""
    closed: list[bool] = []

    class Kept(Operations):
        def close(self) -> None:
            closed.append(True)

    def refuse(_settings: Settings) -> Operations:
        raise ConfigurationError("MODEL_ID: no such folder")

    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(line(text="a") + line(text="b"))
    arguments = ("bulk", str(lines), "--collection", "notes")

    def keep(_settings: Settings) -> Operations:
        return Kept(Settings.from_environment(ENVIRONMENT), embedder, store)

    ended = invoke(*arguments, "--json", build=keep)
    assert (ended.status, json.loads(ended.out)["stored"], store.count("notes")) == (0, 2, 2)
    assert closed == [True]
    ended = invoke(*arguments, build=keep)
    assert re.fullmatch(r"notes: 2 of 2 points stored \(0 were there before\), 0 rejected, in [\d.]+ s\n", ended.out)
    ended = invoke(*arguments, build=refuse)
    assert (ended.status, ended.err) == (2, "bge-m3-qdrant bulk: MODEL_ID: no such folder\n")
