"""The contenders in order, their workloads and time limits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["original", "m3serve", "packed"]

COMMON = ("query", "concurrent-32", "mixed", "passages-512")
"""Everyone runs these, first and in this order, so that figures that depend on history (peak memory) compare."""
COMPARED = (*COMMON, "concurrent-8", "concurrent-128", "beside-512", "passages-8192")
EVERYTHING = (*COMPARED, "growth", "beside-8192")


@dataclass(frozen=True, slots=True)
class Entry:
    """One process of the benchmark.

    Attributes:
        kind: which contender.
        title: as the report names it.
        dtype: `auto`, `float32`, `16bit` (bfloat16 on the CPU, float16 on CUDA) or `int8`.
        lanes: of the packed engine.
        workloads: in order.
    """

    kind: Kind
    title: str
    workloads: tuple[str, ...]
    dtype: str = "auto"
    lanes: int = 4

    def dtype_on(self, device: str) -> str:
        """The name the engine knows the type by."""
        if self.dtype == "16bit":
            return "bfloat16" if device == "cpu" else "float16"
        return self.dtype


ENTRIES: dict[str, Entry] = {
    "original": Entry("original", "original design: 4 x FlagEmbedding", (*COMPARED, "beside-8192")),
    "m3serve": Entry("m3serve", "m3serve", (*COMPARED, "beside-8192")),
    "packed-first": Entry("packed", "this engine, very first start", ()),
    "packed": Entry("packed", "this engine, defaults", EVERYTHING),
    "packed-int8": Entry("packed", "this engine, int8", (*COMPARED, "beside-8192"), dtype="int8"),
    "packed-16bit": Entry("packed", "this engine, 16 bits", COMMON, dtype="16bit"),
    "packed-float32": Entry("packed", "this engine, float32", COMMON, dtype="float32"),
    "packed-1-lane": Entry("packed", "this engine, 1 lane", COMMON, lanes=1),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits of each kind of workload in seconds; a call under way is always awaited.

    Attributes:
        query: one query after the other.
        concurrent: each level of concurrency; every client sends at least one query.
        passages: mixed and 512-token passages; at least `least` repetitions unless they take four times as long.
        long: an 8192-token passage runs only if it is expected to take no longer; it repeats for half of it.
        beside: queries beside a bulk job.
        growth: a number of texts runs only if it is expected to take no longer.
        give_up: a workload that takes longer ends its contender.
        least: fewest repetitions.
        growth_sizes: numbers of texts.
    """

    query: float = 12.0
    concurrent: float = 8.0
    passages: float = 24.0
    long: float = 75.0
    beside: float = 15.0
    growth: float = 240.0
    give_up: float = 300.0
    least: int = 3
    growth_sizes: tuple[int, ...] = (100, 1000, 10_000)

    def scaled(self, factor: float) -> Limits:
        """All times multiplied, but for that of the last resort."""
        return replace(
            self,
            query=self.query * factor,
            concurrent=self.concurrent * factor,
            passages=self.passages * factor,
            long=self.long * factor,
            beside=self.beside * factor,
            growth=self.growth * factor,
        )


FULL = Limits()
QUICK = replace(FULL.scaled(0.06), give_up=60.0)
