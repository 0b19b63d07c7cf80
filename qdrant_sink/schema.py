"""A collection as BGE-M3 and the operator want it; `schema_diff` compares it with an existing one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from embedder.vectors import Kind

Distance = Literal["cosine", "dot", "euclid", "manhattan"]
Datatype = Literal["float32", "float16"]
Quantization = Literal["none", "int8", "binary"]
IndexType = Literal["keyword", "integer", "float", "bool", "datetime", "uuid", "text", "geo"]
Layout = Literal["plain", "langchain", "llamaindex", "haystack"]

INT8_QUANTILE: Final = 0.99
"""Share of the components that int8 covers; the outermost hundredth is clipped, so that outliers do not coarsen the
rest."""


@dataclass(frozen=True, slots=True)
class VectorNames:
    """Names of the three vectors in a collection; at most 200 bytes each, all different."""

    dense: str = "dense"
    sparse: str = "sparse"
    colbert: str = "colbert"

    def of(self, kind: Kind) -> str:
        """The name of this kind."""
        return {"dense": self.dense, "sparse": self.sparse, "colbert": self.colbert}[kind]


NAMES: Final = VectorNames()
"""Default names of the vectors."""


@dataclass(frozen=True, slots=True)
class DenseSchema:
    """One vector per point, searched through an HNSW graph.

    Attributes:
        size: components per vector.
        distance: how two vectors are compared.
        m: edges per node of the graph; 0 builds none, and every search compares with every point.
        ef_construct: candidates considered while the graph is built.
        datatype: of the storage.
        on_disk: memory-mapped rather than in RAM.
        quantization: of a copy in RAM that searches use first; see `searching.plan.OVERSAMPLING`.
    """

    size: int
    distance: Distance = "cosine"
    m: int = 16
    ef_construct: int = 100
    datatype: Datatype = "float32"
    on_disk: bool = False
    quantization: Quantization = "none"


@dataclass(frozen=True, slots=True)
class SparseSchema:
    """Weights per token id, in an inverted index.

    Attributes:
        datatype: of the weights in the index (float16 costs about 0.2 % recall).
        modifier: "idf", or None: the weights of BGE-M3 are learned and must not be weighted again.
        on_disk: memory-mapped rather than in RAM.
    """

    datatype: Datatype = "float32"
    modifier: Literal["idf"] | None = None
    on_disk: bool = False


@dataclass(frozen=True, slots=True)
class ColbertSchema:
    """Several vectors per point, compared by MaxSim.

    Attributes:
        size: components per row.
        distance: how two rows are compared.
        comparator: how two sets of rows are compared.
        datatype: of the storage; float16 halves it and leaves the ranking as it is.
        on_disk: memory-mapped rather than in RAM.
        m: 0 builds no graph: the rows rerank candidates and are not searched themselves.
        quantization: as in `DenseSchema`.
    """

    size: int
    distance: Distance = "cosine"
    comparator: Literal["max_sim"] = "max_sim"
    datatype: Datatype = "float16"
    on_disk: bool = True
    m: int = 0
    quantization: Quantization = "none"


@dataclass(frozen=True, slots=True)
class PayloadIndex:
    """An index on a key of the payload.

    Attributes:
        type: of the values; of an existing index, whatever the store calls it.
        tenant: points of one value are kept together, since most searches ask for one value.
    """

    type: IndexType | str
    tenant: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """How a collection is spread over a cluster; None leaves it to the server's own configuration.

    Attributes:
        shards: parts that the points are divided into.
        replication: copies of each part.
        write_consistency: copies that must have taken a write before it is acknowledged.
    """

    shards: int | None = None
    replication: int | None = None
    write_consistency: int | None = None

    @property
    def server_only(self) -> str:
        """The fields that an embedded store cannot satisfy, as "shards=4, replication=2"; may be empty."""
        values = {"shards": self.shards, "replication": self.replication, "writeConsistency": self.write_consistency}
        return ", ".join(f"{name}={value}" for name, value in values.items() if value is not None and value > 1)


ANYWHERE: Final = Placement()


@dataclass(frozen=True, slots=True)
class CollectionSchema:
    """A collection with three named vectors.

    Attributes:
        dense: of the vector called `names.dense`.
        sparse: of the vector called `names.sparse`.
        colbert: of the vector called `names.colbert`.
        names: of the vectors.
        payload_indexes: by the key of the payload, a path such as `metadata.topic`.
        tenant_key: a path that every point must carry, indexed as that of its tenant; None: no tenants.
        payload_on_disk: None leaves it to the store.
        placement: over a cluster.
        layout: which library's form the payloads have.
        explicit: wire names of the fields that the operator has set (`dense.onDisk`, `shards`): an existing
            collection must have these, where defaults leave it as it was tuned.
    """

    dense: DenseSchema
    sparse: SparseSchema
    colbert: ColbertSchema
    names: VectorNames = NAMES
    payload_indexes: Mapping[str, IndexType] = field(default_factory=dict)
    tenant_key: str | None = None
    payload_on_disk: bool | None = None
    placement: Placement = ANYWHERE
    layout: Layout = "plain"
    explicit: frozenset[str] = frozenset()

    @property
    def indexes(self) -> dict[str, PayloadIndex]:
        """All payload indexes, including the tenant's."""
        result = {key: PayloadIndex(kind) for key, kind in self.payload_indexes.items()}
        if self.tenant_key is not None:
            result[self.tenant_key] = PayloadIndex("keyword", tenant=True)
        return result

    @property
    def quantized(self) -> tuple[Kind, ...]:
        """The kinds of vectors that are searched through a quantized copy."""
        kinds: tuple[tuple[Kind, Quantization], ...] = (
            ("dense", self.dense.quantization),
            ("colbert", self.colbert.quantization),
        )
        return tuple(kind for kind, quantization in kinds if quantization != "none")
