"""The sections of the GPU benchmark, in order, each with the most seconds it may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from benchmarks import tokenizer
from benchmarks.gpu.bench import Bench, NotRunError
from benchmarks.gpu.ceilings import ceilings
from benchmarks.gpu.embedder import embedder, handler
from benchmarks.gpu.engine import engine, float8, small_batches
from benchmarks.gpu.library import flagembedding
from benchmarks.gpu.profile import profile
from benchmarks.gpu.queries import queries
from benchmarks.gpu.results import Row
from benchmarks.machine import driver, hardware, versions

Measure = Callable[[Bench], Iterator[Row]]


@dataclass(frozen=True, slots=True)
class Plan:
    """A section.

    Attributes:
        measure: gives its rows, one after the other.
        cap_s: seconds after which no further row is measured.
    """

    measure: Measure
    cap_s: float


def machine(bench: Bench) -> Iterator[Row]:
    """The hardware, the versions and the checkpoint."""
    facts = {"date": datetime.now(UTC).date().isoformat(), "device": bench.device}
    if bench.on_gpu:
        properties = torch.cuda.get_device_properties(bench.device)
        facts |= {
            "GPU": properties.name,
            "GPU memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "compute capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": f"{properties.multi_processor_count}",
            "driver": driver(),
        }
    shape = bench.shape
    facts |= hardware() | versions("triton", "peft", "datasets")
    facts |= {
        "type": bench.dtype,
        "checkpoint": f"random weights, {shape.parameters / 1e6:.0f} M parameters, {shape.linear / 1e6:.0f} M of them"
        " in linear layers",
        "tokenizer": tokenizer.name_of(bench.checkpoint),
        "quick": "yes" if bench.quick else "no",
    }
    for figure, value in facts.items():
        if value:
            yield {"figure": figure, "value": value}


def memory(bench: Bench) -> Iterator[Row]:
    """The memory of the GPU that is reserved at the end, and what is free."""
    if not bench.on_gpu:
        raise NotRunError("it is the memory of a GPU that is measured")
    free_bytes, total_bytes = torch.cuda.mem_get_info(bench.device)
    yield {
        "reserved_bytes": torch.cuda.memory_reserved(bench.device),
        "allocated_bytes": torch.cuda.memory_allocated(bench.device),
        "free_bytes": free_bytes,
        "total_bytes": total_bytes,
    }


SECTIONS: dict[str, Plan] = {
    "machine": Plan(machine, 20),
    "ceilings": Plan(ceilings, 20),
    "engine": Plan(engine, 75),
    "small": Plan(small_batches, 25),
    "embedder": Plan(embedder, 45),
    "queries": Plan(queries, 45),
    "handler": Plan(handler, 20),
    "float8": Plan(float8, 25),
    "profile": Plan(profile, 25),
    "flagembedding": Plan(flagembedding, 60),
    "memory": Plan(memory, 5),
}
