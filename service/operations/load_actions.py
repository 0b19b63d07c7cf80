"""The steps of a load whose lines others store: its begin, its end, and the end of all shards of a collection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from embedder import InvalidRequest
from qdrant_sink.loading import LoadContent, Shard
from service.logs import AUDIT, CALLER
from service.operations.collections import Collections
from service.operations.embed import LengthLimits
from service.operations.finish import ended_finish
from service.operations.load_values import LoadCounts, LoadRequest
from service.operations.loads import Loads
from service.operations.ongoing_load import OngoingLoad
from service.operations.shard_report import shard_messages

WHOLE: Final = Shard(1, 1)
"""The shard of a load that is not divided."""


@dataclass(frozen=True, slots=True)
class LoadAction:
    """A step of a load.

    Attributes:
        action: `begin` creates or verifies the collection and defers its graph; `end` records the counts of a shard
            whose lines are stored or rejected; `finish` compares all shards, builds the graph and moves the aliases.
        collection: name of the collection itself.
        name: name of the load, which all its shards share.
        alias: alias that is to lead to the collection; None for none.
        shard: the shard that begins or ends.
        defer_index: defer the graph even if the collection has points.
        counts: what an ended shard has counted.
        rejected: number of its rejected points and lines.
        complete: whether all its lines are stored, or rejections are allowed.
        content: what decides the content of its points, for `begin`; None if it is unknown, or that of an earlier run.
        keeps: whether points that exist are left unchanged.
    """

    action: Literal["begin", "end", "finish"]
    collection: str
    name: str
    alias: str | None = None
    shard: Shard = WHOLE
    defer_index: bool = False
    counts: LoadCounts = LoadCounts()  # noqa: RUF009 - a frozen value
    rejected: int = 0
    complete: bool = True
    content: LoadContent | None = None
    keeps: bool = False


@dataclass(frozen=True, slots=True)
class LoadStep:
    """What a step of a load has done.

    Attributes:
        outcome: `begun`, `ended`, or of a `finish` what `LoadEnd.outcome` says.
        aliases: aliases that were moved.
        messages: what a person should know, such as the shards that are missing.
    """

    outcome: str
    aliases: Sequence[str] = ()
    messages: Sequence[str] = ()


class LoadActions:
    """Carries out the steps of loads, if the operator allows it. Every step can be repeated.

    No process gives signs of life of such a load. Between its begin and its end it counts as interrupted: no alias
    moves without its lines, and another load that ends builds the graph.

    Args:
        collections: the collections of the worker.
        loads: its loads.
        limits: lengths of texts where a load does not say them.
        allowed: whether the operator allows it.
    """

    def __init__(self, collections: Collections, loads: Loads, limits: LengthLimits, *, allowed: bool) -> None:
        self._collections = collections
        self._loads = loads
        self._limits = limits
        self._allowed = allowed

    async def __call__(self, action: LoadAction) -> LoadStep:
        """Carry out a step.

        Raises:
            InvalidRequest: the operator does not allow it, a name is not allowed, or another run of the same load is
                under way.
            WorkerError: the store fails.
        """
        if not self._allowed:
            raise InvalidRequest("operation 'load' is not allowed on this worker; ALLOW_LOADS=true allows it")
        if action.alias is not None:
            await self._collections.check_alias(action.alias, action.collection)
        self._collections.named(action.collection, "collection")
        what = _in_audit(action)
        try:
            step = await self._carried_out(action)
        except Exception as error:  # it may have created the collection, or built its graph
            AUDIT.info("%s %s: failed (%s)", CALLER.get(), what, type(error).__name__)
            raise
        aliases = "".join(f", the alias {alias!r} moved" for alias in step.aliases)
        AUDIT.info("%s %s: %s%s", CALLER.get(), what, step.outcome, aliases)
        return step

    async def _carried_out(self, action: LoadAction) -> LoadStep:
        said: list[str] = []
        if action.action == "finish":
            return await self._finish(action, said)
        begun = await self._begun(action, said)
        if action.action == "begin":
            await begun.stop()
            return LoadStep("begun", messages=said)
        await begun.end(
            asyncio.Event(),
            complete=action.complete,
            rejected=action.rejected,
            alias=action.alias,
            counts=action.counts,
        )
        return LoadStep("ended", messages=said)

    async def _begun(self, action: LoadAction, said: list[str]) -> OngoingLoad:
        request = LoadRequest(
            action.collection,
            action.shard.load_of(action.name),
            action.alias,
            action.defer_index,
            shard=action.shard,
            content=self._content(action.content),
            keeps=action.keeps,
        )
        load = await self._loads.load(request, said.append)
        await load.begin(asyncio.Event())
        return load

    def _content(self, content: LoadContent | None) -> LoadContent | None:
        """The content with the length to which this worker truncates texts."""
        if content is None or content.chunk_tokens is not None:
            return content
        return replace(content, max_length=content.max_length or self._limits.passage)

    async def _finish(self, action: LoadAction, said: list[str]) -> LoadStep:
        request = LoadRequest(action.collection, action.name, action.alias, has_lines=False)
        load = await self._loads.load(request, said.append)
        end = await ended_finish(load, asyncio.Event(), action.alias)
        return LoadStep(end.outcome, tuple(end.aliases), (*said, *shard_messages(end)))


def _in_audit(action: LoadAction) -> str:
    """A step in the audit."""
    if action.action == "finish":
        return f"finishes {action.collection!r}"
    shard = "" if action.shard == WHOLE else f" shard {action.shard} of"
    return f"{action.action}s{shard} load {action.name!r} into {action.collection!r}"
