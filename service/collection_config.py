"""The collection config: how new collections are created, and what existing collections must match.

The config is a JSON object, either in the setting `QDRANT_COLLECTION_CONFIG` itself or in the file whose path the
setting holds. Field names are camelCase, types are strict, and unknown or repeated fields are errors that name the
field. Existing collections must match every field that is set. Other fields only have defaults for new collections.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from embedder import KINDS, Kind
from qdrant_sink import (
    COLLECTION_NAME,
    TEXT_KEY,
    ColbertSchema,
    CollectionSchema,
    Datatype,
    DenseSchema,
    Distance,
    IndexType,
    Layout,
    Placement,
    Quantization,
    SparseSchema,
    VectorNames,
    canonical_path,
    canonical_value_path,
    default_names,
    path_of_key,
    text_key_of,
)
from service.validation import BYTE_ORDER_MARK, field_error

NAME_MAX_BYTES = 200
"""Maximum length of a vector name in Qdrant, in bytes of UTF-8."""

DESCRIPTION_MAX_CHARACTERS = 1000
"""Maximum length of the description of a collection in characters."""

DESCRIPTIONS_MAX = 1000
"""Maximum number of descriptions of collections."""

NAME_FORBIDDEN_CHARACTERS = '<>:"/\\|?*\x00\x1f'


def _valid_name(name: str) -> str:
    if not name:
        raise ValueError(f"must have 1 to {NAME_MAX_BYTES} bytes, got 0; only the dense vector can be unnamed")
    return _valid_dense_name(name)


def _valid_dense_name(name: str) -> str:
    size = len(name.encode())
    if size > NAME_MAX_BYTES:
        raise ValueError(f"must have at most {NAME_MAX_BYTES} bytes, got {size}")
    for character in name:
        if character in NAME_FORBIDDEN_CHARACTERS:
            raise ValueError(f'must not contain < > : " / \\ | ? *, NUL or 0x1F, got {character!r}')
    return name


def _valid_kinds(kinds: list[Kind]) -> list[Kind]:
    if not kinds:
        raise ValueError("must have at least 1 item, got 0")
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"must not repeat a kind, got {', '.join(kinds)}")
    return kinds


def _valid_path(path: str) -> str:
    canonical_path(path)
    return path


def _valid_text_key(key: str) -> str:
    path_of_key(key)
    return key


def _valid_description(text: str) -> str:
    text = " ".join(text.split())
    if not text:
        raise ValueError("must not be blank")
    return text


def _by_path(indexes: dict[str, IndexType]) -> dict[str, IndexType]:
    """Return the indexes by their paths as Qdrant reads them."""
    result = {canonical_path(path): kind for path, kind in indexes.items()}
    if len(result) < len(indexes):
        paths = [canonical_path(path) for path in indexes]
        duplicate = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"must name each key once, got {_shown(duplicate)} in two notations")
    return result


VectorName = Annotated[str, AfterValidator(_valid_name)]
_CollectionName = Annotated[str, Field(pattern=COLLECTION_NAME)]
_Description = Annotated[str, Field(max_length=DESCRIPTION_MAX_CHARACTERS), AfterValidator(_valid_description)]
_Path = Annotated[str, Field(max_length=255), AfterValidator(_valid_path)]


class _Config(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, alias_generator=to_camel, hide_input_in_errors=True
    )


class VectorNamesConfig(_Config):
    """The names of the vectors. The dense vector can be unnamed. Names that are not set are those of the layout."""

    dense: Annotated[str, AfterValidator(_valid_dense_name)] = "dense"
    sparse: VectorName = "sparse"
    colbert: VectorName = "colbert"


class DenseConfig(_Config):
    """Fields of the dense vector; see `qdrant_sink.schema.DenseSchema`."""

    distance: Distance = "cosine"
    m: Annotated[int, Field(ge=0, le=1000)] = 16
    ef_construct: Annotated[int, Field(ge=4, le=100_000)] = 100
    datatype: Datatype = "float32"
    on_disk: bool = False
    quantization: Quantization = "none"


class SparseConfig(_Config):
    """Fields of the sparse vector; see `qdrant_sink.schema.SparseSchema`."""

    datatype: Datatype = "float32"
    modifier: Literal["none", "idf"] = "none"
    on_disk: bool = False

    @property
    def value(self) -> SparseSchema:
        """The schema of the vector."""
        return SparseSchema(self.datatype, None if self.modifier == "none" else self.modifier, self.on_disk)


class ColbertConfig(_Config):
    """Fields of the ColBERT multivector; see `qdrant_sink.schema.ColbertSchema`."""

    distance: Literal["cosine", "dot"] = "cosine"
    datatype: Datatype = "float16"
    on_disk: bool = True
    quantization: Quantization = "none"


class CollectionConfig(_Config):
    """The whole collection config; docs/collections.md explains each field."""

    kinds: Annotated[list[Kind], AfterValidator(_valid_kinds)] = Field(default=list(KINDS))
    vector_names: VectorNamesConfig = VectorNamesConfig()
    dense: DenseConfig = DenseConfig()
    sparse: SparseConfig = SparseConfig()
    colbert: ColbertConfig = ColbertConfig()
    payload_indexes: Annotated[dict[_Path, IndexType], AfterValidator(_by_path)] = Field(default_factory=dict)
    tenant_key: Annotated[str, Field(max_length=255), AfterValidator(canonical_value_path)] | None = None
    payload_on_disk: bool | None = None
    shards: Annotated[int, Field(ge=1, le=10_000)] | None = None
    replication: Annotated[int, Field(ge=1, le=100)] | None = None
    write_consistency: Annotated[int, Field(ge=1, le=100)] | None = None
    layout: Layout = "plain"
    text_key: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_valid_text_key)] = TEXT_KEY
    verify_model: bool = True
    descriptions: Annotated[dict[_CollectionName, _Description], Field(max_length=DESCRIPTIONS_MAX)] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _are_consistent(self) -> CollectionConfig:
        if self.write_consistency is not None and self.write_consistency > (self.replication or 1):
            raise ValueError(
                f"writeConsistency: must be at most replication ({self.replication or 1}), got {self.write_consistency}"
            )
        names = [self.names.of(kind) for kind in self.kinds]
        if len(set(names)) < len(names):
            duplicate = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"vectorNames: must be different names, got {duplicate!r} twice")
        for kind in KINDS:
            if kind not in self.kinds and kind in self.model_fields_set:
                raise ValueError(f"{kind}: must be left out, because kinds is {', '.join(self.kinds)}")
        if "text_key" in self.model_fields_set and self.layout != "plain":
            raise ValueError(
                f"textKey: must be left out, because layout '{self.layout}' has the text under "
                f"'{text_key_of(self.layout, self.text_key)}'"
            )
        index = self.payload_indexes.get(self.tenant_key or "", "keyword")
        if index != "keyword":
            raise ValueError(f"payloadIndexes.{self.tenant_key}: must be 'keyword' for the tenantKey, got '{index}'")
        return self

    @property
    def names(self) -> VectorNames:
        """The names of the vectors: those that are set, and otherwise those of the layout."""
        return replace(default_names(self.layout, self.kinds), **self.vector_names.model_dump(exclude_unset=True))

    @property
    def placement(self) -> Placement:
        """Shards, replicas and write consistency of a collection in a cluster."""
        return Placement(self.shards, self.replication, self.write_consistency)

    def schema_for(self, dense_size: int, colbert_size: int) -> CollectionSchema:
        """The schema of collections for a checkpoint with these vector sizes."""
        return CollectionSchema(
            dense=DenseSchema(size=dense_size, **self.dense.model_dump()) if "dense" in self.kinds else None,
            sparse=self.sparse.value if "sparse" in self.kinds else None,
            colbert=ColbertSchema(size=colbert_size, **self.colbert.model_dump()) if "colbert" in self.kinds else None,
            names=self.names,
            payload_indexes=self.payload_indexes,
            tenant_key=self.tenant_key,
            payload_on_disk=self.payload_on_disk,
            placement=self.placement,
            layout=self.layout,
            text_key=self.text_key,
            explicit=frozenset(_explicit_fields(self)),
        )


def parse_config(value: str) -> CollectionConfig:
    """Read the config from a JSON object, or from the file at a path. A value that starts with `{` is an object.

    Raises:
        ValueError: the config is invalid. The message names every invalid field with its limit and its value.
    """
    text = value.strip().removeprefix(BYTE_ORDER_MARK)
    if not text.startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8").removeprefix(BYTE_ORDER_MARK)
        except UnicodeDecodeError:
            raise ValueError("the file must be valid UTF-8") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ValueError(
                f"the file cannot be opened ({reason}); set a JSON object or the path of a file that contains one"
            ) from None
    try:
        raw = json.loads(text, object_pairs_hook=_object_of)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"the config is not valid JSON: {error.msg} ({where})") from None
    except RecursionError:
        raise ValueError("the config is nested too deeply") from None
    if not isinstance(raw, dict):
        message = f"the config must be a JSON object, got {_shown(raw)}"
        raise ValueError(message)  # noqa: TRY004 - pydantic collects ValueErrors
    try:
        return CollectionConfig.model_validate(raw)
    except ValidationError as error:
        raise ValueError(
            "; ".join(field_error(details, root="the config").message for details in error.errors(include_url=False))
        ) from None


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the field {_shown(duplicate)} is given twice")
    return result


def _explicit_fields(block: BaseModel, path: str = "") -> list[str]:
    """The JSON paths of the fields that are set: `shards`, `dense.onDisk`."""
    fields: list[str] = []
    for name in block.model_fields_set:
        value = getattr(block, name)
        fields += (
            _explicit_fields(value, f"{path}{to_camel(name)}.")
            if isinstance(value, BaseModel)
            else [path + to_camel(name)]
        )
    return fields


def _shown(value: object) -> str:
    """A JSON value for a message, shortened to 64 characters."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 64 else f"{text[:60]} ..."
