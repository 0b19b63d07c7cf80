"""The server adapter retries transient faults, and does not reveal private data in errors."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as pb
from qdrant_client.conversions.conversion import RestToGrpc

from embedder.errors import ConfigurationError, NotFound, WorkerError
from qdrant_sink.address import ServerAddress, ServerUrl
from qdrant_sink.conformance import conform
from qdrant_sink.errors import AccessDenied, FeatureMissing, NothingTaken, StoreRejected, StoreUnavailable
from qdrant_sink.points import Point
from qdrant_sink.reasons import reason
from qdrant_sink.searching import run
from qdrant_sink.server import ServerStore
from qdrant_sink.server.connection import ServerConnection
from qdrant_sink.server.protobuf import dense_parts, multi_dense_parts, point_parts, upsert_request
from tests.sink.faults import PATIENCE_S, Silent, until
from tests.sink.grpc_double import GrpcDouble
from tests.sink.rest_double import RestDouble, refusal, result
from tests.sink.samples import SCHEMA, draft, job, sample_vectors, search_by
from tests.sink.writing import write

Code = grpc.StatusCode
SECRET = "key-3f9a-secret"  # noqa: S105 - opens nothing
PRIVATE_MESSAGE = f'Wrong input: "the text of a user" at http://10.1.2.3:6334/x {SECRET} /var/lib/qdrant'


def _point(index: int = 0) -> Point:
    point = conform(draft(index), SCHEMA)
    assert isinstance(point, Point)
    return point


@pytest.mark.parametrize(
    "code",
    [
        Code.UNAVAILABLE,
        Code.DEADLINE_EXCEEDED,
        Code.INTERNAL,
        Code.ABORTED,
        Code.UNKNOWN,
        Code.CANCELLED,
        Code.FAILED_PRECONDITION,
    ],
)
def test_a_transient_fault_is_retried(server_store: ServerStore, double: GrpcDouble, code: Any) -> None:
    """A restart of the server delays a job and loses no points."""
    server_store.ensure("docs", SCHEMA)
    double.fail("Upsert", code, times=2, details=PRIVATE_MESSAGE)
    assert write(server_store, "docs", [draft(0)], SCHEMA).stored == 1
    assert double.calls.count("Upsert") == 3


def test_a_lost_answer_is_harmless(server_store: ServerStore, double: GrpcDouble) -> None:
    """An upsert whose answer was lost is repeated, and every point is stored once."""
    server_store.ensure("docs", SCHEMA)
    double.fail("Upsert", Code.UNAVAILABLE, after=True)
    report = write(server_store, "docs", [draft(0), draft(1)], SCHEMA)
    assert (report.stored, server_store.count("docs")) == (2, 2)


def test_a_rate_limit_is_honoured(server_store: ServerStore, double: GrpcDouble) -> None:
    """The pause is at least as long as the server requests."""
    server_store.ensure("docs", SCHEMA)
    double.fail("Upsert", Code.RESOURCE_EXHAUSTED, retry_after=0.4, details="Rate limiting exceeded")
    start = time.monotonic()
    server_store.upsert("docs", [_point()])
    assert time.monotonic() - start >= 0.4


def test_a_rate_limit_beyond_the_deadline_is_raised_immediately(server_store: ServerStore, double: GrpcDouble) -> None:
    """A call does not sleep past its deadline, and the error states how long to wait."""
    server_store.ensure("docs", SCHEMA)
    double.fail("Upsert", Code.RESOURCE_EXHAUSTED, retry_after=600, times=9)
    with pytest.raises(StoreUnavailable, match="limits the request rate") as caught:
        server_store.upsert("docs", [_point()])
    assert double.calls.count("Upsert") == 1
    assert caught.value.retry_after_s == 600.0


def test_the_deadline_ends_the_retries(double: GrpcDouble) -> None:
    """An unavailable server raises a retryable error within the deadline."""
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, deadline_s=0.5)
    double.fail("Count", Code.UNAVAILABLE, times=10**6)
    with pytest.raises(StoreUnavailable) as caught:
        store.count("docs")
    assert caught.value.retryable
    store.close()


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (Code.INVALID_ARGUMENT, StoreRejected, "Qdrant refused the request: INVALID_ARGUMENT"),
        (Code.OUT_OF_RANGE, StoreRejected, "Qdrant refused the request: OUT_OF_RANGE"),
        (Code.UNIMPLEMENTED, FeatureMissing, "Qdrant refused the request: UNIMPLEMENTED"),
        (Code.DATA_LOSS, NothingTaken, "Qdrant refused the request: DATA_LOSS"),
        (Code.NOT_FOUND, NotFound, "collection 'docs' does not exist"),
        (Code.UNAUTHENTICATED, AccessDenied, "denied access: UNAUTHENTICATED; check QDRANT_API_KEY"),
        (Code.PERMISSION_DENIED, AccessDenied, "denied access: PERMISSION_DENIED; check QDRANT_API_KEY"),
    ],
)
def test_permanent_faults_are_not_retried(
    server_store: ServerStore, double: GrpcDouble, code: Any, error: type[WorkerError], message: str
) -> None:
    """Each status is mapped to an error immediately, without the message of the server."""
    server_store.ensure("docs", SCHEMA)
    double.fail("Upsert", code, times=5, details=PRIVATE_MESSAGE)
    with pytest.raises(error) as caught:
        server_store.upsert("docs", [_point()])
    assert type(caught.value) is error
    assert message in caught.value.message
    assert double.calls.count("Upsert") == 1
    for part in ("user", "10.1.2.3", SECRET, "/var"):
        assert part not in caught.value.message


def test_a_message_too_large_is_split_and_not_repeated(server_store: ServerStore, double: GrpcDouble) -> None:
    """A request that is too large is split, although its status is that of a rate limit."""
    server_store.ensure("docs", SCHEMA)
    details = "grpc: received message larger than max (5000000 vs. 4194304)"
    double.fail("Upsert", Code.RESOURCE_EXHAUSTED, details=details)
    assert write(server_store, "docs", [draft(0), draft(1)], SCHEMA).stored == 2
    assert double.calls.count("Upsert") == 3


@pytest.mark.parametrize("code", [Code.UNIMPLEMENTED, Code.DATA_LOSS, Code.FAILED_PRECONDITION])
def test_a_batch_is_not_split_if_the_server_refuses_everything(double: GrpcDouble, code: Any) -> None:
    """After an error that no point caused, a batch of 200 points is not sent in 400 requests."""
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, deadline_s=0.2, pause_s=0.1)
    store.ensure("docs", SCHEMA)
    double.fail("Upsert", code, times=10**6, details=f"Storage locked: {PRIVATE_MESSAGE}")
    report = write(store, "docs", job(200), SCHEMA)
    store.close()
    locked = code is Code.FAILED_PRECONDITION
    assert (report.stored, len(report.rejected)) == (0, 200)
    expected = StoreUnavailable if locked else NothingTaken
    assert all(isinstance(rejection.cause, expected) for rejection in report.rejected)
    assert {rejection.message for rejection in report.rejected} == {
        f"Qdrant cannot process the request now: {code.name}, Storage locked"
        if locked
        else f"Qdrant refused the request: {code.name}, Storage locked"
    }
    assert double.calls.count("Upsert") <= 20


def test_acknowledged_points_are_not_reported_as_stored(double: GrpcDouble) -> None:
    """An update that stays acknowledged and does not complete is an error after the deadline."""
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, deadline_s=0.3)
    store.ensure("docs", SCHEMA)
    double.update_status = pb.UpdateStatus.Acknowledged
    with pytest.raises(StoreUnavailable, match="has not stored them yet; retry later"):
        store.upsert("docs", [_point()])
    with pytest.raises(StoreUnavailable, match="has not applied it yet; retry later"):
        store.delete("docs", ids=[0])
    store.close()


@pytest.mark.parametrize("status", [pb.UpdateStatus.Acknowledged, pb.UpdateStatus.WaitTimeout])
@pytest.mark.parametrize("insert_only", [False, True])
def test_an_acknowledged_update_is_repeated(
    server_store: ServerStore, double: GrpcDouble, status: pb.UpdateStatus.ValueType, *, insert_only: bool
) -> None:
    """If the server has only queued an upsert or a deletion, the call is repeated until it completes."""

    def behind() -> None:
        double.update_status = status
        double.before[method] = lambda: setattr(double, "update_status", pb.UpdateStatus.Completed)

    server_store.ensure("docs", SCHEMA)
    server_store.upsert("docs", [_point(7)])
    double.calls.clear()
    method = "Upsert"
    double.before[method] = behind
    report = write(server_store, "docs", job(8), SCHEMA, insert_only=insert_only)
    assert (report.stored, report.rejected) == (8, ())
    assert double.calls.count(method) == 2
    method = "Delete"
    double.before[method] = behind
    assert server_store.delete("docs", ids=[1, 2]) == 2
    assert double.calls.count(method) == 2
    assert server_store.count("docs") == 6


def test_an_acknowledged_update_over_rest_is_repeated(rest: RestDouble) -> None:
    """Over REST too, an update that is only acknowledged is repeated."""
    behind: tuple[int, dict[str, str], Any] = (200, {}, result({"operation_id": 1, "status": "acknowledged"}))
    rest.answers["PUT /collections/docs/points"] = [behind, DONE]
    store = _rest_store(rest, transport="rest")
    store.upsert("docs", [_point()])
    assert len(rest.requests) == 2
    store.close()


def test_two_workers_create_one_collection(server_store: ServerStore, double: GrpcDouble) -> None:
    """The second of two workers accepts the collection that the first one created."""
    other = ServerStore("http://127.0.0.1:9", grpc_port=double.port)
    double.before["Create"] = lambda: other.ensure("docs", SCHEMA)
    server_store.ensure("docs", SCHEMA)
    assert double.calls.count("Create") == 2
    other.close()


def test_a_lost_answer_to_a_creation_is_harmless(server_store: ServerStore, double: GrpcDouble) -> None:
    """If the answer to a creation is lost, the existing collection is verified and used."""
    double.fail("Create", Code.UNAVAILABLE, after=True)
    server_store.ensure("docs", SCHEMA)
    assert server_store.collection_of("docs") == "docs"
    assert server_store.verify("docs", SCHEMA)
    server_store.upsert("docs", [_point()])
    assert server_store.count("docs") == 1
    attempts = double.calls.count("Create")
    server_store.ensure("docs", SCHEMA)
    assert double.calls.count("Create") == attempts


def test_a_refused_creation_is_an_error(server_store: ServerStore, double: GrpcDouble) -> None:
    """If the collection does not exist after a refused creation, the refusal is raised."""
    double.fail("Create", Code.PERMISSION_DENIED)
    with pytest.raises(StoreRejected, match="QDRANT_API_KEY"):
        server_store.ensure("docs", SCHEMA)


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_the_key_is_sent_and_never_shown(double: GrpcDouble, caplog: pytest.LogCaptureFixture) -> None:
    """The API key is sent to the server and does not appear in the store, in errors or in log lines."""
    caplog.set_level(logging.DEBUG, logger="qdrant_sink")
    double.api_key = SECRET
    store = ServerStore("http://127.0.0.1:9", SECRET, grpc_port=double.port)
    store.ensure("docs", SCHEMA)
    store.upsert("docs", [_point()])
    wrong = ServerStore("http://127.0.0.1:9", SECRET + "x", grpc_port=double.port)
    with pytest.raises(StoreRejected, match="check QDRANT_API_KEY") as caught:
        wrong.ensure("docs", SCHEMA)
    shown = f"{caught.value} {vars(caught.value)} {store!r} {store.label} {caplog.text}"
    assert SECRET not in shown
    assert "127.0.0.1" not in shown
    store.close()
    wrong.close()


def test_errors_keep_their_cause_for_the_developer(server_store: ServerStore, double: GrpcDouble) -> None:
    """The vendor's exception is the cause of the error, for debugging."""
    double.fail("CollectionExists", Code.PERMISSION_DENIED, times=1)
    double.fail("Get", Code.INVALID_ARGUMENT, times=1)
    with pytest.raises(StoreRejected) as caught:
        server_store.ensure("docs", SCHEMA)
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert "qdrant_sink" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", ["", "ftp://host", "http://[", "http://host:99999"])
def test_an_invalid_url_is_a_configuration_error(url: str) -> None:
    """The error names the setting and does not quote the URL."""
    with pytest.raises(ConfigurationError, match=r"^QDRANT_URL: must ") as caught:
        ServerStore(url)
    assert not url or url not in str(caught.value)


