"""Names of collections and aliases: what a server takes, every store takes, and no two names are mixed up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from embedder.errors import InvalidRequest, NotFound
from qdrant_sink.edge import EdgeStore
from qdrant_sink.edge import directories as edge_directories
from qdrant_sink.edge.directories import entry_of, name_of
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store, check_collection, is_collection_name
from service.wire.fields import Collection
from tests.sink.grpc_double import GrpcDouble
from tests.sink.rest_front import RestFront
from tests.sink.samples import SCHEMA, draft
from tests.sink.stores import drop
from tests.sink.writing import write

WIRE: TypeAdapter[str] = TypeAdapter(Collection)

any_text = st.text(st.characters(), max_size=260) | st.text(st.sampled_from('.%2E5 aA/"\n'), max_size=8)
names = any_text.filter(is_collection_name)
short_names = names.filter(lambda name: len(os.fsencode(entry_of(name))) <= 255)

ODD_NAMES = [
    "my notes",
    "日本語",
    "mail@example",
    "👨‍👩‍👧",
    "नोट्स",
    "a#b%20c&d=e;f+g,h",
    "it's [a] {b} $c ~d ^e `f",
    ".hidden",
    "...",
    "-rf",
    " ",
    "%2E",
    "%",
]
"""Names that a server takes, of which every one is unusual in a path or a URL."""


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", *'<>:"|?*', "x" * 256, "日" * 256])
def test_a_name_that_no_server_takes_is_refused(store: Store, name: str) -> None:
    """Such a name is an error that states the rule, before anything is stored or looked up."""
    with pytest.raises(InvalidRequest, match=r"^collection: a name must have 1 to 255 characters other than < > : "):
        store.ensure(name, SCHEMA)
    with pytest.raises(InvalidRequest, match=rf'must not be "\." or "\.\.", got {len(name)} characters$'):
        store.count(name)


@given(any_text)
@example("a\n")
@example("a\x7f")
@example("a\x85b")
@example("a\u2028b")
@example("\ud800")
@example("." * 255)
def test_a_name_cannot_break_a_line_of_a_log(name: str) -> None:
    """A name with a control character or a line separator is refused, in requests too, and every name is one line."""
    if is_collection_name(name):
        check_collection(name)
        assert WIRE.validate_python(name) == name
        assert len(name.splitlines()) == 1
    else:
        with pytest.raises(InvalidRequest, match=r"^collection: .*characters$"):
            check_collection(name)
        with pytest.raises(ValidationError):
            WIRE.validate_python(name)


def _check_round_trip(store: Store, name: str, alias: str) -> None:
    store.ensure(name, SCHEMA)
    assert write(store, name, [draft(1), draft(2)], SCHEMA).stored == 2
    store.alias(alias, name)
    assert [store.collection_of(known) for known in (name, alias)] == [name, name]
    assert store.delete(alias, ids=[1]) == 1
    assert [store.count(known) for known in (name, alias)] == [1, 1]
    with pytest.raises(InvalidRequest, match="is the name of a collection"):
        store.alias(name, name)


@pytest.fixture
def rest_store(double: GrpcDouble) -> Iterator[ServerStore]:
    """The server adapter over REST."""
    front = RestFront(double)
    rest = ServerStore(f"http://127.0.0.1:{front.port}", transport="rest", deadline_s=3.0)
    yield rest
    rest.close()
    front.stop()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_every_store_takes_odd_names(request: pytest.FixtureRequest, store: Store, collection: str, name: str) -> None:
    """Collections and aliases with such names are created, filled, counted, emptied and found."""
    if request.node.get_closest_marker("server"):
        name += collection
        request.addfinalizer(lambda: drop(name))
    _check_round_trip(store, name, f"{name} {name}")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_pass_through_urls(rest_store: ServerStore, name: str) -> None:
    """Over REST the server gets every name as it is, since it is encoded in the URL."""
    _check_round_trip(rest_store, name, f"{name} {name}")


@pytest.mark.slow
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=short_names, alias=short_names, other=short_names)
@example(name=".lock", alias=".creating-", other=".creating-1")
@example(name="A", alias="a", other="a ")
@example(name="é", alias="e\u0301", other="É")
@example(name="%2Ea", alias=".a", other="%252Ea")
def test_the_embedded_store_keeps_every_name(
    tmp_path_factory: pytest.TempPathFactory, name: str, alias: str, other: str
) -> None:
    """A collection and its alias have their names after a restart, and other collections are not touched."""
    if len({name, alias, other}) < 3:
        return
    path = tmp_path_factory.mktemp("edge")
    store = EdgeStore(path)
    store.ensure(other, SCHEMA)
    _check_round_trip(store, name, alias)
    store.close()
    store = EdgeStore(path)
    assert [store.collection_of(known) for known in (name, alias, other)] == [name, name, other]
    assert [store.count(known) for known in (name, alias, other)] == [1, 1, 0]
    entries = {name_of(entry.name) for entry in path.iterdir()}
    assert entries == {name, alias, other, None}, "None is the lock"
    store.close()


@given(names, names)
@example("...", "%2E..")
@example(".a", "%2Ea")
@example("%", "%25")
def test_two_names_never_share_a_directory(one: str, two: str) -> None:
    """The name of a directory leads back to one collection, and no collection is hidden or leads elsewhere."""
    assert name_of(entry_of(one)) == one
    assert (entry_of(one) == entry_of(two)) == (one == two)
    assert not entry_of(one).startswith(".")
    assert "/" not in entry_of(one)


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True))
def test_plain_names_are_names_of_directories(name: str) -> None:
    """A collection with a plain name is in the directory of that name, as it always was."""
    assert entry_of(name) == name


def test_other_files_are_not_collections(tmp_path: Path) -> None:
    """A directory whose name is no escaped name, such as one of the system, is not taken for a collection."""
    for entry in (".Trash", "%2e", "a%20b", "%41", "x%", "a\nb", os.fsdecode(b"\xff")):
        assert name_of(entry) is None, entry
    store = EdgeStore(tmp_path)
    store.ensure("docs", SCHEMA)
    (tmp_path / "docs").rename(tmp_path / "%64ocs")
    for name in ("docs", "%64ocs"):
        with pytest.raises(NotFound):
            store.count(name)
    store.close()


@pytest.mark.parametrize("name", ["日" * 86, "%" * 86, "." + "%" * 85])
def test_a_name_that_is_too_long_for_the_disk_is_an_error(edge_store: EdgeStore, name: str) -> None:
    """The error states the limit of the disk and the size of the name in bytes, and nothing is stored."""
    edge_store.ensure("docs", SCHEMA)
    for call in (
        lambda: edge_store.ensure(name, SCHEMA),
        lambda: edge_store.count(name),
        lambda: edge_store.collection_of(name),
        lambda: edge_store.alias(name, "docs"),
    ):
        with pytest.raises(
            InvalidRequest,
            match=r"must take at most 255 bytes on the disk .* got 258 bytes for 86 characters; choose a shorter name",
        ):
            call()
    edge_store.ensure("日" * 85, SCHEMA)
    assert edge_store.count("日" * 85) == 0


def test_a_name_that_is_too_long_for_a_disk_is_an_error_of_every_store(store: Store, collection: str) -> None:
    """A collection whose directory cannot be made is an error of the request, with its size in bytes."""
    long = collection + "日" * 80
    with pytest.raises(InvalidRequest, match=rf"255.*, got {len(long.encode())} bytes for {len(long)} char"):
        store.ensure(long, SCHEMA)


def test_names_that_the_disk_does_not_distinguish_are_not_mixed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that ignores case, `docs` is neither read nor written where `Docs` is stored; the error says why."""
    store = EdgeStore(tmp_path)
    store.ensure("docs", SCHEMA)  # a disk that ignores case would open this directory, but list it as Docs
    store.close()
    store = EdgeStore(tmp_path)
    monkeypatch.setattr(edge_directories.Directories, "_entries", lambda _self: {"Docs", ".lock"})
    assert store.collection_of("docs") is None
    with pytest.raises(NotFound):
        store.count("docs")
    with pytest.raises(InvalidRequest, match=r"^collection: 'docs' differs from an existing name only in case or"):
        store.ensure("docs", SCHEMA)
    monkeypatch.undo()
    assert store.count("docs") == 0
    store.close()


def test_the_pattern_has_the_limits_of_the_rule() -> None:
    """Names of 255 characters are valid however many dots they begin with."""
    for dots in range(4):
        name = "." * dots + "x" * (255 - dots)
        assert is_collection_name(name)
        assert not is_collection_name(name + "x")
