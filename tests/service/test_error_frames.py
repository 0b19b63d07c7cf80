"""An error that was answered keeps nothing of its request in memory."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from embedder import BODIES, InvalidRequest, NotFound
from service.error_frames import forget_frames
from tests.service.client import PATIENCE


class Portion:
    """What a call has read before it fails."""


@pytest.mark.parametrize("is_chained", [False, True])
def test_the_locals_of_failed_calls_go(*, is_chained: bool) -> None:
    """What a failed call in a thread had read is gone with the answer, without waiting for the garbage collector."""
    read: list[weakref.ref[Portion]] = []

    def fail() -> None:
        portion = Portion()
        read.append(weakref.ref(portion))
        raise InvalidRequest("too much")

    async def request() -> None:
        call = asyncio.ensure_future(BODIES.run(fail))
        try:
            await call
        except InvalidRequest as error:
            if is_chained:
                raise ValueError("another") from error
            raise

    async def transport() -> None:
        try:
            await request()
        except (InvalidRequest, ValueError) as error:
            forget_frames(error)

    gc.disable()
    try:
        asyncio.run(transport())
        assert read[0]() is None
    finally:
        gc.enable()


def test_another_request_with_the_same_error_goes_on() -> None:
    """Of two requests that share a failed call, the one that is answered first does not end the other."""
    error = NotFound("the collection does not exist")

    async def request(turn: asyncio.Event) -> str:
        try:
            raise error
        except NotFound:
            await turn.wait()
        return "answered"

    async def scenario() -> str:
        turn = asyncio.Event()
        other = asyncio.create_task(request(turn))
        await asyncio.sleep(0)
        forget_frames(error)
        turn.set()
        return await asyncio.wait_for(other, PATIENCE)

    assert asyncio.run(scenario()) == "answered"