def test_messages_equal_those_of_the_client() -> None:
    """A message serialised from arrays equals the message that the client builds value by value."""
    point = _point(3)
    assert point.dense is not None
    assert point.sparse is not None
    assert point.colbert is not None
    slow = RestToGrpc.convert_point_struct(
        models.PointStruct(
            id=3,
            payload=dict(point.payload),
            vector={
                "dense": point.dense.tolist(),
                "sparse": models.SparseVector(
                    indices=point.sparse.indices.tolist(), values=point.sparse.values.tolist()
                ),
                "colbert": point.colbert.tolist(),
            },
        )
    )
    assert pb.PointStruct.FromString(b"".join(point_parts(point))) == slow
    request = pb.UpsertPoints(
        collection_name="docs", wait=True, points=[slow, slow], update_mode=pb.UpdateMode.InsertOnly
    )
    assert pb.UpsertPoints.FromString(upsert_request("docs", [point, point], insert_only=True)) == request


@pytest.mark.parametrize("size", [1, 31, 32, 1024, 5000])
def test_every_length_of_row_is_framed(size: int) -> None:
    """Rows of every length are parsed back unchanged, also from float16 and transposed arrays."""
    matrix = np.asfortranarray(np.random.default_rng(0).normal(size=(3, size)))
    for array in (matrix, matrix.astype(np.float16)):
        message = pb.MultiDenseVector.FromString(b"".join(multi_dense_parts(array)))
        rows = [list(row.data) for row in message.vectors]
        assert rows == array.astype(np.float32).tolist()
        row = pb.DenseVector.FromString(b"".join(dense_parts(array[0])))
        assert list(row.data) == array[0].astype(np.float32).tolist()


