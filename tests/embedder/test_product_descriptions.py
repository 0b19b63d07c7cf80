"""A CPU keeps a bounded number of descriptions of products, so that memory does not grow with the sizes of batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import embedder
from embedder.product_descriptions import bound_kept_descriptions

ROOT = Path(__file__).parents[2]
GROWTH_MAX_BYTES = 64 * 550_000
"""The heap of 64 products: oneDNN may divide its cache, and keep code that several products share."""


def test_importing_the_library_bounds_the_descriptions() -> None:
    """Torch does not keep its own default of 1024 descriptions."""
    assert embedder.__name__
    assert int(os.environ["LRU_CACHE_CAPACITY"]) < 1024


def test_a_capacity_of_the_user_stays() -> None:
    """Who sets torch's variable gets that number."""
    environment = {"LRU_CACHE_CAPACITY": "8"}
    bound_kept_descriptions(environment)
    assert environment == {"LRU_CACHE_CAPACITY": "8"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the heap as glibc counts it")
def test_new_sizes_take_the_memory_of_old_ones() -> None:
    """A process that has multiplied 512 numbers of rows holds no more after 256 others.

    Torch was imported first, as a program of somebody else's may have done: its descriptions are bounded all the same.
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
