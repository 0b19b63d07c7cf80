"""In strict mode, as Qdrant's cloud has it, the indexes of the schema are made at the first use of any kind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc  # type: ignore[import-untyped,unused-ignore]
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as pb

from embedder.errors import NotFound
from qdrant_sink.errors import IndexRequired, StoreRejected
from qdrant_sink.filters import Filter
from qdrant_sink.indexes import RETRY_INTERVAL_S, MissingIndexes
from qdrant_sink.schema import PayloadIndex
from qdrant_sink.searching import run
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import SCHEMA, draft, sample_vectors, search_by
from tests.sink.stores import real_grpc_port, real_server
from tests.sink.writing import write

INDEXED = replace(SCHEMA, payload_indexes={"parity": "integer", "text": "keyword"})
EVEN: Filter = {"must": [{"key": "parity", "match": {"value": 0}}]}
FIRST: Filter = {"must": [{"key": "parity", "match": {"value": 0}}, {"key": "text", "match": {"value": "text 0"}}]}

AS_IN_THE_CLOUD = models.StrictModeConfig(
    enabled=True,
    unindexed_filtering_retrieve=False,
    unindexed_filtering_update=False,
    max_payload_index_count=100,
)
"""The strict mode of new collections in Qdrant's cloud."""

Use = Callable[[Store, str], object]
USES: dict[str, Use] = {
    "count": lambda store, collection: store.count(collection, EVEN),
    "search": lambda store, collection: run(
        store, collection, [search_by(sample_vectors(0).dense, sample_vectors(0).sparse, where=EVEN)]
    ),
    "delete": lambda store, collection: store.delete(collection, where=FIRST),
}


@pytest.fixture(params=["double", pytest.param("server", marks=pytest.mark.server)])
def strict(request: pytest.FixtureRequest, tmp_path: Path, collection: str) -> Iterator[Store]:
    """A server whose collection has six points and no index, in strict mode as Qdrant's cloud sets it."""
    double = GrpcDouble(tmp_path) if request.param == "double" else None
    url, key = real_server() if double is None else ("http://127.0.0.1:9", None)
    port = real_grpc_port() if double is None else double.port
    store = ServerStore(url, key, grpc_port=port, deadline_s=5.0)
    store.ensure(collection, SCHEMA)
    write(store, collection, [draft(i) for i in range(6)], SCHEMA)
    client = QdrantClient(
        url=url, api_key=key, grpc_port=port or 6334, prefer_grpc=double is not None, check_compatibility=False
    )
    client.update_collection(collection, strict_mode_config=AS_IN_THE_CLOUD)
    client.close()
    yield store
    store.close()
    if double is not None:
        double.stop()


@pytest.mark.parametrize("use", USES)
def test_a_filter_by_a_configured_key_creates_its_index(strict: Store, collection: str, use: str) -> None:
    """A search, a count and a deletion make the index that they need, and answer as if it had been there."""
    with pytest.raises(IndexRequired):
        USES[use](strict, collection)
    indexes = MissingIndexes(INDEXED)
    answer = indexes.run(strict, collection, lambda: USES[use](strict, collection))
    if use == "count":
        assert answer == 3
    elif use == "delete":
        assert answer == 1
        assert strict.count(collection) == 5
    else:
        assert isinstance(answer, list)
        assert {hit.id for hit in answer[0]} == {0, 2, 4}
    USES[use](strict, collection)  # now without help


def test_a_key_that_is_not_configured_is_refused_by_name(strict: Store, collection: str) -> None:
    """The refusal names the key, and nothing is created for a key that the operator did not choose."""
    indexes = MissingIndexes(SCHEMA)
    with pytest.raises(IndexRequired, match=r"'parity' has no index .* payloadIndexes") as caught:
        indexes.run(strict, collection, lambda: strict.count(collection, EVEN))
    assert caught.value.key == "parity"


