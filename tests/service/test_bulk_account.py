"""The account of a bulk load: every line that the collection does not have as it was given is counted and named."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedder import Embedder
from qdrant_sink import PointId, is_derived, point_id, text_id
from qdrant_sink.edge import EdgeStore
from service.bulk import LoadReport
from service.bulk.line import Origin
from service.bulk.line_index import IndexedLine, IndexFullError, LineIndex, StoredLine
from tests.command_line import invoke
from tests.service.test_bulk import Loader, line

UUID = "0f2f4a3e-5a70-4c5e-9a53-1b7f7b8f2c11"
LONG = " ".join(f"Sentence number {number} speaks of topic {number % 7}." for number in range(12))


@pytest.fixture
def load(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> Loader:
    """A loader into an empty Qdrant Edge."""
    return Loader(embedder, store, tmp_path / "rejects.jsonl")


def test_a_later_line_of_an_id_is_counted_and_named(load: Loader, store: EdgeStore) -> None:
    """Status 1, with the place of both lines; the collection has the later one."""
    report = load([line(text="a", id=1), line(text="b", id=2), line(text="c", id=1)])
    assert (report.lines, report.stored, report.replaced, report.points, report.status) == (3, 3, 1, 2, 1)
    assert load.rejected == [
        {
            "line": 1,
            "code": "replaced",
            "message": "replaced by line 3, which has the same id, and another text or payload",
            "other": {"line": 3},
        }
    ]
    assert store.count("notes") == 2


def test_later_lines_may_win(load: Loader) -> None:
    """With `--replace` they are counted, and neither named nor a fault; the alias moves only then."""
    lines = [line(text="a", id=1), line(text="c", id=1)]
    report = load(lines, "--alias", "live")
    assert (report.status, report.alias, len(load.rejected)) == (1, False, 1)
    assert load.said[-1] == "the alias is not set: not all lines are stored as given"
    assert load(lines, "--alias", "live", "--allow-rejected").alias is False
    report = load(lines, "--alias", "live", "--replace")
    assert (report.status, report.alias, report.replaced, load.rejected) == (0, True, 1, [])


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"text": "a", "payload": {"n": 1}}, {"text": "a"}, "has the same text, no id, and another payload"),
        ({"text": "a", "id": UUID}, {"text": "b", "id": UUID.upper()}, "has the same id, and another text or payload"),
        (
            {"text": "a"},
            {"text": "b", "id": str(text_id("a", "notes"))},
            "has the same point: it has the id that is derived from the text of the other",
        ),
        (
            {"text": "b", "id": str(text_id("a", "notes"))},
            {"text": "a"},
            "has the same point: this one has the id that is derived from the text of it",
        ),
        (
            {"text": "a", "id": "named"},
            {"text": "a", "id": str(point_id("named", "notes"))},
            "has the same id, and another text or payload",
        ),
    ],
    ids=["texts", "forms of a UUID", "derived first", "derived second", "derived of a name"],
)
def test_whatever_makes_two_lines_one_point_is_said(
    load: Loader, first: Mapping[str, Any], second: Mapping[str, Any], reason: str
) -> None:
    """Equal texts without ids, two forms of an id, and an id that is given where another is derived."""
    report = load([line(**first), line(**second)])
    assert (report.replaced, report.repeated, report.points, report.status) == (1, 0, 1, 1)
    assert [one["message"] for one in load.rejected] == [f"replaced by line 2, which {reason}"]


def test_a_repeated_line_is_no_fault(load: Loader) -> None:
    """The same id, text and payload again, whatever the order of its keys, and null for what is absent."""
    lines = [
        line(text="a", id=1, payload={"n": 1, "m": [2]}),
        line(text="a", id=1, payload={"m": [2], "n": 1}),
        line(text="b"),
        line(text="b", payload=None),
        line(text="b", payload={}),
    ]
    report = load(lines)
    assert (report.repeated, report.replaced, report.points, report.status) == (3, 0, 2, 0)
    assert report.tokens == 8  # each text once


def test_a_line_that_comes_back_stands(load: Loader, store: EdgeStore) -> None:
    """Of the same line before and after another one, both are in the collection, and only that other is not."""
    report = load([line(text="a", id=1), line(text="b", id=1), line(text="a", id=1)])
    assert (report.repeated, report.replaced, report.points) == (1, 1, 1)
    assert [(one["line"], one["other"]) for one in load.rejected] == [(2, {"line": 3})]


def test_a_rejected_line_replaces_nothing(load: Loader) -> None:
    """The line before it stays as it was given, and the rejected one is counted once, as rejected."""
    report = load([line(text="a", id=1), line(text="b", id=1, payload={"n": float("inf")})])
    assert (report.rejected, report.replaced, report.points, report.lines) == (1, 0, 1, 2)


def test_a_shorter_document_leaves_no_chunk_of_the_earlier_one(load: Loader, store: EdgeStore) -> None:
    """The points are those of the collection, and the lines are counted as lines."""
    report = load([line(text=LONG, id=1), line(text="short", id=1)], "--chunk-tokens", "32", "--chunk-overlap", "0")
    assert report.stored > 3
    assert (report.lines, report.replaced, report.points) == (2, 1, 1) == (2, 1, store.count("notes"))


def test_lines_of_several_files_are_named_by_their_files(
    embedder: Embedder, store: EdgeStore, tmp_path: Path, signals: None
) -> None:
    """Across the files of a run; without `--rejects` the first ten are on the terminal."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.csv"
    one.write_bytes(b"".join(line(text=f"text {number}", id=number) for number in range(12)))
    two.write_text("id,text\n" + "".join(f"{number},other\n" for number in range(12)), encoding="utf-8")
    ended = invoke("bulk", "--collection", "notes", str(one), str(two), build=Loader(embedder, store, None).build)
    assert ended.status == 1, ended.err
    named = [said for said in ended.err.splitlines() if "replaced" in said]
    which = "which has the same id, and another text or payload"
    assert named[0] == f"{one}, line 1: replaced by line 2 of {two}, {which}"
    assert named[10:] == ["further replaced lines are not shown; use --rejects FILE for all"]
    assert "; of 24 lines, 12 replaced by later ones: 12 points are in the collection" in ended.out


