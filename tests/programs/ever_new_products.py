"""A process that multiplies ever new numbers of rows; it prints by how many bytes its heap grew after the first 512."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

import torch

import embedder

FIRST_SIZES: Final = 512
SIZES: Final = 768
WIDTH: Final = 64


class _HeapCounts(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def _used_bytes() -> int:
    """Bytes of the heap, and of blocks that are mapped by themselves, that are not free."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _HeapCounts
    counts = libc.mallinfo2()
    return int(counts.uordblks + counts.hblkhd)


def main() -> int:
    """Multiply 1 to 768 rows by one weight."""
    assert embedder.__name__, "imported after torch, for the variables that it sets"
    torch.set_num_threads(1)
    weight = torch.ops.mkldnn._reorder_linear_weight(torch.ones(WIDTH, WIDTH))
    before = 0
    with torch.inference_mode():
        for rows in range(1, SIZES + 1):
            torch.ops.mkldnn._linear_pointwise(torch.ones(rows, WIDTH), weight, None, "none", [], "none")
            if rows == FIRST_SIZES:
                before = _used_bytes()
    print(_used_bytes() - before)  # noqa: T201 - its output
    return 0


if __name__ == "__main__":
    sys.exit(main())
