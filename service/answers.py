"""What the HTTP door answers, as JSON Schemas with an example each: the part of its description that no type parses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from embedder import errors
from service.responses import Json
from service.scoring import SCORE_KINDS

_CODES: Final = sorted({one.code for one in vars(errors).values() if hasattr(one, "code")})


def _object(properties: Json, required: Sequence[str]) -> Json:
    return {"type": "object", "required": list(required), "additionalProperties": False, "properties": properties}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


_INTEGER: Final[Json] = {"type": "integer", "minimum": 0}
_STRING: Final[Json] = {"type": "string"}
_NUMBERS: Final = _list({"type": "number"})
_SPARSE: Final = _object({"indices": _list(_INTEGER), "values": _NUMBERS}, ["indices", "values"])
_BASE64: Final = _object(
    {"shape": _list(_INTEGER), "dtype": {"enum": ["float32", "float16"]}, "data": {"type": "string", "format": "byte"}},
    ["shape", "dtype", "data"],
)
_ID: Final[Json] = {"type": ["integer", "string"], "description": "u64 or UUID"}
_SECONDS: Final[Json] = {
    "type": "object",
    "additionalProperties": {"type": "number"},
    "description": "seconds per stage, with timings",
}
_ABOUT: Final[Json] = {
    "usage": _object({"tokens": _INTEGER}, ["tokens"]),
    "model": _STRING,
    "timings": _SECONDS,
}
_FAILURE: Final[Json] = {
    "error": {"type": "string", "description": "names the field, the limit and the value"},
    "error_code": {"enum": _CODES},
    "retryable": {"type": "boolean"},
    "details": {"type": "object"},
}

_TEXT: Final = _object(
    {
        "text": _STRING,
        "id": _ID,
        "tokens": _INTEGER,
        "truncated": {"type": "boolean"},
        "chunks": {**_INTEGER, "description": "points that the text became, with chunk"},
        "dense": {"anyOf": [_NUMBERS, _BASE64]},
        "sparse": _SPARSE,
        "colbert": {"anyOf": [_list(_NUMBERS), _BASE64]},
        **_FAILURE,
    },
    [],
)
_REJECTED: Final = _object(
    {"index": _INTEGER, "chunk": _INTEGER, "code": _STRING, "message": _STRING}, ["index", "code", "message"]
)
_UPSERT: Final = _object(
    {"collection": _STRING, "stored": _INTEGER, "skipped": _INTEGER, "rejected": _list(_REJECTED)},
    ["collection", "stored", "skipped", "rejected"],
)
_HIT: Final = _object(
    {
        "id": _ID,
        "score": {"type": "number"},
        "group": {"type": ["integer", "string"], "description": "what the group has in common, with groupBy"},
        "payload": {"type": "object"},
        "vectors": _object({"dense": _NUMBERS, "sparse": _SPARSE, "colbert": _list(_NUMBERS)}, []),
        "explain": {"type": "object", "description": "with explain"},
    },
    ["id", "score"],
)
_SCORES: Final = _list({"type": ["number", "null"]})
_VECTOR: Final = _object(
    {"object": {"const": "embedding"}, "index": _INTEGER, "embedding": {"anyOf": [_NUMBERS, _STRING]}},
    ["object", "index", "embedding"],
)
_EMBEDDING_USAGE: Final = _object(
    {"prompt_tokens": _INTEGER, "total_tokens": _INTEGER}, ["prompt_tokens", "total_tokens"]
)

_FOUND: Final[Json] = {
    "text": "rsync copies only the changed parts of files.",
    "tokens": 15,
    "truncated": False,
}
_EMBED: Final = _object({"results": _list(_TEXT), "upsert": _UPSERT, **_ABOUT}, ["results", "usage", "model"])

ANSWERS: Final[Mapping[str, tuple[str, Json, Json]]] = {
    "/embed": (
        "EmbedAnswer",
        _EMBED,
        {
            "results": [
                {
                    **_FOUND,
                    "dense": [-0.02017, 0.01956],
                    "sparse": {"indices": [5, 754], "values": [0.1257, 0.0559]},
                    "colbert": [[-0.06266, 0.10655]],
                }
            ],
            "usage": {"tokens": 15},
            "model": "BAAI/bge-m3",
        },
    ),
    "/points": (
        "PointsAnswer",
        {**_EMBED, "required": [*_EMBED["required"], "upsert"]},
        {
            "results": [{**_FOUND, "id": "790dd20f-6aa9-57ca-90e3-1926c19dac9b"}],
            "usage": {"tokens": 15},
            "model": "BAAI/bge-m3",
            "upsert": {"collection": "notes", "stored": 1, "skipped": 0, "rejected": []},
        },
    ),
    "/search": (
        "SearchAnswer",
        _object({"results": _list(_object({"hits": _list(_HIT)}, ["hits"])), **_ABOUT}, ["results", "usage", "model"]),
        {
            "results": [
                {
                    "hits": [
                        {
                            "id": "790dd20f-6aa9-57ca-90e3-1926c19dac9b",
                            "score": 3.8174,
                            "payload": {"text": _FOUND["text"], "topic": "backup", "id": "rsync"},
                        }
                    ]
                }
            ],
            "usage": {"tokens": 7},
            "model": "BAAI/bge-m3",
        },
    ),
    "/score": (
        "ScoreAnswer",
        _object(
            {
                "scores": _object(dict.fromkeys(SCORE_KINDS, _SCORES), SCORE_KINDS),
                "errors": _list(_object({"index": _INTEGER, **_FAILURE}, ["index", *_FAILURE])),
                **_ABOUT,
            },
            ["scores", "errors", "usage", "model"],
        ),
        {
            "scores": dict(zip(SCORE_KINDS, ([0.615], [0.24], [0.603], [0.427], [0.486]), strict=True)),
            "errors": [],
            "usage": {"tokens": 22},
            "model": "BAAI/bge-m3",
        },
    ),
    "/points/count": ("CountAnswer", _object({"count": _INTEGER, "timings": _SECONDS}, ["count"]), {"count": 1}),
    "/points/delete": (
        "DeleteAnswer",
        _object({"deleted": _INTEGER, "timings": _SECONDS}, ["deleted"]),
        {"deleted": 1},
    ),
    "/v1/embeddings": (
        "EmbeddingsAnswer",
        _object(
            {"object": {"const": "list"}, "data": _list(_VECTOR), "model": _STRING, "usage": _EMBEDDING_USAGE},
            ["object", "data", "model", "usage"],
        ),
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [-0.02017, 0.01956]}],
            "model": "BAAI/bge-m3",
            "usage": {"prompt_tokens": 15, "total_tokens": 15},
        },
    ),
}
"""By path: the name of the schema, the schema, and an example (its vectors shortened)."""

ERROR: Final = _object(_FAILURE, list(_FAILURE))
OPENAI_ERROR: Final[Json] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _STRING,
                "type": _STRING,
                "param": {"type": ["string", "null"]},
                "code": {"enum": _CODES},
            },
        }
    },
}


def schemas() -> dict[str, Any]:
    """All of them by name."""
    return {name: schema for name, schema, _ in ANSWERS.values()} | {"Error": ERROR, "OpenAIError": OPENAI_ERROR}
