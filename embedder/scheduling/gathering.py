"""Short texts of many tasks, tokenized together: by all cores, while other threads run Python."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Final
from weakref import WeakKeyDictionary

from embedder.tokenizer import EncodedText

ALONE_MAX_CALLERS: Final = 8
"""Callers up to which each has its texts tokenized immediately: to gather them costs as much as it saves."""

Encode = Callable[[Sequence[str], int], list[EncodedText]]
"""Tokenizes texts, cut to a number of tokens."""


class Gatherings:
    """The gathering of each event loop.

    Args:
        encode: tokenizes valid texts.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._gatherings: WeakKeyDictionary[asyncio.AbstractEventLoop, Gathering] = WeakKeyDictionary()
        self._creation = threading.Lock()

    def here(self) -> Gathering:
        """The gathering of the running loop."""
        loop = asyncio.get_running_loop()
        gathering = self._gatherings.get(loop)
        if gathering is None:  # only the thread of the loop asks for it
            with self._creation:
                gathering = self._gatherings[loop] = Gathering(self._encode)
        return gathering


class Gathering:
    """The texts of one event loop that wait to be tokenized together, when its tasks have had their turn.

    One short text takes 10 to 30 us, during which no other thread runs Python. Of hundreds each takes 2 us of that, and
    the rest beside other threads.

    Args:
        encode: tokenizes valid texts.

    Attributes:
        callers: tasks that want vectors of short texts now; the caller of `encoded` counts itself.
    """

    def __init__(self, encode: Encode) -> None:
        self.callers = 0
        self._encode = encode
        self._waiting: dict[int, list[tuple[Sequence[str], asyncio.Future[list[EncodedText]]]]] = {}

    async def encoded(self, texts: Sequence[str], max_length: int) -> list[EncodedText]:
        """The tokens of valid texts, alone or with those of other tasks.

        Args:
            texts: any number.
            max_length: tokens to which each is cut.
        """
        if self.callers <= ALONE_MAX_CALLERS:
            return self._encode(texts, max_length)
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._encode_all)
        waiter: asyncio.Future[list[EncodedText]] = loop.create_future()
        self._waiting.setdefault(max_length, []).append((texts, waiter))
        return await waiter

    def _encode_all(self) -> None:
        groups, self._waiting = self._waiting, {}
        for max_length, group in groups.items():
            wanted = [(texts, waiter) for texts, waiter in group if not waiter.done()]
            try:
                encoded = iter(self._encode([text for texts, _ in wanted for text in texts], max_length))
            except Exception as error:  # noqa: BLE001 - whoever waits raises it
                for _, waiter in wanted:
                    waiter.set_exception(error)
            else:
                for texts, waiter in wanted:
                    waiter.set_result([next(encoded) for _ in texts])
