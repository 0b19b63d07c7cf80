"""Requests to a Qdrant server that create, defer, build and alias collections."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as pb

from qdrant_sink.errors import SchemaMismatch, StoreUnavailable
from qdrant_sink.schema import Placement
from qdrant_sink.searching import Rescoring, run
from qdrant_sink.searching.plan import Nearest, Plan
from qdrant_sink.server import ServerStore
from tests.sink.grpc_double import GrpcDouble
from tests.sink.rest_double import RestDouble, refusal, result
from tests.sink.samples import COLBERT, DENSE, SCHEMA, SPARSE, draft, sample_vectors, search_by

Status = pb.CollectionStatus
Answer = tuple[int, dict[str, str], Any]

INDEXED = replace(SCHEMA, payload_indexes={"year": "integer"}, tenant_key="tenant")


@pytest.fixture
def other(double: GrpcDouble) -> Iterator[ServerStore]:
    """A second worker on the same server."""
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, timeout_s=5, deadline_s=3.0)
    yield store
    store.close()


def _m(double: GrpcDouble, name: str = "docs") -> int:
    created = double.collections[name][0]
    return int(created.vectors_config.params_map.map["dense"].hnsw_config.m)


def test_the_whole_configuration_is_sent(server_store: ServerStore, double: GrpcDouble) -> None:
    """The requests contain the configured storage, quantization, placement and indexes."""
    schema = replace(
        INDEXED,
        dense=replace(DENSE, m=24, ef_construct=64, datatype="float16", on_disk=True, quantization="int8"),
        sparse=replace(SPARSE, datatype="float16", on_disk=True),
        colbert=replace(COLBERT, on_disk=False, datatype="float32", quantization="binary"),
        payload_on_disk=True,
        placement=Placement(shards=6, replication=3, write_consistency=2),
        explicit=frozenset(["shards", "replication", "writeConsistency", "payloadOnDisk"]),
    )
    server_store.ensure("docs", schema)
    request = double.collections["docs"][0]
    assert (request.shard_number, request.replication_factor, request.write_consistency_factor) == (6, 3, 2)
    assert request.on_disk_payload
    dense = request.vectors_config.params_map.map["dense"]
    assert (dense.datatype, dense.on_disk) == (pb.Datatype.Float16, True)
    assert (dense.hnsw_config.m, dense.hnsw_config.ef_construct) == (24, 64)
    int8 = dense.quantization_config.scalar
    assert (int8.type, int8.always_ram) == (pb.QuantizationType.Int8, True)
    assert int8.quantile == pytest.approx(0.99)
    colbert = request.vectors_config.params_map.map["colbert"]
    assert (colbert.datatype, colbert.on_disk) == (pb.Datatype.Float32, False)
    assert colbert.quantization_config.binary.always_ram
    sparse = request.sparse_vectors_config.map["sparse"].index
    assert (sparse.datatype, sparse.on_disk) == (pb.Datatype.Float16, True)
    indexes = double.indexes["docs"]
    assert indexes["year"].data_type == pb.PayloadSchemaType.Integer
    assert indexes["tenant"].params.keyword_index_params.is_tenant
    server_store.ensure("docs", schema)
    with pytest.raises(SchemaMismatch, match="shards is 6, wanted 2; replication is 3, wanted 1"):
        server_store.ensure("docs", replace(schema, placement=Placement(2, 1, 2)))


def test_defaults_of_the_server_are_not_sent(server_store: ServerStore, double: GrpcDouble) -> None:
    """Shards, replicas and the storage of payloads have the server's defaults unless they are set."""
    server_store.ensure("docs", SCHEMA)
    request = double.collections["docs"][0]
    for field in ("shard_number", "replication_factor", "write_consistency_factor", "on_disk_payload"):
        assert not request.HasField(field)
    for name in ("dense", "colbert"):
        assert not request.vectors_config.params_map.map[name].HasField("quantization_config")
    assert double.indexes["docs"] == {}


@pytest.mark.parametrize("moment", ["Create", "CreateFieldIndex"])
def test_a_concurrent_worker_is_tolerated(
    server_store: ServerStore, other: ServerStore, double: GrpcDouble, moment: str
) -> None:
    """If another worker comes first in any step, both end with the collection and its indexes."""
    double.before[moment] = lambda: other.ensure("docs", INDEXED)
    server_store.ensure("docs", INDEXED)
    assert set(double.indexes["docs"]) == {"year", "tenant"}
    assert server_store.verify("docs", INDEXED)


