"""JSON Schemas of all answers, generated from their types, each with an example whose vectors are shortened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode
from pydantic_core.core_schema import TypedDictSchema

from service.wire.answer_types import (
    CollectionAnswer,
    CollectionsAnswer,
    CountAnswer,
    DeleteAnswer,
    EmbedAnswer,
    LoadAnswer,
    PointsAnswer,
    ReadPointsAnswer,
    ScoreAnswer,
    SearchAnswer,
)
from service.wire.errors import Error
from service.wire.jobs import JobAnswer
from service.wire.openai import DEPLOYMENT, EMBEDDINGS, EmbeddingsAnswer, OpenAIError, is_openai_path
from service.wire.qdrant_inference import INFERENCE, InferenceAnswer, InferenceError
from service.wire.rerank import RERANK, RERANK_V1, RERANK_V2, RerankAnswer, RerankError
from service.wire.tei import (
    EMBED_SPARSE,
    INFO,
    ROOT,
    TeiDense,
    TeiError,
    TeiInfo,
    TeiRanks,
    TeiSparse,
)

Json = dict[str, Any]

REFERENCE: Final = "#/components/schemas/{model}"
"""Template of references between schemas."""

_MODE: Final[JsonSchemaMode] = "serialization"

_TEXT: Final[Json] = {
    "text": "rsync copies only the changed parts of files.",
    "tokens": 15,
    "truncated": False,
}


_EMBEDDINGS: Final[Json] = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [-0.02017, 0.01956]}],
    "model": "BAAI/bge-m3",
    "usage": {"prompt_tokens": 15, "total_tokens": 15},
}
_RANKING: Final[Json] = {
    "id": "6f9619ff8b86d011b42d00cf4fc964ff",
    "model": "BAAI/bge-m3",
    "results": [{"index": 0, "relevance_score": 0.703}],
    "usage": {"prompt_tokens": 31, "total_tokens": 31},
    "meta": {"api_version": {"version": "1"}, "tokens": {"input_tokens": 31, "output_tokens": 0}},
}


@dataclass(frozen=True, slots=True)
class Described:
    """The description of a path's answer.

    Attributes:
        type: the type of the answer.
        example: an example.
        others: the types of answers in the form of a dialect.
    """

    type: Any
    example: Any
    others: tuple[Any, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the schemas, that of the example first."""
        return tuple(str(kind.__name__) for kind in (self.type, *self.others))