def test_serialising_arrays_is_faster_than_lists() -> None:
    """Serialising ColBERT rows from arrays is at least three times as fast as from lists."""
    big = sample_vectors(0, rows=256, size=1024)
    assert big.colbert is not None
    matrix = big.colbert
    point = Point(1, {"text": "x"}, colbert=matrix)

    def from_lists() -> bytes:
        rows = [pb.DenseVector(data=row) for row in matrix.tolist()]
        vector = pb.Vector(multi_dense=pb.MultiDenseVector(vectors=rows))
        vectors = pb.Vectors(vectors=pb.NamedVectors(vectors={"colbert": vector}))
        message = pb.UpsertPoints(points=[pb.PointStruct(id=pb.PointId(num=1), vectors=vectors)])
        return bytes(message.SerializeToString())

    def seconds(build: Callable[[], object]) -> float:
        durations = []
        for _ in range(5):
            start = time.perf_counter()
            build()
            durations.append(time.perf_counter() - start)
        return min(durations)

    assert seconds(lambda: upsert_request("docs", [point], insert_only=False)) < seconds(from_lists) / 3


@pytest.mark.parametrize(
    ("message", "passed_on"),
    [
        (
            "Wrong input: Vector dimension error: expected dim: 8, got 3",
            "Vector dimension error: expected dim: 8, got 3",
        ),
        ('Limit exceeded 100 > 10 for "limit". Help: Reduce', 'Limit exceeded 100 > 10 for "limit"'),
        ("Not existing vector name error: my secret name", "Not existing vector name error"),
        (PRIVATE_MESSAGE, ""),
        (None, ""),
        ("x" * 10**6, ""),
    ],
)
def test_only_known_phrases_are_shown(message: str | None, passed_on: str) -> None:
    """Limits in a message are shown. Texts, hosts and paths are not."""
    assert reason(message) == passed_on