def test_many_workers_start_concurrently(double: GrpcDouble) -> None:
    """Eight workers create one collection concurrently, and none of them fails."""
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def work() -> None:
        store = ServerStore("http://127.0.0.1:9", grpc_port=double.port)
        try:
            start.wait()
            store.ensure("docs", INDEXED)
            assert store.verify("docs", INDEXED)
        except BaseException as exc:  # noqa: BLE001 - reported by the main thread
            failures.append(exc)
        finally:
            store.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(double.collections) == ["docs"]


def test_a_concurrent_worker_with_another_configuration_is_an_error(
    server_store: ServerStore, other: ServerStore, double: GrpcDouble
) -> None:
    """If another worker indexes the same key with another type, SchemaMismatch is raised."""
    rival = replace(SCHEMA, payload_indexes={"year": "keyword"})
    double.before["Create"] = lambda: other.ensure("docs", rival)
    with pytest.raises(SchemaMismatch, match=r"payloadIndexes\.year is keyword, wanted integer"):
        server_store.ensure("docs", INDEXED)


def test_an_index_that_another_worker_replaced_is_an_error(server_store: ServerStore, double: GrpcDouble) -> None:
    """The last creation wins on a server, so that the collection is verified again afterwards."""
    client = QdrantClient(url="http://127.0.0.1:9", grpc_port=double.port, prefer_grpc=True, check_compatibility=False)

    def rival() -> None:
        client.create_payload_index("docs", "year", field_schema=models.PayloadSchemaType.KEYWORD)

    def after_the_next_look() -> None:
        double.before["Get"] = rival

    server_store.ensure("docs", SCHEMA)
    double.before["CreateFieldIndex"] = after_the_next_look
    with pytest.raises(SchemaMismatch, match=r"payloadIndexes\.year is keyword, wanted integer"):
        server_store.ensure("docs", replace(SCHEMA, payload_indexes={"year": "integer"}))
    client.close()


def test_an_index_that_is_not_built_yet_is_not_reported_as_built(server_store: ServerStore, double: GrpcDouble) -> None:
    """An index that is only acknowledged is an error."""
    double.update_status = pb.UpdateStatus.Acknowledged
    with pytest.raises(StoreUnavailable, match="payload index on 'year' but has not built it yet"):
        server_store.ensure("docs", INDEXED)


def test_any_process_can_build_a_deferred_graph(
    server_store: ServerStore, other: ServerStore, double: GrpcDouble
) -> None:
    """The deferral is stored in the collection, so that any process can build the graph."""
    server_store.ensure("docs", SCHEMA)
    server_store.defer_index("docs", SCHEMA)
    assert _m(double) == 0
    other.ensure("docs", SCHEMA)
    other.restore_index("docs", SCHEMA)
    other.build_index("docs", SCHEMA, timeout_s=5)
    created = double.collections["docs"][0].vectors_config.params_map.map
    assert (created["dense"].hnsw_config.m, created["dense"].hnsw_config.ef_construct) == (16, 100)
    assert created["colbert"].hnsw_config.m == 0