ANSWERS: Final[Mapping[str, Described]] = {
    "/embed": Described(
        EmbedAnswer,
        {
            "results": [
                {
                    **_TEXT,
                    "dense": [-0.02017, 0.01956],
                    "sparse": {"indices": [5, 754], "values": [0.1257, 0.0559]},
                    "colbert": [[-0.06266, 0.10655]],
                }
            ],
            "usage": {"tokens": 15},
            "model": "BAAI/bge-m3",
        },
        (TeiDense,),
    ),
    "/points": Described(
        PointsAnswer,
        {
            "results": [{**_TEXT, "id": "790dd20f-6aa9-57ca-90e3-1926c19dac9b"}],
            "usage": {"tokens": 15},
            "model": "BAAI/bge-m3",
            "upsert": {"collection": "notes", "stored": 1, "skipped": 0, "rejected": []},
        },
    ),
    "/search": Described(
        SearchAnswer,
        {
            "results": [
                {
                    "hits": [
                        {
                            "id": "790dd20f-6aa9-57ca-90e3-1926c19dac9b",
                            "score": 3.8174,
                            "payload": {"text": _TEXT["text"], "topic": "backup", "id": "rsync"},
                        }
                    ]
                }
            ],
            "usage": {"tokens": 7},
            "model": "BAAI/bge-m3",
        },
    ),
    "/score": Described(
        ScoreAnswer,
        {
            "scores": {
                "dense": [0.615],
                "sparse": [0.24],
                "colbert": [0.603],
                "sparse+dense": [0.427],
                "colbert+sparse+dense": [0.486],
            },
            "errors": [],
            "usage": {"tokens": 22},
            "model": "BAAI/bge-m3",
        },
    ),
    "/points/count": Described(CountAnswer, {"count": 1}),
    "/points/delete": Described(DeleteAnswer, {"deleted": 1}),
    "/loads": Described(LoadAnswer, {"outcome": "begun", "aliases": [], "messages": []}),
    "/points/get": Described(
        ReadPointsAnswer,
        {
            "points": [
                {
                    "id": "790dd20f-6aa9-57ca-90e3-1926c19dac9b",
                    "requestedId": "rsync",
                    "payload": {"text": _TEXT["text"], "topic": "backup", "id": "rsync"},
                }
            ],
            "missing": ["tar"],
        },
    ),
    "/collections": Described(
        CollectionsAnswer,
        {"collections": ["notes-2", "papers"], "aliases": {"notes": "notes-2"}, "default": "notes"},
    ),
    "/collections/{name}": Described(
        CollectionAnswer,
        {
            "name": "notes-2",
            "aliases": ["notes"],
            "status": "green",
            "points": 1,
            "indexedVectors": 1,
            "vectors": [
                {
                    "name": "dense",
                    "kind": "dense",
                    "size": 1024,
                    "distance": "cosine",
                    "datatype": "float32",
                    "quantization": "none",
                    "modifier": None,
                }
            ],
            "payloadIndexes": [{"key": "topic", "type": "keyword", "isTenant": False}],
            "layout": {"name": "plain", "source": "config"},
            "model": {"name": "BAAI/bge-m3", "source": "worker"},
        },
    ),
    DEPLOYMENT: Described(EmbeddingsAnswer, _EMBEDDINGS),
    EMBEDDINGS: Described(EmbeddingsAnswer, _EMBEDDINGS),
    "/qdrant/inference": Described(
        InferenceAnswer,
        {
            "embeddings": [{"indices": [5, 754], "values": [0.1257, 0.0559]}, [-0.02017, 0.01956]],
            "usage": {"models": {"BAAI/bge-m3": {"tokens": 15}}},
        },
    ),
    RERANK_V1: Described(RerankAnswer, _RANKING),
    RERANK_V2: Described(RerankAnswer, {**_RANKING, "meta": {**_RANKING["meta"], "api_version": {"version": "2"}}}),
    RERANK: Described(RerankAnswer, _RANKING, (TeiRanks,)),
    ROOT: Described(TeiDense, [[-0.02017, 0.01956]]),
    EMBED_SPARSE: Described(TeiSparse, [[{"index": 5, "value": 0.1257}, {"index": 754, "value": 0.0559}]]),
    INFO: Described(
        TeiInfo,
        {
            "model_id": "BAAI/bge-m3",
            "model_sha": None,
            "model_dtype": "float16",
            "served_model_name": "BAAI/bge-m3",
            "model_type": {"embedding": {"pooling": "cls"}},
            "max_concurrent_requests": 244,
            "max_input_length": 8192,
            "max_batch_tokens": 16384,
            "max_batch_requests": None,
            "max_client_batch_size": 10000,
            "auto_truncate": True,
            "tokenization_workers": 8,
            "version": "0.1.0",
            "sha": None,
            "docker_label": None,
        },
    ),
}
"""Answers by path."""

JOB: Final = Described(
    JobAnswer, {"id": "0f5c1d7a9b3e4c6d8f2a1b0c9d8e7f60", "state": "running", "settled": 512, "points": 4096}
)
"""The description of an accepted job."""


def error_schemas(path: str) -> tuple[str, ...]:
    """The names of the schemas of a path's errors."""
    if path == "/embed":
        return Error.__name__, TeiError.__name__
    if path == RERANK:
        return RerankError.__name__, TeiError.__name__
    if path in (RERANK_V1, RERANK_V2):
        return (RerankError.__name__,)
    if path in (ROOT, EMBED_SPARSE, INFO):
        return (TeiError.__name__,)
    if path == INFERENCE:
        return (InferenceError.__name__,)
    return (OpenAIError.__name__ if is_openai_path(path) else Error.__name__,)


def schemas() -> Json:
    """All schemas of answers and errors by name; they allow no further keys."""
    answers = [kind for described in ANSWERS.values() for kind in (described.type, *described.others)]
    types = dict.fromkeys([*answers, JOB.type, Error, OpenAIError, InferenceError, RerankError, TeiError])
    inputs = [(kind.__name__, _MODE, TypeAdapter(kind)) for kind in types]
    described, definitions = TypeAdapter.json_schemas(inputs, ref_template=REFERENCE, schema_generator=_Closed)
    own = {name: schema for (name, _), schema in described.items() if "$ref" not in schema}
    return {**definitions.get("$defs", {}), **own}


class _Closed(GenerateJsonSchema):
    """Generates schemas of typed dictionaries that allow no further keys."""

    def typed_dict_schema(self, schema: TypedDictSchema) -> Json:
        """Generate the schema of a typed dictionary."""
        return {**super().typed_dict_schema(schema), "additionalProperties": False}
