"""The division of a batch's rows into pieces for a CPU, in few distinct sizes.

oneDNN compiles a product for every number of rows, in 0.5 ms, and keeps the last 512.
With few numbers most of what a batch needs is there already.
"""

from __future__ import annotations

from itertools import pairwise
from math import gcd
from typing import Final

_EXACT_MAX: Final = 64
"""Rows up to which every number is a size of its own: for a single query, the further rows would be 3 % of its time."""

_STEP_MAX: Final = 16
"""Largest step between two sizes."""

_STEPS_BITS: Final = 5
"""Below a power of two there are as many sizes as 2 to this power, half of them above the one before it."""


def row_pieces(rows: int, most: int) -> tuple[slice, ...]:
    """Pieces of about one size that cover these rows, and a few that are not there.

    With pieces of up to 512 rows there are 112 sizes: all up to 64, every fourth up to 128, every eighth up to 256, and
    every sixteenth. So a batch has 15 rows too many at most, and 2 % of its own on the average.

    Args:
        rows: number of rows, at least 1.
        most: rows of a piece at most.
    """
    count = -(-rows // most)
    step = 1 if rows <= _EXACT_MAX else gcd(most, min(1 << (rows - 1).bit_length() - _STEPS_BITS, _STEP_MAX))
    units = -(-rows // step)
    return tuple(slice(*edge) for edge in pairwise(step * (units * n // count) for n in range(count + 1)))
