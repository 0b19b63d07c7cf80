"""A server that is older than a part of a request ignores that part; the store refuses such a request instead."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
import pytest
from qdrant_client import grpc as pb

from qdrant_sink.errors import NothingTaken
from qdrant_sink.point_order import PointOrder
from qdrant_sink.searching import run
from qdrant_sink.server import ServerStore
from qdrant_sink.server.versions import VERSION_MAX_AGE_S, Feature, ServerVersion, filter_features
from tests.sink.grpc_double import GrpcDouble
from tests.sink.rest_double import RestDouble, refusal, result
from tests.sink.samples import SCHEMA, draft, sample_vectors, search_by
from tests.sink.writing import write


def condition(match: str) -> dict[str, Any]:
    """Create a filter with one match of this kind."""
    return {"must": [{"key": "text", "match": {match: "text"}}]}


@pytest.fixture
def old(server_store: ServerStore, double: GrpcDouble) -> ServerStore:
    """A store on a server of version 1.16 with five points."""
    server_store.ensure("docs", SCHEMA)
    write(server_store, "docs", [draft(i) for i in range(5)], SCHEMA)
    double.version = (1, 16, 2)
    return server_store


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda store: store.count("docs", condition("prefix")), "'prefix' of the filter needs Qdrant 1.19"),
        (lambda store: store.count("docs", condition("substring")), "'substring' of the filter needs Qdrant 1.20"),
        (
            lambda store: store.scroll("docs", condition("prefix"), True, limit=1),
            "'prefix' of the filter needs Qdrant 1.19",
        ),
        (
            lambda store: store.scroll_ordered("docs", condition("prefix"), PointOrder("n"), limit=1),
            "'prefix' of the filter needs Qdrant 1.19",
        ),
        (
            lambda store: run(store, "docs", [search_by(sample_vectors(0).dense, using=("dense",), where=WHERE)]),
            "'prefix' of the filter needs Qdrant 1.19",
        ),
        (lambda store: store.delete("docs", where=WHERE), "'prefix' of the filter needs Qdrant 1.19"),
        (
            lambda store: run(
                store, "docs", [search_by(sample_vectors(0).dense, sample_vectors(0).sparse, weights=(2.0, 1.0))]
            ),
            "weights of an RRF needs Qdrant 1.17",
        ),
        (lambda store: store.upsert("docs", [draft(0)], insert_only=True), "insertOnly needs Qdrant 1.17"),
    ],
)
def test_a_feature_that_the_server_lacks_names_the_version_that_has_it(
    old: ServerStore, double: GrpcDouble, call: Callable[[ServerStore], object], message: str
) -> None:
    """The refusal names the part of the request, the version that it needs and the one that the server has."""
    double.calls.clear()
    with pytest.raises(NothingTaken) as caught:
        call(old)
    assert message in caught.value.message
    assert "the server has 1.16.2; update the server" in caught.value.message
    assert double.calls == [], "nothing of it reached the server"


WHERE: dict[str, Any] = {"must": [{"nested": {"key": "a", "filter": condition("prefix")}}]}


def test_the_double_drops_what_an_old_server_drops(double: GrpcDouble, server_store: ServerStore) -> None:
    """Without the check, an insert-only write to an old server overwrites, and a new condition selects everything."""
    server_store.ensure("docs", SCHEMA)
    write(server_store, "docs", [draft(0)], SCHEMA)
    double.version = (1, 16, 2)
    with grpc.insecure_channel(f"127.0.0.1:{double.port}") as channel:
        where = pb.Filter(must=[pb.Condition(slice=pb.SliceCondition(total=5, index=4))])
        request = pb.CountPoints(collection_name="docs", filter=where, exact=True)
        stub: Any = pb.PointsStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
        assert stub.Count(request).result.count == 1
        malformed = pb.Filter(must=[pb.Condition(field=pb.FieldCondition(key="a", match=pb.Match(prefix="b")))])
        with pytest.raises(grpc.RpcError) as caught:
            stub.Count(pb.CountPoints(collection_name="docs", filter=malformed))
        assert caught.value.details() == "Malformed Match condition"


def test_an_updated_server_is_used_at_once(old: ServerStore, double: GrpcDouble) -> None:
    """After an update of the server, the same request passes, without a restart of the worker."""
    with pytest.raises(NothingTaken):
        old.count("docs", condition("prefix"))
    double.version = (1, 19, 0)
    assert old.count("docs", condition("prefix")) == 5


def test_the_version_is_asked_only_for_new_features_and_once_a_minute() -> None:
    """Ordinary requests ask for no version, and later ones use the remembered one until it is a minute old."""
    now = [0.0]
    asked: list[str] = []

    def ask() -> str:
        asked.append("1.18.3")
        return asked[-1]

    version = ServerVersion(clock=lambda: now[0])
    version.require(ask, filter_features({"must": [{"key": "a", "match": {"value": "prefix"}}]}))
    assert asked == []
    for _ in range(3):
        version.require(ask, [Feature("x", (1, 18, 0))])
    assert len(asked) == 1
    now[0] = VERSION_MAX_AGE_S
    version.require(ask, [Feature("x", (1, 18, 0))])
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (None, []),
        ({"must": [{"key": "prefix", "match": {"value": "slice"}}]}, []),
        ({"must": [{"is_empty": {"key": "a"}}]}, []),
        ({"must": [{"key": "a", "is_empty": True}]}, ["is_empty"]),
        ({"must": [{"key": "a", "match": {"prefix": None, "value": 1}}]}, []),
        ({"should": {"key": "a", "match": {"phrase": "b"}}}, ["phrase"]),
        ({"must_not": [{"must": [{"slice": {"total": 2, "index": 0}}]}]}, ["slice"]),
        (
            {"min_should": {"conditions": [{"has_vector": "a"}, {"key": "b", "match": {"text_any": "c"}}]}},
            ["has_vector", "text_any"],
        ),
    ],
)
def test_conditions_are_found_at_any_depth(where: Any, names: list[str]) -> None:
    """New conditions count wherever they stand, and values and keys of the caller never do."""
    assert [feature.name for feature in filter_features(where)] == [
        f"the condition {name!r} of the filter" for name in names
    ]


@pytest.mark.parametrize(
    "root",
    [(404, {}, refusal("Not found")), (403, {}, "Forbidden"), (200, {}, "<html>"), (200, {}, {"version": "dev"})],
)
def test_a_server_without_a_version_is_trusted_with_a_warning(root: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A proxy that forwards only the paths of collections does not stop searches; the log says what is unchecked."""
    rest = RestDouble()
    rest.answers["GET /"] = [root]
    rest.answers["POST /collections/docs/points/count"] = [(200, {}, result({"count": 3}))]
    store = ServerStore(f"http://127.0.0.1:{rest.port}", transport="rest")
    assert [store.count("docs", condition("prefix")) for _ in range(2)] == [3, 3]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "Qdrant does not say its version; a server that is too old for a condition, weights or insertOnly may ignore it"
    ]
    store.close()
    rest.stop()


