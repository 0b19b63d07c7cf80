"""The threads of blocking work by kind, so that quick work never queues behind slow work.

asyncio's default executor is not used: there eight documents that are cut into chunks take every thread for seconds,
and a query of one word waits behind them. Each kind has threads of its own, and whoever waits for a call in one of them
can be cancelled: the call does not begin, or ends where it next asks whether it is still wanted.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Final, TypeVar

from embedder.cancellation import Cancellation
from embedder.cpu_quota import cpu_quota, present_processors, usable_processors
from embedder.errors import Overloaded

T = TypeVar("T")

QUICK_TEXT_MAX_CHARACTERS: Final = 131_072
"""Characters that are tokenized in about 50 ms, so that quick threads may do it."""


class Threads:
    """A fixed number of threads for one kind of work. Usable from any event loop.

    Args:
        name: name of the threads in logs and dumps.
        size: number of threads.
        waiting_max_characters: most characters of the texts of all calls that wait or run; None for any number. A call
            whose texts are more than that alone is let in if no other call waits or runs.
    """

    def __init__(self, name: str, size: int, *, waiting_max_characters: int | None = None) -> None:
        self._name = name
        self._executor = ThreadPoolExecutor(size, thread_name_prefix=name)
        self._most = waiting_max_characters
        self._characters = 0
        self._guard = threading.Lock()

    async def run(self, call: Callable[[], T], *, characters: int = 0) -> T:
        """Run a call in one of the threads, with the context of this task, and return its result.

        If this task is cancelled, a call that waits does not begin, and one that runs ends at its next
        `check_cancelled`.

        Args:
            call: the call.
            characters: characters of its texts.

        Raises:
            Overloaded: the texts of all calls would be more than `waiting_max_characters`.
        """
        cancellation, context = Cancellation(), copy_context()
        context.run(cancellation.enter)
        self._admit(characters)
        try:
            running = self._executor.submit(context.run, call)
        except BaseException:
            self._release(characters)
            raise
        running.add_done_callback(lambda _: self._release(characters))
        try:
            return await asyncio.wrap_future(running)
        finally:
            cancellation.cancel()

    @property
    def characters(self) -> int:
        """Characters of the texts of all calls that wait or run."""
        with self._guard:
            return self._characters

    def _admit(self, characters: int) -> None:
        with self._guard:
            if self._most is not None and self._characters and self._characters + characters > self._most:
                raise Overloaded(
                    f"texts of {self._characters} characters wait to be tokenized or cut into chunks already "
                    f"(limit {self._most}), got {characters} more; retry later"
                )
            self._characters += characters

    def _release(self, characters: int) -> None:
        with self._guard:
            self._characters -= characters


def plan_threads(processors: int) -> int:
    """Return the number of threads that plan ingests: two, or one where queries would have no other processor.

    Two threads cut 1.4 times as much text as one, and more would cut no more: most of it holds the interpreter lock.

    Args:
        processors: number of processors that this process may use.
    """
    return 1 if processors <= 2 else 2


WAITING_MAX_CHARACTERS: Final = 120_000_000
"""Characters of the texts of large requests that wait for the tokenizer: four of the largest bodies."""

QUICK: Final = Threads("quick", 4)
"""Work of at most about 50 ms: small requests and answers, whatever their operation."""

TEXTS: Final = Threads("texts", 2, waiting_max_characters=WAITING_MAX_CHARACTERS)
"""Tokenization and comparison of large requests that are not stored."""

PLANS: Final = Threads(
    "plan",
    plan_threads(usable_processors(present_processors(), cpu_quota())),
    waiting_max_characters=WAITING_MAX_CHARACTERS,
)
"""Plans of ingests: chunking, tokenization and layout of payloads, for seconds each."""

BODIES: Final = Threads("bodies", 2)
"""Parsing of large bodies, and rendering and compression of large answers."""


def text_threads(characters: int) -> Threads:
    """The threads that tokenize texts of so many characters."""
    return QUICK if characters <= QUICK_TEXT_MAX_CHARACTERS else TEXTS


async def in_own_thread(call: Callable[[], T]) -> T:
    """Run a call in a thread of its own, for what happens once in a process, such as its start and its end."""
    future: Future[T] = Future()
    context = copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(call))
        except BaseException as error:  # noqa: BLE001 - whoever waits for the future raises it
            future.set_exception(error)

    threading.Thread(target=run, name="once", daemon=True).start()
    return await asyncio.shield(asyncio.wrap_future(future))
