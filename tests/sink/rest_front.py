"""The REST API of a server double: requests over HTTP, which the engine of a `GrpcDouble` answers."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import unquote

import grpc  # type: ignore[import-untyped,unused-ignore]
from pydantic import BaseModel, TypeAdapter
from qdrant_client import QdrantClient, models

from tests.sink.grpc_double import GrpcDouble
from tests.sink.rest_double import refusal, result

Json = dict[str, Any]


class RestFront:
    """REST in front of a double, on a port of the double's host.

    Attributes:
        requests: method and path of every request.
    """

    def __init__(self, double: GrpcDouble, port: int = 0) -> None:
        self.requests: list[str] = []
        self._client = QdrantClient(
            url=f"http://{double.host}", grpc_port=double.port, prefer_grpc=True, check_compatibility=False
        )
        front = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = f"{self.command} {self.path.partition('?')[0]}"
                front.requests.append(request)
                try:
                    status, answer = 200, front.answer(request, json.loads(body or b"{}"))
                    answer = answer if request == VERSION else result(answer)
                except grpc.RpcError as exc:
                    status, answer = 404 if exc.code() is grpc.StatusCode.NOT_FOUND else 400, refusal(exc.details())
                except LookupError:
                    status, answer = 404, refusal("Not found")
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_PATCH = _serve  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((double.host, port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._client.close()

    def answer(self, request: str, body: Json) -> Any:
        """Answer a request as the double does over gRPC."""
        for pattern, call in ROUTES.items():
            matched = re.fullmatch(pattern, request)
            if matched is not None:
                return _json(call(self._client, body, *map(unquote, matched.groups())))
        raise LookupError(request)


def _json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [_json(item) for item in value] if isinstance(value, list) else value


def _create(client: QdrantClient, body: Json, name: str) -> bool:
    request = models.CreateCollection.model_validate(body)
    return client.create_collection(
        name,
        vectors_config=request.vectors,
        sparse_vectors_config=request.sparse_vectors,
        hnsw_config=request.hnsw_config,
        on_disk_payload=request.on_disk_payload,
        metadata=request.metadata,
    )


def _upsert(client: QdrantClient, body: Json, name: str) -> models.UpdateResult:
    return client.upsert(name, models.PointsList.model_validate(body).points, wait=True)


def _query(client: QdrantClient, body: Json, name: str) -> Any:
    return client.query_batch_points(name, models.QueryRequestBatch.model_validate(body).searches)


def _query_one(client: QdrantClient, body: Json, name: str) -> models.QueryResponse:
    return client.query_batch_points(name, [models.QueryRequest.model_validate(body)])[0]


def _delete(client: QdrantClient, body: Json, name: str) -> models.UpdateResult:
    return client.delete(name, TypeAdapter(models.PointsSelector).validate_python(body), wait=True)


def _retrieve(client: QdrantClient, body: Json, name: str) -> Any:
    request = models.PointRequest.model_validate(body)
    return client.retrieve(name, request.ids, request.with_payload or False, request.with_vector or False)


def _scroll(client: QdrantClient, body: Json, name: str) -> Json:
    request = models.ScrollRequest.model_validate(body)
    records, following = client.scroll(
        name,
        request.filter,
        limit=request.limit or 10,
        order_by=request.order_by,
        offset=request.offset,
        with_payload=request.with_payload or False,
        with_vectors=False,
    )
    return {"points": _json(list(records)), "next_page_offset": None if following is None else _id(following)}


def _id(message: Any) -> Any:
    return message.num if message.HasField("num") else message.uuid


def _count(client: QdrantClient, body: Json, name: str) -> models.CountResult:
    return client.count(name, models.CountRequest.model_validate(body).filter, exact=True)


def _index(client: QdrantClient, body: Json, name: str) -> models.UpdateResult:
    return client.create_payload_index(name, body["field_name"], body["field_schema"], wait=True)


VERSION: Final = "GET /"
"""The request for the version, whose answer alone is not wrapped."""

ROUTES: Final[dict[str, Callable[..., Any]]] = {
    VERSION: lambda client, _body: client.info(),
    r"GET /collections": lambda client, _body: client.get_collections(),
    r"GET /aliases": lambda client, _body: client.get_aliases(),
    r"POST /collections/aliases": lambda client, body: client.update_collection_aliases(
        models.ChangeAliasesOperation.model_validate(body).actions
    ),
    r"GET /collections/([^/]+)/exists": lambda client, _body, name: {"exists": client.collection_exists(name)},
    r"GET /collections/([^/]+)/aliases": lambda client, _body, name: client.get_collection_aliases(name),
    r"GET /collections/([^/]+)": lambda client, _body, name: client.get_collection(name),
    r"PUT /collections/([^/]+)": _create,
    r"PUT /collections/([^/]+)/index": _index,
    r"PUT /collections/([^/]+)/points": _upsert,
    r"POST /collections/([^/]+)/points": _retrieve,
    r"POST /collections/([^/]+)/points/query/batch": _query,
    r"POST /collections/([^/]+)/points/query": _query_one,
    r"POST /collections/([^/]+)/points/scroll": _scroll,
    r"POST /collections/([^/]+)/points/count": _count,
    r"POST /collections/([^/]+)/points/delete": _delete,
}
"""The calls by method and path."""
