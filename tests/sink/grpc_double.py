"""Double of a Qdrant server: real gRPC on a loopback port, with Qdrant Edge as its engine.

It implements the services of qdrant_client.grpc, makes the checks of the server that Qdrant Edge does not make, and can
be scripted to fail, to be in strict mode, or to be of an older version. It does not import `qdrant_sink`, so that it
reads only the messages that the adapter sends.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc  # type: ignore[import-untyped,unused-ignore]
import qdrant_edge as edge
from qdrant_client import grpc as pb
from qdrant_client.conversions.conversion import grpc_to_payload

from tests.sink.faults import Script, spoil
from tests.sink.grpc_collections import add_vector, collection_info, config_of, field_index, merge_update
from tests.sink.grpc_messages import (
    filter_of,
    id_message,
    id_of,
    order_of,
    payload_of,
    query_of,
    retrieved_point,
    scored_point,
    stages_of,
    stored_vector,
)
from tests.sink.grpc_refusals import (
    PointNotFoundError,
    RefusedError,
    Version,
    as_read_by,
    check_index_count,
    check_indexed,
    check_name,
    strict_forbids_exact,
    strict_mode_error,
)
from tests.sink.query_limits import check_query_limits


@dataclass
class Failure:
    """The next `times` calls of `method` fail with this status."""

    method: str
    code: Any
    times: int
    details: str = ""
    retry_after: float | None = None
    after: bool = False  # execute the call and lose its answer


@dataclass
class GrpcDouble:
    """The server double with its scripted faults."""

    root: Path
    host: str = "127.0.0.1"
    port: int = 0  # of 0 the system chooses one
    failures: list[Failure] = field(default_factory=list)
    refused_ids: set[int | str] = field(default_factory=set)
    api_key: str | None = None
    calls: list[str] = field(default_factory=list)
    update_status: pb.UpdateStatus.ValueType = pb.UpdateStatus.Completed
    before: dict[str, Callable[[], None]] = field(default_factory=dict)
    statuses: list[pb.CollectionStatus.ValueType] = field(default_factory=list)  # of the next calls of Get, then green
    queries: list[pb.QueryBatchPoints] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    indexes: dict[str, dict[str, pb.PayloadSchemaInfo]] = field(default_factory=dict)
    script: Script | None = None
    strict_modes: dict[str, pb.StrictModeConfig] = field(default_factory=dict)  # by collection
    version: Version = (1, 20, 0)
    query_limits: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.collections: dict[str, tuple[pb.CreateCollection, edge.EdgeShard]] = {}
        self.lock = threading.RLock()
        self.start()

    def start(self) -> None:
        """Listen on any port or, after `stop`, on the same port. The collections are kept."""
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._server = grpc.server(ThreadPoolExecutor(8), options=unlimited)
        pb.add_QdrantServicer_to_server(_Root(self), self._server)  # type: ignore[no-untyped-call,unused-ignore]
        pb.add_CollectionsServicer_to_server(_Collections(self), self._server)  # type: ignore[no-untyped-call,unused-ignore]
        pb.add_PointsServicer_to_server(_Points(self), self._server)  # type: ignore[no-untyped-call,unused-ignore]
        self.port = self._server.add_insecure_port(f"{self.host}:{self.port}")
        self._server.start()

    def stop(self) -> None:
        """Drop all connections and refuse new ones."""
        self._server.stop(None).wait(5)

    def fail(self, method: str, code: Any, times: int = 1, **more: Any) -> None:
        """Script a fault."""
        self.failures.append(Failure(method, code, times, **more))

    def handle(self, method: str, context: Any, work: Callable[[], Any]) -> Any:
        """Handle a call: authenticate it, fail as scripted, or execute it under the lock."""
        if method != "HealthCheck":  # which the adapter sends at most once a minute
            self.calls.append(method)
        sent = dict(context.invocation_metadata()).get("api-key")
        if self.api_key is not None and sent != self.api_key:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, f"Invalid API key or JWT: {sent}")
        before = self.before.pop(method, None)
        if before is not None:
            before()
        scripted = next((f for f in self.failures if f.method == method and f.times), None)
        if scripted is not None:
            scripted.times -= 1
            if scripted.after:
                with self.lock:
                    work()
            if scripted.retry_after is not None:
                context.set_trailing_metadata((("retry-after", str(scripted.retry_after)),))
            context.abort(scripted.code, scripted.details)
        kind = None if self.script is None else self.script.draw(method)
        if kind is not None:
            return spoil(kind, context, lambda: self._worked(context, work))
        return self._worked(context, work)

    def _worked(self, context: Any, work: Callable[[], Any]) -> Any:
        try:
            with self.lock:
                return work()
        except PointNotFoundError as exc:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Not found: No point with id {exc} found")
        except KeyError as exc:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Not found: Collection `{exc.args[0]}` doesn't exist!")
        except FileExistsError as exc:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"Wrong input: {exc}")
        except OSError as exc:
            context.abort(grpc.StatusCode.INTERNAL, str(exc))
        except RefusedError as exc:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        except Exception as exc:  # noqa: BLE001 - the server answers with every error of its engine
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Wrong input: {exc}")

    def shard(self, name: str) -> edge.EdgeShard:
        """Return the engine of a collection. Raises KeyError if the collection does not exist."""
        return self.collections[self.real(name)][1]

    def real(self, name: str) -> str:
        """Resolve a name or an alias to its collection."""
        return self.aliases.get(name, name)

    def strict_mode(self, name: str) -> pb.StrictModeConfig:
        """Return the strict mode of a collection or an alias."""
        return self.strict_modes.get(self.real(name)) or pb.StrictModeConfig()

    def read_filter(self, name: str, where: pb.Filter, *, update: bool = False) -> edge.Filter:
        """Convert a filter for the engine, with the checks of the server."""
        known = as_read_by(self.version, where)
        strict = self.strict_mode(name)
        setting: Literal["unindexed_filtering_update", "unindexed_filtering_retrieve"]
        setting = "unindexed_filtering_update" if update else "unindexed_filtering_retrieve"
        if strict.enabled and strict.HasField(setting) and not getattr(strict, setting):
            check_indexed(known, self.indexes[self.real(name)])
        return filter_of(known)

    def read_query(self, name: str, query: Any) -> edge.QueryRequest:
        """Convert a query for the engine, with the checks of the server."""
        known = type(query)()
        known.CopyFrom(query)
        for part in stages_of(known):
            if self.version < (1, 17, 0) and part.query.HasField("rrf"):
                part.query.rrf.ClearField("weights")
            if part.HasField("filter"):
                self.read_filter(name, part.filter)
                part.filter.CopyFrom(as_read_by(self.version, part.filter))
        return query_of(known)

    def done(self) -> pb.PointsOperationResponse:
        """Create the answer to an update."""
        return pb.PointsOperationResponse(result=pb.UpdateResult(operation_id=1, status=self.update_status))


class _Root(pb.QdrantServicer):  # type: ignore[misc,unused-ignore]
    def __init__(self, double: GrpcDouble) -> None:
        self.double = double

    def HealthCheck(self, request: Any, context: Any) -> Any:  # noqa: N802
        reply = pb.HealthCheckReply(title="double", version=".".join(map(str, self.double.version)))
        return self.double.handle("HealthCheck", context, lambda: reply)


class _Collections(pb.CollectionsServicer):  # type: ignore[misc,unused-ignore]
    def __init__(self, double: GrpcDouble) -> None:
        self.double = double

    def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            double, name = self.double, self.double.real(request.collection_name)
            created, shard = double.collections[name]
            status = double.statuses.pop(0) if double.statuses else pb.CollectionStatus.Green
            counts = shard.info()
            info = collection_info(
                created, double.indexes[name], status, counts.points_count, counts.indexed_vectors_count
            )
            return pb.GetCollectionInfoResponse(result=info)

        return self.double.handle("Get", context, work)

    def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            collections = [pb.CollectionDescription(name=name) for name in self.double.collections]
            return pb.ListCollectionsResponse(collections=collections)

        return self.double.handle("List", context, work)

    def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            name = request.collection_name
            check_name(name)
            if name in self.double.collections or name in self.double.aliases:
                raise FileExistsError(f"Collection `{name}` already exists!")
            shard = edge.EdgeShard.create(str(self.double.root / uuid.uuid4().hex), config_of(request))
            self.double.indexes[name] = {}
            if self.double.version < (1, 16, 0):
                request.ClearField("metadata")
            self.double.collections[name] = (request, shard)
            return pb.CollectionOperationResponse(result=True)

        return self.double.handle("Create", context, work)

    def Update(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            name = self.double.real(request.collection_name)
            if self.double.version < (1, 16, 0):
                request.ClearField("metadata")
            merge_update(self.double.collections[name][0], request)
            if request.HasField("strict_mode_config"):
                self.double.strict_modes.setdefault(name, pb.StrictModeConfig()).MergeFrom(request.strict_mode_config)
            return pb.CollectionOperationResponse(result=True)

        return self.double.handle("Update", context, work)

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            name = request.collection_name
            existed = self.double.collections.pop(name, None) is not None
            if existed:
                del self.double.indexes[name]
                self.double.aliases = {alias: to for alias, to in self.double.aliases.items() if to != name}
            return pb.CollectionOperationResponse(result=existed)

        return self.double.handle("DeleteCollection", context, work)

    def UpdateAliases(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            aliases = dict(self.double.aliases)  # a copy, so that either all actions apply or none
            for action in request.actions:
                if action.HasField("delete_alias"):
                    aliases.pop(action.delete_alias.alias_name, None)
                if action.HasField("create_alias"):
                    alias, name = action.create_alias.alias_name, action.create_alias.collection_name
                    if name not in self.double.collections:
                        raise KeyError(name)
                    if alias in self.double.collections or alias in aliases:
                        raise ValueError(f"Alias `{alias}` already exists!")
                    aliases[alias] = name
            self.double.aliases = aliases
            return pb.CollectionOperationResponse(result=True)

        return self.double.handle("UpdateAliases", context, work)

    def ListCollectionAliases(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            return pb.ListAliasesResponse(
                aliases=[
                    pb.AliasDescription(alias_name=alias, collection_name=name)
                    for alias, name in self.double.aliases.items()
                    if name == request.collection_name
                ]
            )

        return self.double.handle("ListCollectionAliases", context, work)

    def ListAliases(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            return pb.ListAliasesResponse(
                aliases=[
                    pb.AliasDescription(alias_name=alias, collection_name=name)
                    for alias, name in self.double.aliases.items()
                ]
            )

        return self.double.handle("ListAliases", context, work)

    def CollectionExists(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            exists = self.double.real(request.collection_name) in self.double.collections
            return pb.CollectionExistsResponse(result=pb.CollectionExists(exists=exists))

        return self.double.handle("CollectionExists", context, work)


class _Points(pb.PointsServicer):  # type: ignore[misc,unused-ignore]
    def __init__(self, double: GrpcDouble) -> None:
        self.double = double

    def Upsert(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            if not request.wait:
                raise ValueError("the sink always waits")
            shard = self.double.shard(request.collection_name)
            points = [self._point(point) for point in request.points]
            insert = request.update_mode == pb.UpdateMode.InsertOnly and self.double.version >= (1, 17, 0)
            mode = edge.UpdateMode.InsertOnly if insert else edge.UpdateMode.Upsert
            shard.update(edge.UpdateOperation.upsert_points(points, update_mode=mode))
            return self.double.done()

        return self.double.handle("Upsert", context, work)

    def _point(self, point: Any) -> edge.Point:
        point_id = id_of(point.id)
        return edge.Point(point_id, self._vectors(point_id, point.vectors), grpc_to_payload(point.payload))

    def _vectors(self, point_id: Any, message: Any) -> dict[str, Any]:
        if point_id in self.double.refused_ids:
            raise ValueError(f'refused point with "a secret payload" of {point_id} at 10.1.2.3:6334')
        vectors = {name: stored_vector(vector) for name, vector in message.vectors.vectors.items()}
        if message.HasField("vector"):
            vectors[""] = stored_vector(message.vector)
        return vectors

    def UpdateVectors(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            if not request.wait:
                raise ValueError("the sink always waits")
            shard = self.double.shard(request.collection_name)
            vectors = {id_of(point.id): self._vectors(id_of(point.id), point.vectors) for point in request.points}
            records = shard.retrieve(list(vectors), with_payload=False, with_vector=False)
            existing = {str(record.id) for record in records}
            missing = [point for point in vectors if str(point) not in existing]
            known = [edge.PointVectors(point, vectors[point]) for point in vectors if point not in missing]
            if known:
                shard.update(edge.UpdateOperation.update_vectors(known))
            if missing:  # other points are stored all the same, as on the server
                raise PointNotFoundError(missing[0])
            return self.double.done()

        return self.double.handle("UpdateVectors", context, work)

    def CreateVectorName(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            if not request.wait:
                raise ValueError("the sink always waits")
            name = self.double.real(request.collection_name)
            created, shard = self.double.collections[name]
            operation = add_vector(created, request)
            if operation is not None:
                shard.update(operation)
            return self.double.done()

        if self.double.version < (1, 18, 0):
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        return self.double.handle("CreateVectorName", context, work)

    def Query(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            shard = self.double.shard(request.collection_name)
            hits = shard.query(self.double.read_query(request.collection_name, request))
            return pb.QueryResponse(result=[scored_point(hit) for hit in hits])

        return self.double.handle("Query", context, work)

    def QueryBatch(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            shard = self.double.shard(request.collection_name)
            self.double.queries.append(request)
            check_query_limits(self.double.query_limits, request.query_points)
            results = []
            for query in request.query_points:
                hits = shard.query(self.double.read_query(request.collection_name, query))
                results.append(pb.BatchResult(result=[scored_point(hit) for hit in hits]))
            return pb.QueryBatchResponse(result=results)

        return self.double.handle("QueryBatch", context, work)

    def Count(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            shard = self.double.shard(request.collection_name)
            name = request.collection_name
            chosen = self.double.read_filter(name, request.filter) if request.HasField("filter") else None
            if request.exact and strict_forbids_exact(self.double.strict_mode(name)):
                raise strict_mode_error("Exact search disabled!", "Set exact=false.")
            count = shard.count(edge.CountRequest(exact=request.exact, filter=chosen))
            return pb.CountResponse(result=pb.CountResult(count=count))

        return self.double.handle("Count", context, work)

    def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            shard = self.double.shard(request.collection_name)
            records = shard.retrieve(
                [id_of(i) for i in request.ids],
                with_payload=payload_of(request.with_payload),
                with_vector=list(request.with_vectors.include.names) or request.with_vectors.enable,
            )
            return pb.GetResponse(result=[retrieved_point(record) for record in records])

        return self.double.handle("Get", context, work)

    def Scroll(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            name = request.collection_name
            records, following = self.double.shard(name).scroll(
                edge.ScrollRequest(
                    offset=id_of(request.offset) if request.HasField("offset") else None,
                    limit=request.limit,
                    filter=self.double.read_filter(name, request.filter) if request.HasField("filter") else None,
                    with_payload=payload_of(request.with_payload),
                    with_vector=False,
                    order_by=order_of(request.order_by) if request.HasField("order_by") else None,
                )
            )
            offset = None if following is None else id_message(following)
            return pb.ScrollResponse(result=[retrieved_point(record) for record in records], next_page_offset=offset)

        return self.double.handle("Scroll", context, work)

    def SetPayload(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            ids = [id_of(i) for i in request.points_selector.points.ids]
            key = request.key if request.HasField("key") else None
            operation = edge.UpdateOperation.set_payload(ids, grpc_to_payload(request.payload), key)
            self.double.shard(request.collection_name).update(operation)
            return self.double.done()

        return self.double.handle("SetPayload", context, work)

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            shard = self.double.shard(request.collection_name)
            if request.points.WhichOneof("points_selector_one_of") == "filter":
                chosen = self.double.read_filter(request.collection_name, request.points.filter, update=True)
                shard.update(edge.UpdateOperation.delete_points_by_filter(chosen))
            else:
                ids = [id_of(i) for i in request.points.points.ids]
                shard.update(edge.UpdateOperation.delete_points(ids))
            return self.double.done()

        return self.double.handle("Delete", context, work)

    def CreateFieldIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            if not request.wait:
                raise ValueError("the sink always waits")
            shard, name = self.double.shard(request.collection_name), self.double.real(request.collection_name)
            strict = self.double.strict_mode(name)
            if strict.enabled and strict.HasField("max_payload_index_count"):
                check_index_count(strict.max_payload_index_count, self.double.indexes[name])
            info, kind = field_index(request)
            shard.update(edge.UpdateOperation.create_field_index(request.field_name, kind))
            self.double.indexes[name][request.field_name] = info
            return self.double.done()

        return self.double.handle("CreateFieldIndex", context, work)
