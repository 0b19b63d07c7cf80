"""What the server knows of the worker's collections: their names, their descriptions, and where payloads have texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from bge_m3_qdrant_client import AsyncClient, CollectionAnswer, CollectionsAnswer

from embedder.errors import InvalidRequest

MAX_AGE_S: Final = 60.0
"""Seconds after which the worker is asked again."""

DESCRIBED_MAX: Final = 1000
"""Maximum collections whose descriptions are remembered."""

_NAMED_MAX: Final = 50
"""Maximum collections that a text names."""

_TEXT_MAX_CHARACTERS: Final = 6000
"""Maximum length of the text that names the collections, in characters."""


class Catalogue:
    """The collections that the tools may use.

    Args:
        client: the client of the worker.
        allowed: the only collections or aliases that the tools may use; empty for all that the worker permits.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self, client: AsyncClient, allowed: Sequence[str] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.allowed = tuple(dict.fromkeys(allowed))
        self._client = client
        self._clock = clock
        self._listed: tuple[float, CollectionsAnswer] | None = None
        self._described: dict[str, tuple[float, CollectionAnswer]] = {}

    async def refresh(self) -> CollectionsAnswer:
        """The collections of the worker, at most `MAX_AGE_S` old.

        Raises:
            ClientError: the worker does not answer, or answers an error.
        """
        if self._listed is None or self._clock() - self._listed[0] > MAX_AGE_S:
            self._listed = (self._clock(), await self._client.collections())
        return self._listed[1]

    async def describe(self, name: str) -> CollectionAnswer:
        """The description of a collection, at most `MAX_AGE_S` old.

        Raises:
            ClientError: the collection does not exist, or the worker does not answer.
        """
        described = self._described.get(name)
        if described is None or self._clock() - described[0] > MAX_AGE_S:
            if len(self._described) >= DESCRIBED_MAX:
                self._described.clear()
            described = self._described[name] = (self._clock(), await self._client.collection(name))
        return described[1]

    async def chosen(self, name: str | None) -> str:
        """The collection of a call.

        Args:
            name: the collection that the call names; None for the default.

        Raises:
            InvalidRequest: the collection is not allowed, or there is no default.
            ClientError: the worker does not answer.
        """
        if name is None:
            return await self._found_default()
        if self.allowed and name not in self.allowed:
            raise InvalidRequest(f"collection must be one of {', '.join(self.allowed)}")
        return name

    def names(self) -> list[str]:
        """The collections and aliases that are known, in the order of their names."""
        if self._listed is None:
            return list(self.allowed)
        listing = self._listed[1]
        existing = dict.fromkeys((*listing.collections, *listing.aliases))
        return [name for name in self.allowed if name in existing] if self.allowed else sorted(existing)

    def description(self, name: str) -> str | None:
        """What the operator says of a collection; None if nothing is said or known."""
        if self._listed is None:
            return None
        listing = self._listed[1]
        descriptions = listing.descriptions or {}
        return descriptions.get(name, descriptions.get(listing.aliases.get(name, "")))

    def default(self) -> str | None:
        """The collection of calls that name none: the only allowed one, or that of the worker."""
        if len(self.allowed) == 1:
            return self.allowed[0]
        default = None if self._listed is None else self._listed[1].default
        return None if self.allowed and default not in self.allowed else default

    def forget(self, name: str) -> None:
        """Ask the worker again, since a collection was written to and may be a new one."""
        self._listed = None if self._listed is None else (-MAX_AGE_S * 2, self._listed[1])
        self._described.pop(name, None)

    def text(self) -> str:
        """The collections with their descriptions, as a language model reads them."""
        if self._listed is None:
            known = f" They are: {', '.join(self.allowed[:_NAMED_MAX])}." if self.allowed else ""
            return f"What the collections hold is unknown, because the worker has not answered yet.{known}"
        names = self.names()
        if not names:
            missing = ", ".join(self.allowed[:_NAMED_MAX])
            return f"These collections do not exist yet: {missing}." if missing else "There are no collections yet."
        lines = []
        for name in names[:_NAMED_MAX]:
            said = self.description(name)
            title = f"- {name} (the default)" if name == self.default() else f"- {name}"
            lines.append(f"{title}: {said}" if said else title)
        text = "Collections:\n" + "\n".join(lines)
        if len(text) > _TEXT_MAX_CHARACTERS or len(names) > _NAMED_MAX:
            return text[:_TEXT_MAX_CHARACTERS].rpartition("\n")[0] + "\n- and more, which list_collections names"
        return text

    async def _found_default(self) -> str:
        if len(self.allowed) != 1:
            await self.refresh()
        if (default := self.default()) is not None:
            return default
        names = ", ".join(self.names()[:_NAMED_MAX])
        raise InvalidRequest("collection is required" + (f"; the collections are {names}" if names else ""))