def test_a_point_that_was_kept_is_compared(load: Loader, store: EdgeStore) -> None:
    """With `--insert-only` a line is as it was given only if its point has the same text and payload."""
    load([line(text="a", id=1, payload={"n": 1}), line(text="b", id=2), line(text="c", id="three")])
    lines = [
        line(text="a", id=1, payload={"n": 1.0}),
        line(text="b", id=2),
        line(text="c", id="three"),
        line(text="d", id=4),
        line(text="e", id=4),
    ]
    report = load(lines, "--insert-only", batch_texts=4)
    assert (report.skipped, report.differing, report.points, report.status) == (4, 2, 4, 1)
    assert [(one["line"], one["code"], one["message"]) for one in load.rejected] == [
        (1, "differing", "its point exists with another text or payload, and is kept"),
        (
            5,
            "differing",
            "its point is kept as given by line 4, which has the same id, and another text or payload",
        ),
    ]
    report = load(lines, "--insert-only", "--allow-differing", batch_texts=4)
    assert (report.skipped, report.status, load.rejected) == (5, 0, [])


@pytest.mark.slow
@pytest.mark.parametrize(("texts", "differing"), [((LONG, LONG), 0), ((LONG, "short"), 1), (("short", LONG), 1)])
def test_the_chunks_that_were_kept_are_compared(load: Loader, texts: tuple[str, str], differing: int) -> None:
    """Also their number: a document that has more chunks than its line is not as it was given."""
    options = ("--chunk-tokens", "32", "--chunk-overlap", "0")
    assert load([line(text=texts[0], id=1)], *options).status == 0
    report = load([line(text=texts[1], id=1)], *options, "--insert-only")
    assert (report.differing, report.status) == (differing, differing)


