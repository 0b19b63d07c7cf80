"""What a collection lacks is found from its description, and its points are read page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from embedder.errors import InvalidRequest
from embedder.vectors import KINDS, Kind
from qdrant_sink.collection_state import CollectionState
from qdrant_sink.completing import (
    CompletionTally,
    check_copyable,
    completed_schema,
    copied_schema,
    kinds_lacking,
    of_all_kinds,
    of_any_lacking,
    of_exactly_lacking,
)
from qdrant_sink.conformance import Refusal, conform
from qdrant_sink.copying import NAMED_MAX, UnfinishedPoint, pages
from qdrant_sink.edge import EdgeStore
from qdrant_sink.errors import LimitExceeded, SchemaMismatch
from qdrant_sink.model_identity import ModelIdentity
from qdrant_sink.points import Point
from qdrant_sink.schema import NAMES, CollectionSchema, VectorNames
from qdrant_sink.schema_diff import CollectionDescription, VectorDescription
from tests.sink.samples import COLBERT, DENSE, SCHEMA, SIZE, SPARSE, draft, sample_vectors
from tests.sink.stores import STORES, opened

DENSE_VECTOR = VectorDescription("dense", SIZE, "cosine", datatype="float32", quantization="none", m=16)
SPARSE_VECTOR = VectorDescription("sparse", datatype="float32")
MODEL = ModelIdentity("another/model", None)
ROWS = VectorDescription("multivector", SIZE, "cosine", "max_sim", datatype="float16", quantization="none", m=0)


def _schema(vectors: dict[str, VectorDescription], *kinds: Kind, wanted: CollectionSchema = SCHEMA) -> CollectionSchema:
    return completed_schema("notes", wanted, CollectionDescription(vectors), kinds)


def test_vectors_keep_their_names_and_the_added_ones_have_those_of_the_config() -> None:
    """A vector is recognised by its kind, under any name; its own settings stay."""
    tuned = replace(DENSE_VECTOR, distance="dot", m=32, on_disk=True, datatype="float16")
    schema = _schema({"": tuned, "langchain-sparse": replace(SPARSE_VECTOR, modifier="idf")}, "sparse", "colbert")
    assert schema.names == VectorNames("", "langchain-sparse", "colbert")
    assert schema.dense == replace(DENSE, distance="dot", m=32, on_disk=True, datatype="float16")
    assert schema.sparse == replace(SPARSE, modifier="idf")
    assert schema.colbert == COLBERT


def test_a_vector_of_another_size_is_not_the_one_to_complete() -> None:
    """A dense vector of another model stays beside the one that is added; under the same name it is a mismatch."""
    other = replace(DENSE_VECTOR, size=3)
    assert _schema({"theirs": other}, "dense").names.dense == "dense"
    assert _schema({"theirs": other}, "sparse").names == VectorNames("theirs")
    with pytest.raises(SchemaMismatch, match=r"dense\.size is 3, wanted 8"):
        _schema({"dense": other}, "dense")
    with pytest.raises(SchemaMismatch, match=r"sparse\.kind is dense, wanted sparse"):
        _schema({"sparse": DENSE_VECTOR}, "sparse")


def test_several_candidates_need_the_name_in_the_config() -> None:
    """With the name in the config it is chosen; without, the error names the candidates."""
    two = {"a": DENSE_VECTOR, "": DENSE_VECTOR}
    with pytest.raises(InvalidRequest, match=r"dense one \('\(unnamed\)', 'a'\); set vectorNames.dense"):
        _schema(two, "dense")
    chosen = replace(SCHEMA, names=VectorNames(dense="a"))
    assert _schema(two, "dense", wanted=chosen).names.dense == "a"
    assert _schema(two, "sparse").dense is None


def test_a_copy_keeps_what_the_collection_has() -> None:
    """Only a collection whose vectors all have a place in the copy, in types that can be created, is copied.

    The metadata of the copy name the model of the collection, not that of the worker.
    """
    fitting = CollectionDescription({"": DENSE_VECTOR, "sparse": SPARSE_VECTOR, "c": ROWS}, payload_on_disk=False)
    schema = completed_schema("notes", SCHEMA, fitting, ("colbert",))
    check_copyable("notes", schema, fitting)
    copied = copied_schema(schema, CollectionState(fitting, 3, None, "green", MODEL))
    assert (copied.payload_on_disk, copied.model) == (False, MODEL)
    for name, vector, problem in (
        ("image", replace(DENSE_VECTOR, size=3), "is not one of"),
        ("", replace(DENSE_VECTOR, datatype="uint8"), "has the type 'uint8'"),
        ("", replace(DENSE_VECTOR, quantization="product"), "has the type 'product'"),
    ):
        actual = CollectionDescription({**fitting.vectors, name: vector})
        with pytest.raises(InvalidRequest, match=problem):
            check_copyable("notes", schema, actual)


@pytest.mark.parametrize("kind", STORES)
def test_the_filters_divide_the_points(kind: str, tmp_path: Any, collection: str) -> None:
    """Each point that lacks vectors is in one set of lacking kinds, on every store."""
    with opened(kind, tmp_path) as store:
        store.ensure(collection, SCHEMA)
        held = [[kind for bit, kind in enumerate(KINDS) if number & (1 << bit)] for number in range(1, 8)]
        store.upsert(collection, [_point(number, kinds) for number, kinds in enumerate(held)])
        seen: list[int] = []
        for lacking in kinds_lacking(KINDS):
            page, _ = store.scroll(collection, of_exactly_lacking(lacking, KINDS, NAMES), False, limit=10)
            for point in page:
                assert isinstance(point, int)
                assert set(held[point]) == set(KINDS) - set(lacking)
                seen.append(point)
        assert sorted(seen) == list(range(6))
        assert store.count(collection, of_any_lacking(KINDS, NAMES)) == 6
        assert store.count(collection, of_all_kinds(KINDS, NAMES)) == 1


def test_a_server_may_limit_the_pages(edge_store: EdgeStore) -> None:
    """In strict mode pages are as long as the server allows, and none is lost."""
    edge_store.ensure("notes", SCHEMA)
    edge_store.upsert("notes", [_point(number, KINDS) for number in range(10)])

    class Strict:
        def scroll(self, *arguments: Any, limit: int, **more: Any) -> Any:
            if limit > 3:
                raise LimitExceeded("m", field="limit", maximum=3)
            return edge_store.scroll(*arguments, limit=limit, **more)

    read = [list(page) for page in pages(Strict(), "notes", {}, False)]
    assert [len(page) for page in read] == [3, 3, 3, 1]
    assert [point for page in read for point in page] == list(range(10))


def test_a_report_names_some_points_and_counts_all() -> None:
    """The points of an earlier pass are counted once, by the last pass that met them."""
    tally = CompletionTally(5)
    unfinished = [UnfinishedPoint(n, Refusal("invalid_payload", "m")) for n in range(NAMED_MAX + 20)]
    for _ in range(2):
        tally.begin_pass()
        tally.leave_without_text(unfinished)
        tally.reject(unfinished[:1])
        tally.complete(2, truncated=1)
        tally.leave_without_weights(3)
        tally.vanish(1)
    report = tally.report("notes", pending=4)
    assert len(report.unfinished) == NAMED_MAX
    assert (report.without_text, report.rejected, report.completed, report.truncated) == (NAMED_MAX + 20, 1, 4, 2)
    assert report.points == 5 + 4 + NAMED_MAX + 20 + 3 + 1 + 2
    assert tally.left == NAMED_MAX + 20 + 1 + 3
    assert not report.is_complete


def _point(number: int, kinds: Sequence[str], *, text: str = "text") -> Point:
    given = draft(number, payload={"text": text, "n": number}, vectors=sample_vectors(number, kinds=kinds))
    point = conform(given, SCHEMA)
    assert isinstance(point, Point)
    return point
