"""Delivery of results from the pool to event loops: futures that complete together wake a loop once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


async def delivered(future: Future[T]) -> T:
    """The result of a future that a thread of the pool completes. Cancelling the task cancels the future.

    In place of `asyncio.wrap_future`, which wakes the event loop once for each future: a batch completes hundreds, and
    each wake-up takes a system call and a change of threads.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    future.add_done_callback(partial(_mailbox_of(loop).post, waiter))
    try:
        await waiter
    except BaseException:  # the task was cancelled, or will never go on
        future.cancel()
        raise
    return future.result()


@contextmanager
def woken_once() -> Iterator[None]:
    """Event loops whose futures this thread completes within the block are woken when it ends.

    A wake-up lets the loop run Python: its thread would serve the first of a batch's results, and this one would wait
    for the interpreter before it could complete the second.
    """
    mailboxes: list[_Mailbox] = []
    _thread.mailboxes = mailboxes
    try:
        yield
    finally:
        _thread.mailboxes = None
        for mailbox in mailboxes:
            mailbox.wake()


class _Thread(threading.local):
    """The mailboxes that a thread has posted to within `woken_once`; None outside."""

    mailboxes: list[_Mailbox] | None = None


_thread = _Thread()


class _Mailbox:
    """The waiters of one event loop whose futures are done, until the loop wakes."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []
        self._lock = threading.Lock()

    def post(self, waiter: asyncio.Future[None], _future: object) -> None:
        """Have the loop of a waiter end its wait. From any thread."""
        with self._lock:
            self._waiters.append(waiter)
            if len(self._waiters) > 1:
                return  # whoever posted the first one calls the loop
        if _thread.mailboxes is None:
            self.wake()
        else:
            _thread.mailboxes.append(self)

    def wake(self) -> None:
        """Call the loop of the waiters. From any thread."""
        try:
            self._waiters[0].get_loop().call_soon_threadsafe(self._deliver)
        except RuntimeError:  # the loop is closed: nobody waits
            self._taken()

    def _deliver(self) -> None:
        for waiter in self._taken():
            if not waiter.done():
                waiter.set_result(None)

    def _taken(self) -> list[asyncio.Future[None]]:
        with self._lock:
            waiters, self._waiters = self._waiters, []
            return waiters


_mailboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = WeakKeyDictionary()
_creation = threading.Lock()


def _mailbox_of(loop: asyncio.AbstractEventLoop) -> _Mailbox:
    mailbox = _mailboxes.get(loop)
    if mailbox is None:  # only the thread of the loop asks for it
        with _creation:
            mailbox = _mailboxes[loop] = _Mailbox()
    return mailbox