@pytest.mark.parametrize(
    ("version", "options", "message"),
    [
        ((1, 13, 6), {"using": ("dense",)}, "rerank needs Qdrant 1.14"),
        ((1, 15, 0), {}, "RRF with a chosen k needs Qdrant 1.16"),
        ((1, 16, 2), {"weights": (2.0, 1.0)}, "weights of an RRF needs Qdrant 1.17"),
    ],
)
def test_reranking_needs_what_selects_and_orders_points_without_rows(
    old: ServerStore, double: GrpcDouble, version: tuple[int, int, int], options: dict[str, Any], message: str
) -> None:
    """A server that cannot select points without rows, or not order them as asked, does not rerank."""
    double.version = version
    query = sample_vectors(0)
    with pytest.raises(NothingTaken, match=message):
        run(old, "docs", [search_by(query.dense, query.sparse, query.colbert, rerank="colbert", **options)])


def test_over_rest_the_version_is_checked_too() -> None:
    """An old server over REST is recognised by its root path."""
    rest = RestDouble()
    rest.answers["GET /"] = [(200, {}, {"title": "qdrant - vector search engine", "version": "1.18.3"})]
    store = ServerStore(f"http://127.0.0.1:{rest.port}", transport="rest")
    with pytest.raises(NothingTaken, match=r"needs Qdrant 1\.19, and the server has 1\.18\.3"):
        store.count("docs", condition("prefix"))
    store.close()
    rest.stop()