def test_a_search_without_a_graph_warns_once_and_a_load_never(
    server_store: ServerStore, other: ServerStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A load that goes on with a graph which an earlier one has deferred is not warned of what it is about to build.

    The process that searches is warned by its first search, and again after the graph was there.
    """
    vector = sample_vectors(1).dense
    assert vector is not None
    plan = Plan(Nearest("dense", vector), (), 1)
    for _ in range(2):
        for load in (server_store, other):
            load.ensure("docs", SCHEMA)
            load.defer_index("docs", SCHEMA)
            load.ensure("docs", SCHEMA)
            load.verify("docs", SCHEMA)
        assert caplog.text == ""
        for _ in range(3):
            other.query("docs", [plan])
        assert caplog.text.count("has no graph (m = 0)") == 1
        caplog.clear()
        server_store.restore_index("docs", SCHEMA)
        server_store.build_index("docs", SCHEMA, timeout_s=5)
        other.verify("docs", SCHEMA)
        other.query("docs", [plan])
        assert caplog.text == ""


def test_build_index_waits_until_the_collection_is_green(server_store: ServerStore, double: GrpcDouble) -> None:
    """`build_index` returns only when the collection is green."""
    server_store.ensure("docs", SCHEMA)
    server_store.defer_index("docs", SCHEMA)
    double.statuses = [Status.Green, Status.Yellow, Status.Yellow, Status.Yellow, Status.Green]
    server_store.restore_index("docs", SCHEMA)
    server_store.build_index("docs", SCHEMA, timeout_s=30)
    assert double.statuses == []


def test_a_second_build_does_not_restart_the_first(server_store: ServerStore, double: GrpcDouble) -> None:
    """A change would restart the optimisation, so that a restored graph is only waited for."""
    server_store.ensure("docs", SCHEMA)
    server_store.defer_index("docs", SCHEMA)
    double.statuses = [Status.Green, *[Status.Yellow] * 1000]
    server_store.restore_index("docs", SCHEMA)
    with pytest.raises(StoreUnavailable, match="yellow"):
        server_store.build_index("docs", SCHEMA, timeout_s=0.1)
    assert double.calls.count("Update") == 2
    double.statuses = [Status.Yellow] * 3
    server_store.restore_index("docs", SCHEMA)
    server_store.build_index("docs", SCHEMA, timeout_s=30)
    assert double.calls.count("Update") == 2


def test_a_pending_optimisation_is_started(server_store: ServerStore, double: GrpcDouble) -> None:
    """After a restart optimisations are pending (grey), and one empty change starts them."""
    server_store.ensure("docs", SCHEMA)
    double.statuses = [Status.Grey] * 4 + [Status.Yellow]
    server_store.restore_index("docs", SCHEMA)
    server_store.build_index("docs", SCHEMA, timeout_s=30)
    assert double.calls.count("Update") == 1
    assert _m(double) == 16


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (Status.Yellow, "collection 'docs' is yellow and not green after 0.2 s"),
        (Status.Grey, "collection 'docs' is grey and not green after 0.2 s"),
        (Status.Red, "collection 'docs' is red: Qdrant failed to build its index"),
    ],
)
def test_a_collection_that_does_not_become_green_is_an_error(
    server_store: ServerStore, double: GrpcDouble, state: pb.CollectionStatus.ValueType, message: str
) -> None:
    """The error states the status of the collection."""
    server_store.ensure("docs", SCHEMA)
    double.statuses = [state] * 1000
    server_store.restore_index("docs", SCHEMA)
    with pytest.raises(StoreUnavailable) as caught:
        server_store.build_index("docs", SCHEMA, timeout_s=0.2)
    assert caught.value.message.startswith(message)
    assert caught.value.retryable


def test_closing_ends_the_wait_for_green(double: GrpcDouble) -> None:
    """A worker that stops does not wait for an index."""
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port)
    store.ensure("docs", SCHEMA)
    double.statuses = [Status.Yellow] * 100_000
    seen = threading.Event()
    outcome: list[BaseException] = []

    def build() -> None:
        try:
            store.build_index("docs", SCHEMA, timeout_s=600)
        except StoreUnavailable as exc:
            outcome.append(exc)

    double.before["Get"] = seen.set
    thread = threading.Thread(target=build)
    thread.start()
    assert seen.wait(10)
    store.close()
    thread.join(10)
    assert not thread.is_alive()
    assert "closed" in str(outcome[0])


def test_a_tuned_graph_is_not_deferred(
    server_store: ServerStore, double: GrpcDouble, caplog: pytest.LogCaptureFixture
) -> None:
    """A graph whose m differs from the schema could not be restored, so that it is not changed."""
    server_store.ensure("docs", replace(SCHEMA, dense=replace(DENSE, m=48)))
    server_store.defer_index("docs", SCHEMA)
    assert _m(double) == 48
    assert "dense.m = 48 instead of 16" in caplog.text
    server_store.restore_index("docs", SCHEMA)
    server_store.build_index("docs", SCHEMA, timeout_s=5)
    assert _m(double) == 48


def test_a_schema_without_a_graph_needs_no_deferral(server_store: ServerStore, double: GrpcDouble) -> None:
    """With m = 0 there is no graph to defer or to build."""
    schema = replace(SCHEMA, dense=replace(DENSE, m=0))
    server_store.ensure("docs", schema)
    server_store.defer_index("docs", schema)
    server_store.restore_index("docs", schema)
    server_store.build_index("docs", schema, timeout_s=5)
    assert _m(double) == 0
    assert "Update" not in double.calls


def test_an_alias_moves_in_one_request(server_store: ServerStore, double: GrpcDouble) -> None:
    """One request removes the old target and sets the new one. Repeating it is harmless."""
    server_store.ensure("a", SCHEMA)
    server_store.ensure("b", SCHEMA)
    server_store.alias("live", "a")
    double.fail("UpdateAliases", grpc.StatusCode.UNAVAILABLE, after=True)
    server_store.alias("live", "b")
    assert double.aliases == {"live": "b"}
    assert double.calls.count("UpdateAliases") == 3


def test_quantized_vectors_are_rescored(server_store: ServerStore, double: GrpcDouble) -> None:
    """Every stage over a quantized vector requests three times the candidates and rescores them."""
    server_store.ensure("docs", SCHEMA)
    query = draft(1).vectors
    plain = search_by(query.dense, query.sparse, query.colbert, rerank="colbert")
    schema = replace(SCHEMA, dense=replace(DENSE, quantization="int8"), colbert=replace(COLBERT, quantization="binary"))
    search = replace(plain, schema=schema)
    alone = search.with_options(using=("dense",), rerank=None)
    run(server_store, "docs", [search, plain, alone])
    quantized, _, unquantized, _, single = double.queries[-1].query_points  # and those without rows
    dense, sparse = quantized.prefetch
    for params in (dense.params, quantized.params, single.params):
        assert params.quantization.rescore
        assert params.quantization.oversampling == 3.0
        assert not params.quantization.ignore
    assert not sparse.params.HasField("quantization")
    assert not unquantized.HasField("params")
    chosen = search.with_options(rescoring=Rescoring(rescore=False), indexed_only=True, exact=True, hnsw_ef=9)
    ignored = search.with_options(rescoring=Rescoring(ignore=True))
    run(server_store, "docs", [chosen, ignored])
    chosen_sent, _, ignored_sent, _ = double.queries[-1].query_points
    params = chosen_sent.prefetch[0].params
    assert (params.indexed_only, params.exact, params.hnsw_ef) == (True, True, 9)
    assert (params.quantization.rescore, params.quantization.HasField("oversampling")) == (False, False)
    assert ignored_sent.prefetch[0].params.quantization.ignore
    assert not any(branch.params.HasField("quantization") for branch in unquantized.prefetch)


def test_rest_creates_and_aliases_collections() -> None:
    """Over REST, the configuration, the deferral and the alias are sent in the same way."""
    rest = RestDouble()
    done: list[Answer] = [(200, {}, result(value=True))]
    config = {
        "params": {"vectors": {}, "sparse_vectors": {}},
        "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
        "optimizer_config": {
            "deleted_threshold": 0.2,
            "vacuum_min_vector_number": 1000,
            "default_segment_number": 0,
            "flush_interval_sec": 5,
        },
    }
    vectors: dict[str, Any] = {
        "dense": {"size": 8, "distance": "Cosine", "quantization_config": {"scalar": {"type": "int8"}}},
        "colbert": {"size": 8, "distance": "Cosine", "multivector_config": {"comparator": "max_sim"}},
    }
    info = {"status": "green", "optimizer_status": "ok", "segments_count": 1, "config": config, "payload_schema": {}}
    config["params"] = {"vectors": vectors, "sparse_vectors": {"sparse": {}}}
    indexed = {**info, "payload_schema": {"year": {"data_type": "integer", "points": 0}}}
    missing: Answer = (404, {}, refusal("Not found: Collection `docs` doesn't exist!"))
    rest.answers = {
        "GET /collections/docs": [missing, (200, {}, result(info)), (200, {}, result(indexed))],
        "PUT /collections/docs": done,
        "PUT /collections/docs/index": [(200, {}, result({"operation_id": 1, "status": "completed"}))],
        "PATCH /collections/docs": done,
        "GET /collections": [(200, {}, result({"collections": [{"name": "docs"}]}))],
        "POST /collections/aliases": done,
    }
    store = ServerStore(f"http://127.0.0.1:{rest.port}", transport="rest", deadline_s=3.0)
    schema = replace(
        SCHEMA,
        dense=replace(DENSE, quantization="int8"),
        payload_indexes={"year": "integer"},
        explicit=frozenset(["dense.quantization", "dense.datatype", "dense.m"]),
    )
    store.ensure("docs", schema)
    store.defer_index("docs", schema)
    store.alias("live", "docs")
    sent = dict(rest.requests)
    dense = sent["PUT /collections/docs"]["vectors"]["dense"]
    assert dense["quantization_config"] == {"scalar": {"type": "int8", "quantile": 0.99, "always_ram": True}}
    assert sent["PUT /collections/docs/index"] == {"field_name": "year", "field_schema": "integer"}
    assert sent["PATCH /collections/docs"]["vectors"]["dense"]["hnsw_config"]["m"] == 0
    assert sent["POST /collections/aliases"]["actions"] == [
        {"delete_alias": {"alias_name": "live"}},
        {"create_alias": {"collection_name": "docs", "alias_name": "live"}},
    ]
    store.close()
    rest.stop()