# Over REST


@pytest.fixture
def rest() -> Iterator[RestDouble]:
    """HTTP on a loopback port."""
    server = RestDouble()
    server.answers["GET /collections/docs/exists"] = [(200, {}, result({"exists": True}))]
    yield server
    server.stop()


def _rest_store(rest: RestDouble, **fields: Any) -> ServerStore:
    more = {"grpc_port": 9, "deadline_s": 3.0, **fields}
    return ServerStore(f"http://127.0.0.1:{rest.port}", **more)


DONE: tuple[int, dict[str, str], Any] = (200, {}, result({"operation_id": 1, "status": "completed"}))


def test_rest_is_used_if_grpc_is_not_reachable(rest: RestDouble, caplog: pytest.LogCaptureFixture) -> None:
    """Behind a proxy that forwards only HTTP, REST is used, and a warning is logged."""
    rest.answers["PUT /collections/docs/points"] = [DONE]
    store = _rest_store(rest)
    store.upsert("docs", [_point(3)], insert_only=True)
    assert store.label == "Qdrant server (REST)"
    assert "gRPC port of Qdrant does not answer" in caplog.text
    call, body = rest.requests[-1]
    assert call == "PUT /collections/docs/points"
    assert body["update_mode"] == "insert_only"
    [sent] = body["points"]
    point = _point(3)
    assert (sent["id"], sent["payload"]) == (3, point.payload)
    assert point.colbert is not None
    assert np.asarray(sent["vector"]["colbert"], dtype=np.float32).tolist() == point.colbert.tolist()
    store.close()


