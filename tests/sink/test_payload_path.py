"""Payload keys have one path language, and the store finds each key by the path that the language gives it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as edge
from hypothesis import example, given
from hypothesis import strategies as st

from qdrant_sink.conformance import Refusal, conform
from qdrant_sink.edge import EdgeStore
from qdrant_sink.errors import Difference
from qdrant_sink.payload_path import PayloadPath, canonical_path, canonical_selection_path, canonical_value_path
from qdrant_sink.points import PayloadKeys, Point
from qdrant_sink.schema import PayloadIndex
from qdrant_sink.schema_diff import CollectionDescription, differences, missing_indexes
from qdrant_sink.searching import SearchOptions, run
from tests.sink.samples import SCHEMA, draft, search_by
from tests.sink.writing import write

HINDI = "हिन्दी"

_key = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\\'), max_size=6) | st.sampled_from(
    ["", "a", "a.b", "a[]", "a[0]", "[]", " ", "ключ", HINDI, "क\u200dक", "é", "e\u0301", "\x00", "Ⓐ", "٣"]
)
_numbers = itertools.count()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("topic", ("topic",)),
        ("metadata.topic", ("metadata", "topic")),
        ("offers[].price", ("offers", None, "price")),
        ("offers[0][12].price", ("offers", 0, 12, "price")),
        ('"any key"."a.b[]"', ("any key", "a.b[]")),
        ('""."".a', ("", "", "a")),
        (f"{HINDI}.शीर्षक", (HINDI, "शीर्षक")),
        ("e\u0301t\u00e9-_1", ("e\u0301t\u00e9-_1",)),
    ],
)
def test_a_path_is_read(text: str, parts: tuple[str | int | None, ...]) -> None:
    """A path has the parts that its notation says, and the canonical path has the same."""
    path = PayloadPath.parse(text)
    assert path.parts == parts
    assert PayloadPath.parse(str(path)) == path
    assert canonical_path(text) == str(path)


@pytest.mark.parametrize(
    "text",
    ["", ".", "a.", ".a", "a..b", "[0]", "a[", "a[x]", "a[-1]", "a.[0]", "a b", 'a"b"', '"a', '"a"b', "a\\b", '"\\""'],
)
def test_an_invalid_path_is_refused_in_words(text: str) -> None:
    """The message says how to write a path and how long the text was. It does not contain the text or a pattern."""
    with pytest.raises(ValueError, match=r"^must be a path of keys such as topic, metadata\.topic, .* got ") as refusal:
        PayloadPath.parse(text)
    assert "^" not in str(refusal.value)


def test_uses_that_need_one_value_refuse_arrays() -> None:
    """`groupBy` and `tenantKey` take a path to one value, and `withPayload` selects whole arrays."""
    for text in ("a[]", "a[0].b"):
        with pytest.raises(ValueError, match="must be a path through objects to one value"):
            canonical_value_path(text)
        with pytest.raises(ValueError, match=r"^group_by: must be a path through objects to one value"):
            SearchOptions(group_by=text)
        with pytest.raises(ValueError, match=r"^tenant_key: must be a path through objects to one value"):
            replace(SCHEMA, tenant_key=text)
    assert canonical_selection_path("a[].b") == "a[].b"
    with pytest.raises(ValueError, match=r"^keys: must select whole arrays: write \[\] in place of an index"):
        PayloadKeys(("a[0]",))


@given(st.text('ab.[]"\\0 9-_é' + HINDI, max_size=12) | st.text(max_size=5))
@example("a[18446744073709551615]")
@example("a[000000000000000000000000000001]")
@example("Ⓐ\u200d")
def test_no_path_of_the_engine_is_refused(text: str) -> None:
    """Every path that the engine reads is read here with the same parts, and the engine reads every canonical path."""
    try:
        ours = PayloadPath.parse(text)
    except ValueError:
        with pytest.raises((ValueError, UnicodeEncodeError)):
            edge.IsNullCondition(text)
        return
    assert PayloadPath.parse(edge.IsNullCondition(str(ours)).key) == ours


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeStore]:
    """A store whose collections are named by number."""
    root: Path = tmp_path_factory.mktemp("paths")
    store = EdgeStore(root)
    yield store
    store.close()


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    assert isinstance(value, dict)
    return value


@pytest.mark.slow
@given(keys=st.lists(_key, min_size=1, max_size=3))
@example(keys=[HINDI, "", "a.b"])
@example(keys=[""])
def test_a_key_is_found_by_its_path_in_every_use(shared_store: EdgeStore, keys: list[str]) -> None:
    """The path of a key works as a filter, a group, a selection, an index and a tenant, whatever the key contains."""
    name, path = f"docs-{next(_numbers) % 4}", str(PayloadPath(tuple(keys)))
    schema = replace(SCHEMA, payload_indexes={path: "keyword"}, tenant_key=path)
    shared_store.ensure(name, SCHEMA)
    payloads = [{**_nested(keys, value), "other\x01": 1} for value in ("x", "x", "y")]
    write(shared_store, name, [draft(i, payload=payload) for i, payload in enumerate(payloads)], SCHEMA)
    where = {"must": [{"key": path, "match": {"value": "x"}}]}
    vector = draft(0).vectors.dense
    assert shared_store.count(name, where) == 2
    grouped = search_by(dense=vector, using=("dense",), group_by=path)
    [hits] = run(shared_store, name, [grouped])
    assert {hit.group for hit in hits} == {"x", "y"}
    assert len(hits) == 2
    for excluded, expected in ((False, _nested(keys, "x")), (True, None)):
        selection = PayloadKeys((path,), excluded=excluded)
        payload = shared_store.fetch(name, [0], selection, ())[0].payload
        assert payload is not None
        if expected is not None:
            assert payload == expected
        else:
            assert PayloadPath(tuple(keys)).value_in(payload) is None
            assert payload["other\x01"] == 1
    assert isinstance(conform(draft(0, payload=payloads[0]), schema), Point)
    assert isinstance(conform(draft(0, payload={"other\x01": 1}), schema), Refusal)


def test_an_index_is_recognised_in_the_notation_of_the_engine() -> None:
    """An index that Qdrant lists without quotes is the one that was asked for with quotes."""
    schema = replace(SCHEMA, payload_indexes={"हि": "keyword", '"topic"': "text", '"a b"': "bool"})
    indexes = {"हि": PayloadIndex("keyword"), "topic": PayloadIndex("text"), '"a b"': PayloadIndex("integer")}
    existing = CollectionDescription({}, payload_indexes=indexes)
    assert missing_indexes(schema, existing) == {}
    assert Difference('payloadIndexes."a b"', "integer", "bool") in differences(schema, existing)
    assert missing_indexes(schema, CollectionDescription({})).keys() == schema.indexes.keys()


@pytest.mark.slow
@pytest.mark.parametrize("keys", [[HINDI, "विषय"], ["a key", ""], ["e\u0301"]])
def test_an_index_is_known_again_by_its_path(tmp_path: Path, keys: list[str]) -> None:
    """The index of a key is made once, and is recognised in the notation in which the engine returns it."""
    path = ".".join(f'"{key}"' for key in keys)
    schema = replace(SCHEMA, payload_indexes={path: "keyword"})
    store = EdgeStore(tmp_path / "edge")
    store.ensure("docs", schema)
    assert store.verify("docs", schema)
    write(store, "docs", [draft(0, payload=_nested(keys, "x"))], schema)
    assert store.count("docs", {"must": [{"key": path, "match": {"value": "x"}}]}) == 1
    store.close()
    store = EdgeStore(tmp_path / "edge")
    assert store.verify("docs", schema)
    assert store.count("docs", {"must": [{"key": path, "match": {"value": "x"}}]}) == 1
    store.close()
