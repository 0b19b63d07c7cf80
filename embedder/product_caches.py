"""The number of products that a CPU keeps compiled; it is read from the environment at the first product.

oneDNN compiles a product for every number of rows and of threads, and takes 0.52 MB of the heap for it, mostly two
copies of its description. It keeps 1024 primitives, two for each product, and torch keeps 1024 descriptions for every
thread that computes, also of products that oneDNN has given up.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Final

KEPT_MAX_PRODUCTS: Final = 320
"""Products that stay compiled: those of every query of up to 64 tokens, in the four shapes of a layer, and 64 more."""

KEPT_MAX_DESCRIPTIONS: Final = 128
"""Descriptions that torch keeps for each thread: those of a batch of up to 60 lengths. One takes 0.1 ms at most."""

_PRODUCT_PRIMITIVES: Final = 2
"""Primitives of oneDNN for one product: the layer's, and the multiplication in it."""

_ONEDNN_VARIABLES: Final = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
"""Names of one variable, today's first."""

_TORCH_VARIABLE: Final = "LRU_CACHE_CAPACITY"


def bound_kept_products(environment: MutableMapping[str, str]) -> None:
    """Bound the products and the descriptions that stay, each unless the user has set its variable.

    It has an effect until a product has been computed. Processes that this one starts inherit it.

    Args:
        environment: variables of this process, which are changed.
    """
    if not any(name in environment for name in _ONEDNN_VARIABLES):
        environment[_ONEDNN_VARIABLES[0]] = str(_PRODUCT_PRIMITIVES * KEPT_MAX_PRODUCTS)
    environment.setdefault(_TORCH_VARIABLE, str(KEPT_MAX_DESCRIPTIONS))
