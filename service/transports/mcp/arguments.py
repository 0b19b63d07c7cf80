"""Arguments of the tools: their types, their limits, and the JSON Schema that a language model reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError, model_validator

from embedder.errors import InvalidRequest
from service.validation import field_error

Json = dict[str, Any]

HITS_MAX: Final = 50
"""Maximum hits of a search."""

HITS_DEFAULT: Final = 5

QUERY_MAX_CHARACTERS: Final = 32_768
"""Maximum length of a query in characters; the model reads at most 8192 tokens."""

FILTER_MAX_CHARACTERS: Final = 65_536
"""Maximum length of a filter in characters of compact JSON."""

IDS_MAX: Final = 100
"""Maximum points that are read at once."""

ID_MAX_CHARACTERS: Final = 1024
"""Maximum length of an id in characters."""

TEXTS_MAX: Final = 100
"""Maximum texts that are stored at once."""

TEXTS_MAX_CHARACTERS: Final = 4_000_000
"""Maximum length of all texts that are stored at once, in characters."""

PAYLOADS_MAX_CHARACTERS: Final = 4_000_000
"""Maximum length of all payloads that are stored at once, in characters of compact JSON."""

_ERRORS_MAX: Final = 5
"""Maximum invalid arguments that an error names."""

PointId = Annotated[
    StrictInt | Annotated[StrictStr, Field(min_length=1, max_length=ID_MAX_CHARACTERS)],
    Field(description="the id that the point was stored with, or the id of a hit"),
]

Collection = Annotated[
    str | None,
    Field(
        min_length=1,
        max_length=1024,
        description="name of a collection, as list_collections gives it; may be left out where there is a default",
    ),
]


class Arguments(BaseModel):
    """Base of the arguments of a tool."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    collection: Collection = None


class SearchArguments(Arguments):
    """Arguments of `search`."""

    query: Annotated[
        str,
        Field(
            min_length=1,
            max_length=QUERY_MAX_CHARACTERS,
            description="what to look for, as a question or a description in any language",
        ),
    ]
    limit: Annotated[int, Field(ge=1, le=HITS_MAX, description="maximum number of hits")] = HITS_DEFAULT
    filter: Annotated[
        Json | None,
        Field(
            description="Qdrant's filter, which every hit must match, such as "
            '{"must": [{"key": "year", "range": {"gte": 2020}}, {"key": "topic", "match": {"value": "backup"}}]}. '
            "Keys are those of payloads, nested ones with dots (metadata.year); list_collections names those with an "
            "index"
        ),
    ] = None
    rerank: Annotated[
        bool, Field(description="order the candidates by ColBERT: better for long questions, and slower")
    ] = False
    explain: Annotated[
        bool,
        Field(
            description="say why each hit was found: its rank by each kind of vector, the tokens that it shares with "
            "the query and, with rerank, a token of the query, its best match in the hit, and their similarity"
        ),
    ] = False

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        _check_length("filter", self.filter, FILTER_MAX_CHARACTERS)
        return self


class ReadPointsArguments(Arguments):
    """Arguments of `read_points`."""

    ids: Annotated[list[PointId], Field(min_length=1, max_length=IDS_MAX, description="the points to read")]


class ListCollectionsArguments(BaseModel):
    """Arguments of `list_collections`, which takes none."""

    model_config = ConfigDict(extra="forbid")


class StoreArguments(Arguments):
    """Arguments of `store`."""

    texts: Annotated[
        list[str],
        Field(min_length=1, max_length=TEXTS_MAX, description="the texts to store, each as one point"),
    ]
    ids: Annotated[
        list[PointId] | None,
        Field(description="an id for each text; a point that exists under it is replaced. By default the text decides"),
    ] = None
    payloads: Annotated[
        list[Json] | None, Field(description="a JSON object for each text, by whose keys searches can filter")
    ] = None

    @model_validator(mode="after")
    def _are_bounded(self) -> Self:
        for name, values in (("ids", self.ids), ("payloads", self.payloads)):
            if values is not None and len(values) != len(self.texts):
                raise ValueError(f"{name}: must have one item per text ({len(self.texts)}), got {len(values)}")
        if (length := sum(map(len, self.texts))) > TEXTS_MAX_CHARACTERS:
            raise ValueError(f"texts: must have at most {TEXTS_MAX_CHARACTERS} characters together, got {length}")
        _check_length("payloads", self.payloads, PAYLOADS_MAX_CHARACTERS)
        return self


A = TypeVar("A", bound=BaseModel)


def parsed(kind: type[A], raw: object) -> A:
    """The arguments of a call.

    Raises:
        InvalidRequest: an argument is invalid; the message names each with its limit and its value.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        found = [field_error(details, root="the arguments") for details in error.errors(include_url=False)]
    raise InvalidRequest("; ".join(field.message for field in found[:_ERRORS_MAX]), fields=found[:_ERRORS_MAX])


def schema(kind: type[BaseModel], collections: Sequence[str] = ()) -> Json:
    """The JSON Schema of the arguments, without pydantic's titles.

    Args:
        kind: the arguments.
        collections: the only collections that a call may name; empty for any.
    """
    described = _plain(kind.model_json_schema())
    if collections and "collection" in described["properties"]:
        described["properties"]["collection"]["enum"] = list(collections)
        if len(collections) > 1:
            described["properties"]["collection"].pop("default", None)
    return {**described, "properties": described.get("properties", {})}


def _plain(value: Any, *, names: bool = False) -> Any:
    """A schema without titles and docstrings, and with the type itself where null stands beside it."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    kinds = [kind for kind in value.get("anyOf", ()) if kind != {"type": "null"}] if not names else []
    if len(kinds) == 1:
        value = {**kinds[0], **{key: item for key, item in value.items() if key != "anyOf" and item is not None}}
    left_out = set() if names else {"title"} | ({"description"} if "properties" in value else set())
    return {key: _plain(item, names=key == "properties") for key, item in value.items() if key not in left_out}


def _check_length(name: str, value: object, max_characters: int) -> None:
    if value is None:
        return
    length = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    if length > max_characters:
        raise ValueError(f"{name}: must have at most {max_characters} characters of JSON, got {length}")
