"""What the project promises of the CPU, by its instruction set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goals:
    """Least ratios of speed, and the least share of the ceiling.

    Attributes:
        query: one short query against the original design.
        concurrent: queries per second of 32 clients against the original design.
        passages: mixed-length passages against the original design.
        share_percent: of the rate of the type's own matrix product, for passages of 512 tokens.
        int8: one short query in int8 against the quickest other type.
    """

    query: float
    concurrent: float
    passages: float
    share_percent: float
    int8: float = 1.2


AMX = Goals(query=10, concurrent=28, passages=14, share_percent=75)
"""With units for products of tiles, 16-bit products are so quick that what lies between them takes a larger share."""
PLAIN = Goals(query=6, concurrent=14, passages=5.5, share_percent=85)
"""Without them, whatever the width of the vectors."""


def goals_of(hardware: Mapping[str, str]) -> Goals:
    """The goals of a machine, by the flags of its CPU.

    Args:
        hardware: as `benchmarks.machine.hardware` returns it.
    """
    return AMX if "amx_tile" in hardware.get("CPU flags", "").split() else PLAIN
