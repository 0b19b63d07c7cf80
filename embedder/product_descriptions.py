"""The number of descriptions of products that torch keeps on a CPU, as it reads it at the first product.

oneDNN compiles a product for every number of rows and of threads, and keeps the last 512 of them in 0.52 MB of the heap
each, mostly copies of its description. torch keeps 1024 descriptions more for every thread that computes, in 0.26 MB
each, also of products that oneDNN has given up.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Final

KEPT_MAX_DESCRIPTIONS: Final = 128
"""Descriptions that torch keeps for each thread: those of a batch of up to 60 lengths. One takes 0.1 ms at most."""

_VARIABLE: Final = "LRU_CACHE_CAPACITY"


def bound_kept_descriptions(environment: MutableMapping[str, str]) -> None:
    """Bound the descriptions that stay, unless the user has set torch's variable.

    It has an effect until a product has been computed. Processes that this one starts inherit it.

    Args:
        environment: variables of this process, which are changed.
    """
    environment.setdefault(_VARIABLE, str(KEPT_MAX_DESCRIPTIONS))