def test_rest_sends_the_same_query(rest: RestDouble) -> None:
    """A search has the same stages over REST."""
    hit = {"id": 7, "version": 1, "score": 0.5, "payload": {"a": 1}}
    rest.answers["POST /collections/docs/points/query/batch"] = [(200, {}, result([{"points": [hit]}]))]
    store = _rest_store(rest, transport="rest")
    query = sample_vectors(1)
    where = {"must": [{"key": "a", "match": {"value": True}}]}
    [[returned]] = run(store, "docs", [search_by(query.dense, query.sparse, where=where, weights=(2.0, 1.0))])
    assert (returned.id, returned.score, returned.payload) == (7, 0.5, {"a": 1})
    [asked] = rest.requests[-1][1]["searches"]
    assert asked["query"] == {"rrf": {"k": 61, "weights": [2.0, 1.0]}}
    assert [branch["using"] for branch in asked["prefetch"]] == ["dense", "sparse"]
    assert all(branch["filter"]["must"][0]["match"] == {"value": True} for branch in asked["prefetch"])
    store.close()


@pytest.mark.parametrize(
    "transient",
    [
        (503, {}, "<html>proxy at 10.1.2.3</html>"),
        (500, {}, refusal(PRIVATE_MESSAGE)),
        (429, {"Retry-After": "0"}, refusal("Rate limiting exceeded")),
        (429, {}, refusal("Rate limiting exceeded")),
        (408, {}, refusal("slow")),
        (403, {}, refusal("Storage locked: maintenance")),
    ],
)
def test_a_transient_status_is_retried(rest: RestDouble, transient: Any) -> None:
    """Over REST too, transient faults are retried."""
    rest.answers["PUT /collections/docs/points"] = [transient, DONE]
    store = _rest_store(rest, transport="rest")
    store.upsert("docs", [_point()])
    assert len(rest.requests) == 2
    store.close()


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((400, {}, refusal(PRIVATE_MESSAGE)), StoreRejected, "Qdrant refused the request: HTTP 400"),
        (
            (
                400,
                {},
                refusal("JSON payload (33554433 bytes) is larger than allowed (limit: 33554432 bytes)."),
            ),
            StoreRejected,
            "HTTP 400",
        ),
        (
            (422, {}, refusal("Validation error in JSON body: [points[0].vector: must be unique]")),
            StoreRejected,
            "HTTP 422, must be unique",
        ),
        (
            (429, {}, refusal("request larger than rate limiter capacity, please try to split")),
            StoreRejected,
            "larger than rate limiter capacity",
        ),
        (
            (401, {}, "Must provide an API key"),
            AccessDenied,
            "denied access: HTTP 401; check QDRANT_API_KEY",
        ),
        ((403, {}, refusal("Forbidden")), AccessDenied, "denied access: HTTP 403"),
        ((405, {}, refusal(PRIVATE_MESSAGE)), NothingTaken, "Qdrant refused the request: HTTP 405"),
        ((302, {}, "<html>log in</html>"), NothingTaken, "Qdrant refused the request: HTTP 302"),
        ((501, {}, refusal(PRIVATE_MESSAGE)), NothingTaken, "Qdrant refused the request: HTTP 501"),
        (
            (404, {}, refusal("Not found: Collection `docs` doesn't exist!")),
            NotFound,
            "'docs' does not exist",
        ),
        ((404, {}, ""), NothingTaken, "does not match the API of Qdrant; check QDRANT_URL"),
        ((404, {}, "<html>default backend</html>"), NothingTaken, "does not match the API of Qdrant"),
        ((404, {}, {"detail": "Not Found"}), NothingTaken, "does not match the API of Qdrant"),
        ((200, {}, "surprise"), NothingTaken, "does not match the API of Qdrant"),
    ],
)
def test_a_permanent_status_is_not_retried(
    rest: RestDouble, answer: Any, error: type[WorkerError], message: str
) -> None:
    """Each HTTP status is mapped to the same error as the corresponding gRPC status."""
    rest.answers["PUT /collections/docs/points"] = [answer]
    store = _rest_store(rest, transport="rest")
    with pytest.raises(error) as caught:
        store.upsert("docs", [_point()])
    assert type(caught.value) is error
    assert message in caught.value.message
    assert len(rest.requests) == 1
    assert "user" not in caught.value.message
    store.close()


