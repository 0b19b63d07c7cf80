"""The wanted schema of a collection. `schema_diff` compares it with an existing collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from embedder.vectors import KINDS, Kind
from qdrant_sink.model_identity import ModelIdentity
from qdrant_sink.payload_path import canonical_path, canonical_value_path, named

Distance = Literal["cosine", "dot", "euclid", "manhattan"]
Datatype = Literal["float32", "float16"]
Quantization = Literal["none", "int8", "binary"]
StoredQuantization = Quantization | Literal["other"]
"""Quantization of an existing vector; "other" is a type that this service does not create."""
IndexType = Literal["keyword", "integer", "float", "bool", "datetime", "uuid", "text", "geo"]
Layout = Literal["plain", "langchain", "llamaindex", "haystack"]

ASCENDING_DISTANCES: Final[frozenset[Distance]] = frozenset({"euclid", "manhattan"})
"""Distance functions whose scores are distances, so that a smaller score is better."""

TEXT_KEY: Final = "text"
"""The default payload key of the text in the plain layout."""

INT8_QUANTILE: Final = 0.99
"""Share of the components inside the int8 range. The outermost hundredth is clipped, so that outliers do not reduce the
precision of the others."""


@dataclass(frozen=True, slots=True)
class VectorNames:
    """Names of the three vectors in a collection. They differ, and each has at most 200 bytes.

    The empty name is that of an unnamed vector, which a collection can have beside named ones.
    """

    dense: str = "dense"
    sparse: str = "sparse"
    colbert: str = "colbert"

    def of(self, kind: Kind) -> str:
        """Return the name of the vector of this kind."""
        return {"dense": self.dense, "sparse": self.sparse, "colbert": self.colbert}[kind]


NAMES: Final = VectorNames()
"""The default names of the vectors in the plain layout."""

_LAYOUT_NAMES: Final[Mapping[Layout, VectorNames]] = {
    "plain": NAMES,
    "langchain": VectorNames(dense="", sparse="langchain-sparse"),
    "llamaindex": VectorNames(dense="text-dense", sparse="text-sparse-new"),
    "haystack": VectorNames(dense="text-dense", sparse="text-sparse"),
}


def default_names(layout: Layout, kinds: Sequence[Kind]) -> VectorNames:
    """Return the default names of the vectors, by which the classes of the layout's library find them.

    Haystack opens a collection without sparse vectors only if its dense vector is unnamed.
    """
    names = _LAYOUT_NAMES[layout]
    return replace(names, dense="") if layout == "haystack" and tuple(kinds) == ("dense",) else names


@dataclass(frozen=True, slots=True)
class DenseSchema:
    """Schema of the dense vector: one vector per point, searched through an HNSW graph.

    Attributes:
        size: components per vector.
        distance: distance function of two vectors.
        m: edges per node of the graph. With 0 there is no graph, and every search compares all points.
        ef_construct: candidates considered while the graph is built.
        datatype: type of the stored components.
        on_disk: whether the vectors are memory-mapped rather than kept in RAM.
        quantization: type of a copy in RAM that is searched first; see `searching.plan.OVERSAMPLING`.
    """

    size: int
    distance: Distance = "cosine"
    m: int = 16
    ef_construct: int = 100
    datatype: Datatype = "float32"
    on_disk: bool = False
    quantization: StoredQuantization = "none"

    @property
    def ascending(self) -> bool:
        """Whether a smaller score is better, because it is a distance."""
        return self.distance in ASCENDING_DISTANCES


@dataclass(frozen=True, slots=True)
class SparseSchema:
    """Schema of the sparse vector: one weight per token id, in an inverted index.

    Attributes:
        datatype: type of the weights in the index (float16 costs about 0.2 % recall).
        modifier: "idf" if the store multiplies the weights of a query by the inverse document frequency of their
            tokens, which it takes from the collection; None if it does not. The weights of BGE-M3 are learned, so that
            IDF weights them twice.
        on_disk: whether the index is memory-mapped rather than kept in RAM.
    """

    datatype: Datatype = "float32"
    modifier: Literal["idf"] | None = None
    on_disk: bool = False


@dataclass(frozen=True, slots=True)
class ColbertSchema:
    """Schema of the ColBERT multivector: several rows per point, compared by MaxSim.

    Attributes:
        size: components per row.
        distance: distance function of two rows.
        comparator: how two sets of rows are compared.
        datatype: type of the stored components. Float16 halves the storage and does not change the ranking.
        on_disk: whether the rows are memory-mapped rather than kept in RAM.
        m: edges per node of the graph. With 0 there is no graph: the rows only rerank candidates.
        quantization: type of a copy in RAM that is searched first.
    """

    size: int
    distance: Literal["cosine", "dot"] = "cosine"
    comparator: Literal["max_sim"] = "max_sim"
    datatype: Datatype = "float16"
    on_disk: bool = True
    m: int = 0
    quantization: StoredQuantization = "none"


@dataclass(frozen=True, slots=True)
class PayloadIndex:
    """An index on a key of the payload.

    Attributes:
        type: type of the values. For an existing index it is the store's name of the type.
        tenant: whether points with the same value are stored together, because most searches filter by one value.
    """

    type: IndexType | str
    tenant: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """Distribution of a collection over a cluster. For a value of None the server's default applies.

    Attributes:
        shards: number of parts into which the points are divided.
        replication: number of copies of each shard.
        write_consistency: number of copies that must have stored a write before it is acknowledged.
    """

    shards: int | None = None
    replication: int | None = None
    write_consistency: int | None = None

    @property
    def server_only(self) -> str:
        """The fields that an embedded store cannot satisfy, such as "shards=4, replication=2"; empty if none."""
        values = {"shards": self.shards, "replication": self.replication, "writeConsistency": self.write_consistency}
        return ", ".join(f"{name}={value}" for name, value in values.items() if value is not None and value > 1)


ANYWHERE: Final = Placement()
"""The placement that leaves everything to the server."""


@dataclass(frozen=True, slots=True)
class CollectionSchema:
    """Schema of a collection with a named vector for each of one to three kinds.

    Attributes:
        dense: schema of the vector `names.dense`; None for a collection without it.
        sparse: schema of the vector `names.sparse`; None for a collection without it.
        colbert: schema of the vector `names.colbert`; None for a collection without it.
        names: names of the vectors. Points, plans and reads carry them to the store.
        payload_indexes: types of the payload indexes by path, such as `metadata.topic` and `offers[].price` (see
            `payload_path`).
        tenant_key: path to the one value of the tenant, which every point must have and which is indexed; None without
            tenants.
        payload_on_disk: whether payloads are kept on disk; with None the store's default applies.
        placement: distribution over a cluster.
        layout: library whose payload format is used.
        text_key: payload key of the text in the plain layout.
        explicit: wire names of the fields that the operator has set, such as `dense.onDisk` and `shards`. An existing
            collection must have these values; all other fields may have been tuned.
        model: model whose vectors a new collection is made for, recorded in its metadata; None for an unknown one.

    Raises:
        ValueError: there is no vector, or a payload index or the tenant has an invalid path.
    """

    dense: DenseSchema | None = None
    sparse: SparseSchema | None = None
    colbert: ColbertSchema | None = None
    names: VectorNames = NAMES
    payload_indexes: Mapping[str, IndexType] = field(default_factory=dict)
    tenant_key: str | None = None
    payload_on_disk: bool | None = None
    placement: Placement = ANYWHERE
    layout: Layout = "plain"
    text_key: str = TEXT_KEY
    explicit: frozenset[str] = frozenset()
    model: ModelIdentity | None = None

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ValueError("a collection must have at least one of dense, sparse and colbert")
        with named("payload_indexes"):
            indexes = {canonical_path(key): kind for key, kind in self.payload_indexes.items()}
        object.__setattr__(self, "payload_indexes", indexes)
        if self.tenant_key is not None:
            with named("tenant_key"):
                object.__setattr__(self, "tenant_key", canonical_value_path(self.tenant_key))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors of the collection, in the order of `KINDS`."""
        return tuple(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def indexes(self) -> dict[str, PayloadIndex]:
        """All payload indexes by key, including the index of the tenant."""
        result = {key: PayloadIndex(kind) for key, kind in self.payload_indexes.items()}
        if self.tenant_key is not None:
            result[self.tenant_key] = PayloadIndex("keyword", tenant=True)
        return result

    @property
    def quantized(self) -> tuple[Kind, ...]:
        """The kinds of vectors that have a quantized copy."""
        vectors: tuple[tuple[Kind, DenseSchema | ColbertSchema | None], ...] = (
            ("dense", self.dense),
            ("colbert", self.colbert),
        )
        return tuple(kind for kind, vector in vectors if vector is not None and vector.quantization != "none")
