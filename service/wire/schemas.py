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
    PointsAnswer,
    ReadPointsAnswer,
    ScoreAnswer,
    SearchAnswer,
)
from service.wire.errors import Error
from service.wire.jobs import JobAnswer
from service.wire.openai import DEPLOYMENT, EMBEDDINGS, EmbeddingsAnswer, OpenAIError

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


@dataclass(frozen=True, slots=True)
class Described:
    """The description of a path's answer.

    Attributes:
        type: the typed dictionary of the answer.
        example: an example.
    """

    type: Any
    example: Json

    @property
    def name(self) -> str:
        """The name of the schema."""
        return str(self.type.__name__)


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
}
"""Answers by path."""

JOB: Final = Described(
    JobAnswer, {"id": "0f5c1d7a9b3e4c6d8f2a1b0c9d8e7f60", "state": "running", "settled": 512, "points": 4096}
)
"""The description of an accepted job."""


def schemas() -> Json:
    """All schemas of answers and errors by name; they allow no further keys."""
    types = [described.type for described in ANSWERS.values()] + [JOB.type, Error, OpenAIError]
    inputs = [(kind.__name__, _MODE, TypeAdapter(kind)) for kind in types]
    described, definitions = TypeAdapter.json_schemas(inputs, ref_template=REFERENCE, schema_generator=_Closed)
    own = {name: schema for (name, _), schema in described.items() if "$ref" not in schema}
    return {**definitions.get("$defs", {}), **own}


class _Closed(GenerateJsonSchema):
    """Generates schemas of typed dictionaries that allow no further keys."""

    def typed_dict_schema(self, schema: TypedDictSchema) -> Json:
        """Generate the schema of a typed dictionary."""
        return {**super().typed_dict_schema(schema), "additionalProperties": False}