def test_options_that_contradict_each_other_are_refused() -> None:
    """Before anything is read."""
    for options, said in (
        (["--replace", "--insert-only"], "--replace stores the last line of a point and --insert-only the first"),
        (["--allow-differing"], "--allow-differing needs --insert-only"),
    ):
        ended = invoke("bulk", "--collection", "notes", *options)
        assert (ended.status, ended.out) == (2, "")
        assert said in ended.err


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """A process whose files cannot be larger than this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _stored(number: int, *, key: int | None = None, content: int = 0, differs: bool = False) -> StoredLine:
    where = IndexedLine(Origin("a.jsonl"), number, has_id=True)
    identity = (number if key is None else key).to_bytes(16)
    return StoredLine(where, identity, content.to_bytes(16), 1, differs=differs)


def test_a_full_disk_is_said_with_the_way_out() -> None:
    """The index of the lines grows beyond its memory, and cannot be written."""
    index = LineIndex(keeps=False)
    with full_disk(1_000_000), pytest.raises(IndexFullError, match=r"free space in the folder of temporary files"):
        index.add(_stored(number) for number in range(200_000))
    index.close()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=30), st.booleans())
def test_the_index_agrees_with_a_dictionary(rows: list[tuple[int, int, bool]], keeps: bool) -> None:
    """Lines that stand, repeat and are lost, for the last and for the first line of each point."""
    rows = [(key, content, keeps and differs) for key, content, differs in rows]
    index = LineIndex(keeps=keeps)
    for number, (key, content, differs) in enumerate(rows):
        index.add([_stored(number, key=key, content=content, differs=differs)])
    standing = index.standing()
    lost = [(one.line.number, None if one.other is None else one.other.number) for one in index.lost()]
    index.close()
    stands: dict[int, tuple[int, int]] = {}
    for number, (key, content, differs) in enumerate(rows):
        if not differs and (not keeps or key not in stands):
            stands[key] = content, number
    wanted = [number for number, (key, content, differs) in enumerate(rows) if differs or stands[key][0] != content]
    assert [number for number, _ in lost] == wanted
    for number, other in lost:
        key = rows[number][0]
        assert other in (None, stands.get(key, (0, None))[1])
        assert other is not None or keeps
    assert standing.repeated == len(rows) - len(wanted) - len(stands)
    assert standing.points == len({key for key, *_ in rows})


@dataclass(frozen=True)
class Given:
    """A line with an id of these: none, a number, a name, two forms of a UUID, or the one derived of the text `a`."""

    id: str | int | None
    text: str
    payload: dict[str, Any] | None

    def in_collection(self, name: str) -> dict[str, Any]:
        """The fields of the line."""
        identity = str(text_id("a", name)) if self.id == "derived" else self.id
        return {"id": identity, "text": self.text, "payload": self.payload}


GIVEN = st.builds(
    Given,
    st.sampled_from([None, None, 7, "seven", UUID, UUID.upper(), "derived"]),
    st.sampled_from(["a", "b", LONG]),
    st.sampled_from([None, {}, {"n": 1}, {"n": 1.0}, {"n": float("inf")}]),
)


class Oracle:
    """Plays lines in their order into a dictionary.

    Args:
        name: name of the collection.
        stored: what is there before.
    """

    def __init__(self, name: str, stored: Mapping[PointId, dict[str, Any]] | None = None) -> None:
        self.name = name
        self.stored = dict(stored or {})
        self.rejected = 0
        self._keys: list[tuple[PointId, str]] = []

    def play(self, lines: Sequence[Given], *, keeps: bool) -> None:
        """Store lines."""
        for given_line in lines:
            fields = given_line.in_collection(self.name)
            payload = fields["payload"] or {}
            if payload.get("n") == float("inf"):
                self.rejected += 1
                continue
            identity = fields["id"]
            key = text_id(given_line.text, self.name) if identity is None else point_id(identity, self.name)
            wanted = {**payload, "text": given_line.text}
            if isinstance(identity, str) and is_derived(identity):
                wanted["id"] = identity
            if not keeps or key not in self.stored:
                self.stored[key] = wanted
            self._keys.append((key, json.dumps(wanted, sort_keys=True)))

    @property
    def lost(self) -> int:
        """Number of lines that are not stored as they were given."""
        return sum(json.dumps(self.stored[key], sort_keys=True) != wanted for key, wanted in self._keys)

    @property
    def repeated(self) -> int:
        """Number of lines that another line says too."""
        standing = [key for key, wanted in self._keys if json.dumps(self.stored[key], sort_keys=True) == wanted]
        return len(standing) - len(set(standing))


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    before=st.lists(GIVEN, max_size=4),
    lines=st.lists(GIVEN, min_size=1, max_size=12),
    keeps=st.booleans(),
    batch_texts=st.integers(1, 6),
)
def test_the_account_is_that_of_who_plays_the_lines_in_order(
    load: Loader, store: EdgeStore, before: list[Given], lines: list[Given], *, keeps: bool, batch_texts: int
) -> None:
    """Whatever collides, and however the lines are divided into batches: the collection and the report agree."""
    name = f"notes-{len(store.collections())}"
    earlier = Oracle(name)
    earlier.play(before, keeps=False)
    load([line(**one.in_collection(name)) for one in before], "--collection", name)
    oracle = Oracle(name, earlier.stored)
    oracle.play(lines, keeps=keeps)
    options = ("--insert-only",) if keeps else ()
    raw = [line(**one.in_collection(name)) for one in lines]
    report: LoadReport = load(raw, "--collection", name, *options, batch_texts=batch_texts)
    stored: dict[PointId, Any] = {}
    if store.collection_of(name) is not None:
        stored = {point: one.payload for point, one in store.scroll(name, {}, True, limit=100)[0].items()}
    assert stored == oracle.stored
    assert (report.replaced, report.differing)[keeps] == oracle.lost
    assert (report.repeated, report.rejected, report.lines) == (oracle.repeated, oracle.rejected, len(lines))
    assert report.status == bool(oracle.rejected or oracle.lost)
    named = [one for one in load.rejected if one["code"] in ("replaced", "differing")]
    assert len(named) == oracle.lost


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of the process is read from /proc")
def test_the_memory_of_the_index_does_not_grow_with_the_lines() -> None:
    """From 100 000 lines to a million by less than 20 MB, also while they are sorted."""
    sizes = []
    for count in (100_000, 1_000_000):
        index = LineIndex(keeps=False)
        for first in range(0, count, 500):
            index.add(_stored(number) for number in range(first, first + 500))
        assert index.standing().points == count
        sizes.append(_resident_bytes())
        index.close()
    assert sizes[1] - sizes[0] < 20_000_000
