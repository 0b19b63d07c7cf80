"""The collections that `benchmarks.collection_sizes` measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from service.planning.stored_vectors import SIZE, StorageType


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One collection.

    Attributes:
        name: of the case.
        points: number of points.
        kind: `dense`, `sparse`, `colbert`, or `payload` for payloads beside a dense vector.
        per_point: rows of ColBERT, weights of a sparse vector or characters of a payload's text.
        datatype: type of the stored components or weights.
        quantization: configuration of a quantized copy, in Qdrant's JSON.
        on_disk: whether the originals, or the sparse index, are mapped and not kept in memory.
        m: edges per node of the graph; 0 for no graph.
        size: components of a dense vector or of a row.
        uuids: whether ids are UUIDs rather than integers.
        index: type of the index on the payload key `topic`; None for no index.
    """

    name: str
    points: int
    kind: str
    per_point: int = 0
    datatype: StorageType = "float32"
    quantization: Mapping[str, Any] | None = None
    on_disk: bool = False
    m: int = 16
    size: int = SIZE
    uuids: bool = True
    index: str | None = None


def _int8() -> dict[str, Any]:
    return {"scalar": {"type": "int8", "quantile": 0.99, "always_ram": True}}


def _turbo(bits: str) -> dict[str, Any]:
    return {"turbo": {"bits": bits, "always_ram": True}}


BINARY: Final[Mapping[str, Any]] = {"binary": {"always_ram": True}}
PRODUCT: Final[Mapping[str, Any]] = {"product": {"compression": "x16", "always_ram": True}}

CASES: Final = (
    Case(name="ids-uuid", points=400_000, kind="dense", size=16, m=0),
    Case(name="ids-integer", points=400_000, kind="dense", size=16, m=0, uuids=False),
    Case(name="dense-float32", points=20_000, kind="dense"),
    Case(name="dense-float32-disk", points=20_000, kind="dense", on_disk=True),
    Case(name="dense-float16", points=20_000, kind="dense", datatype="float16"),
    Case(name="dense-uint8", points=20_000, kind="dense", datatype="uint8"),
    Case(name="dense-float32-m32", points=20_000, kind="dense", m=32),
    Case(name="dense-int8", points=20_000, kind="dense", quantization=_int8(), on_disk=True),
    Case(name="dense-binary", points=20_000, kind="dense", quantization=BINARY, on_disk=True),
    Case(name="dense-product-x16", points=10_000, kind="dense", quantization=PRODUCT, on_disk=True),
    Case(name="dense-turbo4", points=20_000, kind="dense", quantization=_turbo("bits4"), on_disk=True),
    Case(name="dense-turbo2", points=20_000, kind="dense", quantization=_turbo("bits2"), on_disk=True),
    Case(name="dense-turbo1", points=20_000, kind="dense", quantization=_turbo("bits1"), on_disk=True),
    Case(name="sparse-100", points=20_000, kind="sparse", per_point=100),
    Case(name="sparse-100-float16", points=20_000, kind="sparse", per_point=100, datatype="float16"),
    Case(name="sparse-100-disk", points=20_000, kind="sparse", per_point=100, on_disk=True),
    Case(name="sparse-250", points=20_000, kind="sparse", per_point=250),
    Case(name="sparse-100-large", points=100_000, kind="sparse", per_point=100),
    Case(name="colbert-float16", points=400, kind="colbert", per_point=256, datatype="float16", on_disk=True, m=0),
    Case(name="colbert-float16-ram", points=400, kind="colbert", per_point=256, datatype="float16", m=0),
    Case(name="colbert-float32", points=400, kind="colbert", per_point=256, on_disk=True, m=0),
    Case(name="colbert-uint8", points=400, kind="colbert", per_point=256, datatype="uint8", on_disk=True, m=0),
    Case(
        name="colbert-float16-int8",
        points=400,
        kind="colbert",
        per_point=256,
        datatype="float16",
        on_disk=True,
        m=0,
        quantization=_int8(),
    ),
    Case(
        name="colbert-float16-binary",
        points=400,
        kind="colbert",
        per_point=256,
        datatype="float16",
        on_disk=True,
        m=0,
        quantization=BINARY,
    ),
    Case(name="payload-1500", points=20_000, kind="payload", size=512, m=0, per_point=1500),
    Case(name="payload-6000", points=10_000, kind="payload", size=1024, m=0, per_point=6000),
    Case(name="payload-1500-keyword", points=20_000, kind="payload", size=512, m=0, per_point=1500, index="keyword"),
    Case(name="dense-graph-large", points=80_000, kind="dense", size=128),
    Case(name="dense-float32-large", points=80_000, kind="dense", m=0),
    Case(name="dense-int8-large", points=80_000, kind="dense", quantization=_int8(), on_disk=True, m=0),
)
