"""The turns of bodies in many chunks."""

from __future__ import annotations

import asyncio

from service.transports.http.turns import Turns


class Piecework:
    """Work of so many bits, each of which ends a turn's time."""

    def __init__(self, turns: Turns, bits: int, log: list[str], name: str) -> None:
        self._turns = turns
        self._bits = bits
        self._log = log
        self._name = name

    def begin(self) -> None:
        """Wait for the first turn, twice."""
        self._turns.wait(self)
        self._turns.wait(self)

    def proceed(self) -> None:
        """See `Waiting.proceed`."""
        self._log.append(self._name)
        self._bits -= 1
        if self._bits:
            self._turns.wait(self)


def test_everything_else_runs_between_two_turns() -> None:
    """Two bodies take turns bit by bit, and what else is ready runs after each turn."""

    async def run() -> list[str]:
        log: list[str] = []
        turns = Turns(turn_s=1e-9)
        for name in "ab":
            Piecework(turns, 3, log, name).begin()
        for _ in range(20):
            await asyncio.sleep(0)
            if log and log[-1] != "-":
                log.append("-")
        return log

    assert "".join(asyncio.run(run())) == "a-b-a-b-a-b-"


def test_short_bits_share_a_turn() -> None:
    """What fits into the time of one turn is done in it, whoever it is of, and each waits once."""

    async def run() -> list[str]:
        log: list[str] = []
        turns = Turns(turn_s=60)
        for name in "ab":
            Piecework(turns, 2, log, name).begin()
        await asyncio.sleep(0)
        return log

    assert "".join(asyncio.run(run())) == "abab"
