"""A CPU keeps a bounded number of products compiled, so that its memory does not grow with the sizes of batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import embedder
from embedder.product_caches import KEPT_MAX_DESCRIPTIONS, KEPT_MAX_PRODUCTS, bound_kept_products

ROOT = Path(__file__).parents[2]
GROWTH_MAX_BYTES = 64 * 550_000
"""The heap of 64 products: oneDNN may divide its cache, and keep code that several products share."""


def test_importing_the_library_bounds_both_caches() -> None:
    """Neither oneDNN nor torch keeps its own default of 1024 products, unless a variable asks for another number."""
    assert embedder.__name__
    assert {"ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"} <= os.environ.keys()


@pytest.mark.parametrize("name", ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"])
def test_a_capacity_of_the_user_stays(name: str) -> None:
    """Who sets a cache's own variable, by either name, gets that; the other cache is bounded all the same."""
    environment = {name: "7"}
    bound_kept_products(environment)
    assert environment == {name: "7", "LRU_CACHE_CAPACITY": str(KEPT_MAX_DESCRIPTIONS)}
    environment = {"LRU_CACHE_CAPACITY": "8"}
    bound_kept_products(environment)
    assert environment == {"LRU_CACHE_CAPACITY": "8", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(2 * KEPT_MAX_PRODUCTS)}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the heap as glibc counts it")
def test_new_sizes_take_the_memory_of_old_ones() -> None:
    """A process that has multiplied 320 numbers of rows holds no more after 448 others.

    Torch was imported first, as a program of somebody else's may have done: the caches are bounded all the same.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.programs.ever_new_products"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < GROWTH_MAX_BYTES