def test_an_index_of_another_type_is_refused_once(strict: Store, collection: str) -> None:
    """An index that cannot serve the condition is made once, and then the refusal names its type and those that could.

    It does not ask for the key in `payloadIndexes`, which has it already.
    """
    indexes = MissingIndexes(replace(SCHEMA, payload_indexes={"parity": "text"}))
    message = r"'parity', which payloadIndexes has as text, .* \(integer\); write another condition"
    with pytest.raises(IndexRequired, match=message) as raised:
        indexes.run(strict, collection, lambda: strict.count(collection, EVEN))
    assert (raised.value.key, raised.value.types) == ("parity", "integer")


def test_adding_makes_every_index_of_the_schema(strict: Store, collection: str) -> None:
    """After `add`, every filter by a configured key is accepted."""
    MissingIndexes(INDEXED).add(strict, collection)
    assert strict.count(collection, FIRST) == 1
    assert strict.verify(collection, INDEXED)


@pytest.fixture
def unindexed(server_store: ServerStore, double: GrpcDouble) -> ServerStore:
    """The double in strict mode, with a collection that has no index."""
    server_store.ensure("docs", SCHEMA)
    write(server_store, "docs", [draft(i) for i in range(6)], SCHEMA)
    double.strict_modes["docs"] = pb.StrictModeConfig(enabled=True, unindexed_filtering_retrieve=False)
    return server_store


def test_a_key_without_the_right_says_so_in_the_answer(unindexed: ServerStore, double: GrpcDouble) -> None:
    """If the API key may not create an index, the refusal of the filter says it and names the key of the payload."""
    double.fail("CreateFieldIndex", grpc.StatusCode.PERMISSION_DENIED, details="Forbidden: secret 10.1.2.3")
    with pytest.raises(IndexRequired) as caught:
        MissingIndexes(INDEXED).run(unindexed, "docs", lambda: unindexed.count("docs", EVEN))
    assert caught.value.message == (
        "Qdrant filters only by indexed keys (strict mode), and the index on 'parity', which payloadIndexes has, "
        "cannot be created: Qdrant denied access: PERMISSION_DENIED; check QDRANT_API_KEY and its permissions"
    )


def test_the_limit_of_indexes_is_named(unindexed: ServerStore, double: GrpcDouble) -> None:
    """If the collection may have no further index, the refusal of the filter says it."""
    double.strict_modes["docs"].max_payload_index_count = 0
    with pytest.raises(StoreRejected, match=r"maximum number of payload indices \(0\)"):
        MissingIndexes(INDEXED).run(unindexed, "docs", lambda: unindexed.count("docs", EVEN))


def test_a_read_that_needs_no_index_goes_on(
    unindexed: ServerStore, double: GrpcDouble, caplog: pytest.LogCaptureFixture
) -> None:
    """Indexes that cannot be created are logged and attempted again after a minute, and no read fails for them."""
    double.fail("CreateFieldIndex", grpc.StatusCode.PERMISSION_DENIED, times=3)
    now = [0.0]
    indexes = MissingIndexes(INDEXED, clock=lambda: now[0])
    for _ in range(3):
        indexes.add(unindexed, "docs")
    assert double.calls.count("CreateFieldIndex") == 2
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "lacks the payload index on 'parity', which cannot be created: Qdrant denied access" in warnings[0]
    now[0] = RETRY_INTERVAL_S
    indexes.add(unindexed, "docs")
    assert double.calls.count("CreateFieldIndex") == 4
    assert set(double.indexes["docs"]) == {"text"}


def test_other_errors_pass(unindexed: ServerStore) -> None:
    """A collection that does not exist is not created for its indexes."""
    indexes = MissingIndexes(INDEXED)
    with pytest.raises(NotFound):
        indexes.run(unindexed, "missing", lambda: unindexed.count("missing", EVEN))
    indexes.add(unindexed, "missing")
    assert unindexed.collection_of("missing") is None


def test_one_index_is_created_or_verified(store: Store, collection: str) -> None:
    """Creating an index twice is harmless, and every store counts by it."""
    store.ensure(collection, SCHEMA)
    write(store, collection, [draft(i) for i in range(4)], SCHEMA)
    for _ in range(2):
        store.ensure_index(collection, "parity", PayloadIndex("integer"))
    assert store.count(collection, EVEN) == 2
    assert store.verify(collection, replace(SCHEMA, payload_indexes={"parity": "integer"}))
