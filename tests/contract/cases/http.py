"""HTTP: every route, status and header that a client reads."""

from __future__ import annotations

from typing import Any, Final

from tests.contract.cases.shared import NOTES, TEXTS
from tests.contract.steps import Call, Scenario

KEY: Final = "k3y-0123456789"
JSON: Final = {"Content-Type": "application/json"}
INPUTS: Final = (
    {"data": TEXTS[0], "data_type": "text", "model": "mini", "options": {"output": "sparse"}},
    {"data": TEXTS[1], "data_type": "text", "model": "mini", "options": {}},
    {"data": TEXTS[0], "data_type": "text", "model": "mini", "options": {"output": "dense"}},
    {"data": TEXTS[0], "data_type": "text", "model": "mini:colbert", "options": None},
)
PATHS: Final = ("/", "/ping", "/health", "/collections", "/v1/models", "/openapi.json")


def _get(name: str, path: str, **more: Any) -> Call:
    return Call(name, "GET", path, **more)


def _post(name: str, path: str, body: Any, **more: Any) -> Call:
    return Call(name, "POST", path, body, **more)


def _raw(name: str, content: bytes | list[bytes], **more: Any) -> Call:
    return Call(name, "POST", "/embed", content=content, **{"headers": JSON, **more})


SCENARIOS: Final = (
    Scenario(
        "routes",
        [
            _post("points", "/points", {"texts": list(TEXTS[:3]), "qdrant": {"collection": NOTES, "ids": [1, 2, 3]}}),
            _post(
                "points-as-queries", "/points", {"texts": ["a"], "isPassage": False, "qdrant": {"collection": NOTES}}
            ),
            _post("search", "/search", {"collection": NOTES, "queries": ["copy files"], "limit": 1}),
            _post(
                "search-with-operation",
                "/search",
                {"operation": "search", "collection": NOTES, "queries": ["a"], "limit": 1},
            ),
            _post("count", "/points/count", {"collection": NOTES}),
            _post("delete", "/points/delete", {"collection": NOTES, "ids": [2]}),
            _post("embed", "/embed", {"texts": ["a"], "vectors": ["dense"], "timings": True}),
            _post("embed-and-store", "/embed", {"texts": ["a"], "qdrant": {"collection": NOTES, "ids": [9]}}),
            _post("score", "/score", {"pairs": [["a", "a"]]}),
            _post("embeddings", "/v1/embeddings", {"input": "a"}),
            _post(
                "embeddings-base64", "/v1/embeddings", {"input": ["a"], "encoding_format": "base64", "model": "mini"}
            ),
            _post(
                "embeddings-with-warnings", "/v1/embeddings", {"input": "a b c", "truncate_prompt_tokens": 3, "foo": 1}
            ),
            _post("embeddings-of-azure", "/openai/deployments/mini/embeddings?api-version=1", {"input": "a"}),
            _post("embeddings-trailing-slash", "/v1/embeddings/", {"input": "a"}),
            _post("embeddings-doubled-slash", "/v1//embeddings", {"input": "a"}),
            _post("trailing-slash", "/embed/", {"texts": ["a"]}),
            _get("models", "/v1/models"),
            _get("one-model", "/v1/models/mini"),
            _get("health", "/health"),
            Call("health-head", "HEAD", "/health"),
            _get("ping", "/ping"),
            Call("ping-head", "HEAD", "/ping"),
            _get("page", "/"),
            _get("collections", "/collections"),
            _get("metrics", "/metrics"),
            _get("openapi", "/openapi.json"),
            _get("named-collections", "/collections", settings={"QDRANT_COLLECTIONS": "a,b", "QDRANT_COLLECTION": "a"}),
            _get("health-with-a-name", "/health", settings={"SERVED_MODEL_NAME": "BAAI/bge-m3"}),
        ],
    ),
    Scenario(
        "errors",
        [
            _get("no-such-path", "/nowhere"),
            _post("nearly-a-path", "/embeddings", {"input": "a"}),
            _post("openai-nearly-a-path", "/v1/embedding", {"input": "a"}),
            _post("azure-no-such-path", "/openai/deployments/mini/chat/completions", {}),
            _post("azure-other-model", "/openai/deployments/ada/embeddings", {"input": "a"}),
            _get("embed-by-get", "/embed"),
            Call("embed-by-put", "PUT", "/embed", {"texts": ["a"]}),
            _post("health-by-post", "/health", {}),
            Call("options", "OPTIONS", "/embed"),
            _raw("byte-order-mark", b'\xef\xbb\xbf{"texts": ["a"], "vectors": ["sparse"]}'),
            _post("input-of-the-queue", "/embed", {"input": {"texts": ["a"]}}),
            _post("points-with-a-misspelt-block", "/points", {"texts": ["a"], "qdrnt": {}}),
            _get("openai-no-such-path", "/v1/nowhere"),
            _get("openai-by-get", "/v1/embeddings"),
            _get("openai-other-model", "/v1/models/gpt"),
            _post("openai-no-input", "/v1/embeddings", {}),
            _post("openai-a-list", "/v1/embeddings", [1]),
            Call("openai-not-json", "POST", "/v1/embeddings", content=b"{"),
            _post("other-operation", "/embed", {"operation": "delete", "texts": ["a"]}),
            _post("points-without-qdrant", "/points", {"texts": ["a"]}),
            _post("points-with-null", "/points", {"texts": ["a"], "qdrant": None}),
            _post("smuggled-route", "/embed", {"openai_route": "/v1/models"}),
            _post("invalid-field", "/embed", {"texts": ["a"], "isPassage": "maybe"}),
            _post("invalid-timings", "/embed", {"texts": ["a"], "timings": 1}),
            _post("a-list", "/embed", [1]),
            _post("absent-collection", "/points/count", {"collection": "absent"}),
            _post("a-failing-text", "/embed", {"texts": ["a zebra"], "vectors": ["dense"]}),
            _post("a-failing-query", "/search", {"collection": NOTES, "queries": ["a zebra"]}),
            _post("answer-too-large", "/embed", {"texts": ["a"]}, settings={"MAX_RESPONSE_MB": "0.0005"}),
            _raw("not-json", b"{"),
            _raw("empty-body", b""),
            _raw("not-a-number", b'{"texts": ["a"], "maxLength": NaN}'),
            _raw("endless-integer", b'{"texts": ["a"], "maxLength": ' + b"9" * 5000 + b"}"),
            _raw("not-utf-8", b'{"texts": ["\xff"]}'),
            _raw("nested-too-deeply", b"[" * 100_000),
            _raw("null", b"null"),
            _raw("other-type", b'{"texts": ["a"]}', headers={"Content-Type": "text/plain"}),
            _raw("no-type", b'{"texts": ["a"]}', headers={}),
            _raw(
                "type-with-charset",
                b'{"texts": ["a"], "vectors": ["dense"]}',
                headers={"Content-Type": "application/json; charset=utf-8"},
            ),
            _raw("body-too-large", b'{"texts": ["a"]}', body_max_bytes=10),
            _raw("parts-too-large", [b'{"texts": ', b'["a"]}'], body_max_bytes=10),
            _raw("parts", [b'{"texts": ["a"],', b'"vectors": ["dense"]}'], body_max_bytes=100),
            _raw("stalled-body", b'{"texts": [', stalls=True),
        ],
    ),
    Scenario(
        "inference",
        [
            _post("inference", "/qdrant/inference", {"inputs": list(INPUTS), "inference": "update", "token": None}),
            _post("inference-of-a-query", "/qdrant/inference", {"inputs": list(INPUTS[-1:]), "inference": "search"}),
            _post("inference-without-inputs", "/qdrant/inference", {"inputs": []}),
            _post("inference-of-a-number", "/qdrant/inference", {"inputs": [{"data": 1, "model": "mini"}]}),
            _post("inference-of-an-image", "/qdrant/inference", {"inputs": [{**INPUTS[0], "data_type": "image"}]}),
            _post("inference-of-another-model", "/qdrant/inference", {"inputs": [{"data": "a", "model": "other"}]}),
            _post("inference-of-a-failing-text", "/qdrant/inference", {"inputs": [{"data": "zebra", "model": "mini"}]}),
            _get("inference-by-get", "/qdrant/inference"),
            _post(
                "inference-without-the-key", "/qdrant/inference", {"inputs": list(INPUTS)}, settings={"API_KEY": KEY}
            ),
            _post(
                "inference-with-the-key",
                f"/qdrant/inference?key={KEY}",
                {"inputs": list(INPUTS[:1])},
                settings={"API_KEY": KEY},
            ),
        ],
        stores=("edge",),
    ),
    Scenario(
        "metrics of failures",
        [
            _post("a-duplicate", "/points", {"texts": ["a", "b"], "qdrant": {"collection": NOTES, "ids": [5, 5]}}),
            _post("a-failure-to-count", "/embed", {"texts": []}),
            _get("a-path-to-count", "/nowhere"),
            _post("a-collection-to-count", "/points/count", {"collection": "absent"}),
            Call("a-body-to-count", "POST", "/embed", content=b"{", headers=JSON),
            _get("metrics-of-failures", "/metrics"),
        ],
        stores=("edge",),
    ),
    Scenario(
        "another schema",
        [
            _post("store-with-cosine", "/points", {"texts": ["a"], "qdrant": {"collection": NOTES, "ids": [1]}}),
            _post(
                "search-with-dot",
                "/search",
                {"collection": NOTES, "queries": ["a"]},
                settings={"QDRANT_COLLECTION_CONFIG": '{"dense": {"distance": "dot"}}'},
            ),
            _post(
                "duplicate-in-a-job", "/points", {"texts": ["a", "b"], "qdrant": {"collection": NOTES, "ids": [5, 5]}}
            ),
        ],
    ),
    Scenario(
        "headers",
        [
            _get("own-request-id", "/ping", headers={"X-Request-ID": "abc-1.2_3"}),
            _get("odd-request-id", "/ping", headers={"X-Request-ID": "a b"}),
            _get("long-request-id", "/health", headers={"X-Request-ID": "x" * 129}),
            _post(
                "own-request-id-of-a-job",
                "/embed",
                {"texts": ["a"], "vectors": ["dense"]},
                headers={"X-Request-ID": "job-7"},
            ),
            _post(
                "origin-of-a-page", "/embed", {"texts": ["a"], "vectors": ["dense"]}, headers={"Origin": "https://evil"}
            ),
        ],
        stores=("edge",),
    ),
    Scenario(
        "key",
        [
            _post("without-key", "/embed", {"texts": ["a"]}),
            _post("wrong-key", "/embed", {"texts": ["a"]}, headers={"Authorization": "Bearer wrong"}),
            _post("wrong-scheme", "/embed", {"texts": ["a"]}, headers={"Authorization": f"Basic {KEY}"}),
            _post("openai-without-key", "/v1/embeddings", {"input": "a"}),
            _get("no-such-path-without-key", "/nowhere"),
            _get("metrics-without-key", "/metrics"),
            _get("openapi-without-key", "/openapi.json"),
            _get("ping-without-key", "/ping"),
            _get("health-without-key", "/health"),
            _get("page-without-key", "/"),
            _post(
                "with-key", "/embed", {"texts": ["a"], "vectors": ["dense"]}, headers={"Authorization": f"Bearer {KEY}"}
            ),
            _get("with-key-of-azure", "/v1/models", headers={"api-key": KEY}),
            _get("wrong-key-of-azure", "/v1/models", headers={"api-key": "wrong"}),
            _get("with-key-in-lower-case", "/v1/models", headers={"Authorization": f"bearer {KEY}"}),
        ],
        settings={"API_KEY": KEY},
        stores=("edge",),
    ),
    Scenario(
        "states",
        [
            *(
                _get(f"{state}-{path.strip('/').replace('/', '-') or 'page'}", path, state=state)
                for state in ("loading", "draining", "lost")
                for path in PATHS[:5]
            ),
            *(
                call
                for state in ("loading", "draining", "lost")
                for call in (
                    _post(f"{state}-embed", "/embed", {"texts": ["a"]}, state=state),
                    _post(f"{state}-openai", "/v1/embeddings", {"input": "a"}, state=state),
                )
            ),
            _get("loading-metrics", "/metrics", state="loading"),
            _get("draining-metrics", "/metrics", state="draining"),
        ],
        stores=("edge",),
    ),
)