def test_an_unreachable_server_is_unavailable() -> None:
    """If neither port answers, the error is StoreUnavailable and does not contain the address."""
    store = ServerStore("http://127.0.0.1:9", grpc_port=9, deadline_s=0.3)
    with pytest.raises(StoreUnavailable, match="Qdrant does not answer: UNAVAILABLE") as caught:
        store.count("docs")
    assert "127.0.0.1" not in caught.value.message
    store.close()


@pytest.mark.slow
def test_interactive_calls_have_a_shorter_deadline() -> None:
    """While the server is unavailable, searches fail early, and writes are retried for longer."""
    repeated: set[str] = set()
    calling: list[str] = []
    store = ServerStore(
        "http://127.0.0.1:9",
        grpc_port=9,
        deadline_s=0.5,
        interactive_deadline_s=0,
        pause_s=0.05,
        retried=lambda: repeated.add(calling[-1]),
    )
    calls: dict[str, Callable[[], object]] = {
        "query": lambda: run(store, "docs", [search_by(sample_vectors(0).dense, None)]),
        "fetch": lambda: store.fetch("docs", [1], True, ()),
        "count": lambda: store.count("docs"),
        "verify": lambda: store.verify("docs", SCHEMA),
        "collection_of": lambda: store.collection_of("docs"),
        "patient collection_of": lambda: store.collection_of("docs", patient=True),
        "upsert": lambda: store.upsert("docs", [_point()]),
        "delete": lambda: store.delete("docs", ids=[1]),
        "ensure": lambda: store.ensure("docs", SCHEMA),
    }
    for name, call in calls.items():
        calling.append(name)
        with pytest.raises(StoreUnavailable):
            call()
    assert repeated == {"patient collection_of", "upsert", "delete", "ensure"}
    store.close()


def test_the_first_call_waits_for_a_server_that_starts(double: GrpcDouble) -> None:
    """The first call is retried while the server starts, and then uses gRPC."""
    double.fail("CollectionExists", Code.UNAVAILABLE, times=2)
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, deadline_s=5)
    store.ensure("docs", SCHEMA)
    assert store.label == "Qdrant server (gRPC)"
    store.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    """A server that does not answer."""
    server = Silent()
    yield server
    server.stop()


def _waiters(connecting: Future[Any]) -> int:
    """The number of threads that wait for a result."""
    return len(connecting._condition._waiters)  # type: ignore[attr-defined]


