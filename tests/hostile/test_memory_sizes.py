"""A worker's memory does not grow with the number of sizes that batches have had."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.hostile.worker_process import ServedProcess, served_process

FIRST_WORDS: Final = (*range(500, 254, -16), *range(250, 126, -8), *range(122, 62, -4), *range(1, 36))
"""Words of texts in 82 sizes of pieces, the largest first: products of four shapes each, more than a CPU keeps."""
FURTHER_WORDS: Final = tuple(range(36, 62))
"""Words of texts in 26 further sizes, each with as many products: 54 MB if they were kept as well."""
GROWTH_MAX_BYTES: Final = 40_000_000
"""Greatest growth of the memory with the further sizes: what a heap with holes of other sizes may take."""


@pytest.mark.slow
def test_new_sizes_of_batches_take_the_memory_of_old_ones(tmp_path: Path) -> None:
    """Products of 26 further sizes do not add to those of the first 82, of which the worker keeps no more than 320."""
    with served_process(tmp_path / "store") as served, served.client() as client:
        _embed(client, 8 * [FIRST_WORDS[0]])  # the memory of a pass
        warm = _memory(served, client, FIRST_WORDS)
        grown = _memory(served, client, FURTHER_WORDS)
        print(f"\nMB {warm // 10**6}, {grown // 10**6}")  # noqa: T201 - what -s shows
        assert grown - warm < GROWTH_MAX_BYTES


def _memory(served: ServedProcess, client: httpx.Client, words: Iterable[int]) -> int:
    """Resident memory after a text of each number of words, each embedded alone."""
    for count in words:
        _embed(client, [count])
    return served.usage().memory_bytes


def _embed(client: httpx.Client, words: list[int]) -> None:
    texts = ["the " * count for count in words]
    answer = client.post("/embed", json={"texts": texts, "isPassage": True, "vectors": ["dense"]})
    assert answer.status_code == 200, answer.text
