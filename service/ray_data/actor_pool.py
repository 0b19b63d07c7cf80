"""The actors that hold a model: how many, and what each takes of its machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from ray.data import ActorPoolStrategy

CALLS_PER_ACTOR: Final = 2
"""Blocks that an actor works on concurrently, so that the model is busy while the last batch of a block is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPool:
    """A pool of actors, each with a model of its own.

    Attributes:
        size: number of actors; one per device.
        max_size: number of actors up to which the pool grows with the cluster; None for `size`.
        num_cpus: CPUs that Ray reserves for an actor, and threads of a model on a CPU. Reading and writing need CPUs
            too: with all of a cluster reserved for actors, nothing is read.
        num_gpus: GPUs that Ray reserves for an actor.
        batch_size: rows that an actor ingests or embeds at a time.
    """

    size: int = 1
    max_size: int | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    batch_size: int = 500

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `Dataset.map_batches`."""
        sizes = {"size": self.size} if self.max_size is None else {"min_size": self.size, "max_size": self.max_size}
        return {
            "compute": ActorPoolStrategy(**sizes, max_concurrent_calls_per_actor=CALLS_PER_ACTOR),
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            # Before torch is loaded; with the threads of all cores in each, actors of one machine wait for each other.
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(max(1, math.floor(self.num_cpus)))}},
            "batch_size": self.batch_size,
            "batch_format": "pyarrow",
            "zero_copy_batch": True,
        }