def _failing(store: ServerStore, callers: int) -> tuple[list[threading.Thread], SimpleQueue[StoreUnavailable]]:
    """Start threads that call `count` concurrently. Returns them with a queue of their errors."""
    failures: SimpleQueue[StoreUnavailable] = SimpleQueue()
    barrier = threading.Barrier(callers)

    def count() -> None:
        barrier.wait(PATIENCE_S)
        with pytest.raises(StoreUnavailable) as caught:
            store.count("docs")
        failures.put(caught.value)

    threads = [threading.Thread(target=count) for _ in range(callers)]
    for thread in threads:
        thread.start()
    return threads, failures


def test_concurrent_first_calls_share_one_probe(silent: Silent) -> None:
    """Concurrent first calls share one probe of a silent server, and the next call probes again."""
    store = ServerStore(f"http://127.0.0.1:{silent.port}", grpc_port=9, deadline_s=0)
    threads, failures = _failing(store, 6)
    until(lambda: store._connection._connecting is not None and _waiters(store._connection._connecting) == 6)
    asked = silent.taken.get(timeout=PATIENCE_S)
    asked.close()  # without an answer
    for thread in threads:
        thread.join(PATIENCE_S)
    errors = [failures.get(timeout=PATIENCE_S) for _ in threads]
    assert all("Qdrant does not answer" in error.message for error in errors)
    assert len({id(error) for error in errors}) == 6
    assert silent.taken.empty()
    [thread], _ = _failing(store, 1)
    silent.taken.get(timeout=PATIENCE_S).close()
    store.close()
    thread.join(PATIENCE_S)


def test_closing_releases_the_callers_of_a_silent_server(silent: Silent) -> None:
    """A worker that stops does not wait for a server that has never answered."""
    store = ServerStore(f"http://127.0.0.1:{silent.port}", grpc_port=9, timeout_s=600, deadline_s=600)
    threads, failures = _failing(store, 3)
    asked = silent.taken.get(timeout=PATIENCE_S)
    store.close()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert "the store is closed" in failures.get(timeout=PATIENCE_S).message
    assert store.label == "Qdrant server"
    asked.close()


def test_an_answer_after_the_close_leaves_no_client_open(rest: RestDouble) -> None:
    """If the connection is closed during the probe, all clients are closed."""
    clients: list[QdrantClient] = []

    def new_client(**options: Any) -> QdrantClient:
        clients.append(QdrantClient(**options))
        return clients[-1]

    connection = ServerConnection(
        ServerAddress.of(ServerUrl.parse(f"http://127.0.0.1:{rest.port}"), "auto", 9),
        None,
        timeout_s=5,
        deadline_s=3.0,
        interactive_deadline_s=3.0,
        pause_s=0.02,
        retried=lambda: None,
        new_client=new_client,
    )
    rest.before["GET /collections/docs/exists"] = connection.close
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        connection.call("docs", lambda transport: transport.client.count("docs"))
    for thread in threading.enumerate():
        if thread.name == "connect":
            thread.join(PATIENCE_S)
    assert len(clients) == 5
    assert all(client._client.closed for client in clients)  # type: ignore[attr-defined]


def test_the_reconnect_backoff_is_short(server_store: ServerStore) -> None:
    """The reconnect backoff of gRPC stays well below the deadline of a call."""
    options = server_store._connection._first.patient.client._client._grpc_options  # type: ignore[attr-defined]
    assert options["grpc.max_reconnect_backoff_ms"] <= 2_000
    assert options["grpc.initial_reconnect_backoff_ms"] <= 200


def test_closing_ends_a_call_that_waits(double: GrpcDouble) -> None:
    """A worker that stops does not wait for a server that does not answer."""
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, deadline_s=600, interactive_deadline_s=600)
    store.ensure("docs", SCHEMA)
    double.fail("Count", Code.UNAVAILABLE, times=10**6)
    outcome: list[BaseException] = []

    def count() -> None:
        try:
            store.count("docs")
        except StoreUnavailable as exc:
            outcome.append(exc)

    thread = threading.Thread(target=count)
    thread.start()
    until(lambda: "Count" in double.calls)
    store.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert "closed" in str(outcome[0])
