"""Short texts of many tasks are tokenized together, and each task receives its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from embedder.scheduling.gathering import ALONE_MAX_CALLERS, Gathering, Gatherings
from embedder.tokenizer import EncodedText


class Lengths:
    """A tokenizer for which a text has one token per character; it records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def encode(self, texts: Sequence[str], max_length: int) -> list[EncodedText]:
        """See `Tokenizer.encode`."""
        self.calls.append((len(texts), max_length))
        if "broken" in texts:
            raise MemoryError
        return [EncodedText(np.zeros(min(len(text), max_length), dtype=np.int32), False) for text in texts]


async def ask(gathering: Gathering, texts: Sequence[str], max_length: int = 512) -> list[int]:
    """Return the tokens of each text, requested by one task among `callers`."""
    return [len(text) for text in await gathering.encoded(texts, max_length)]


def test_texts_of_many_tasks_are_tokenized_by_one_call() -> None:
    """Each task gets its texts in order and cut to its own limit, with one call per limit."""
    lengths = Lengths()

    async def scenario() -> list[list[int]]:
        gathering = Gatherings(lengths.encode).here()
        gathering.callers = 100
        tasks = [ask(gathering, ["x" * n, "y" * (n + 1)], 512 if n % 2 else 20) for n in range(10, 110)]
        return await asyncio.gather(*tasks)

    limits = [512 if n % 2 else 20 for n in range(10, 110)]
    assert asyncio.run(scenario()) == [
        [min(n, most), min(n + 1, most)] for n, most in zip(range(10, 110), limits, strict=True)
    ]
    assert sorted(lengths.calls) == [(100, 20), (100, 512)]


def test_texts_of_few_tasks_do_not_wait() -> None:
    """A query that is nearly alone is tokenized immediately."""
    lengths = Lengths()

    async def scenario() -> None:
        gathering = Gatherings(lengths.encode).here()
        gathering.callers = ALONE_MAX_CALLERS
        waiting = gathering.encoded(["text"], 512)
        with pytest.raises(StopIteration):
            waiting.send(None)

    asyncio.run(scenario())
    assert lengths.calls == [(1, 512)]


def test_a_failure_reaches_all_and_the_cancelled_are_left_out() -> None:
    """A tokenizer error reaches every waiting task, and cancelled tasks are skipped."""
    lengths = Lengths()

    async def scenario() -> list[object]:
        gathering = Gatherings(lengths.encode).here()
        gathering.callers = 100
        tasks = [asyncio.create_task(ask(gathering, [text])) for text in ("one", "broken", "gone")]
        await asyncio.sleep(0)
        tasks[-1].cancel()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    assert list(map(type, asyncio.run(scenario()))) == [MemoryError, MemoryError, asyncio.CancelledError]


def test_event_loops_gather_apart() -> None:
    """Two event loops never wait for each other."""
    gatherings = Gatherings(Lengths().encode)

    async def here() -> Gathering:
        return gatherings.here()

    with asyncio.Runner() as first_loop, asyncio.Runner() as second_loop:
        assert first_loop.run(here()) is first_loop.run(here())
        assert first_loop.run(here()) is not second_loop.run(here())
