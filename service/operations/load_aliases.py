"""The aliases that move to a collection when all its loads have ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qdrant_sink import Store


@dataclass(frozen=True, slots=True)
class MovedAliases:
    """What became of aliases that are to lead to a collection.

    Attributes:
        moved: those that lead to it now.
        kept: those that stay, because the collection has no points and the one to which they lead has some.
    """

    moved: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def move_aliases(
    store: Store,
    collection: str,
    aliases: Sequence[str],
    *,
    own: str | None,
    led_to: Mapping[str | None, str | None],
    allow_empty: bool,
    say: Callable[[str], None],
) -> MovedAliases:
    """Move aliases to a collection. Blocks for the store.

    One that only an earlier load wants is left where it is if it was moved elsewhere since that load began.

    Args:
        store: the store.
        collection: name of the collection.
        aliases: the aliases.
        own: the alias of the load that moves them; None for none.
        led_to: collections to which the aliases led when their loads began, by alias.
        allow_empty: whether they move although the collection has no points.
        say: prints a message.
    """
    moved, kept = [], []
    is_empty = not allow_empty and not has_points(store, collection)
    for alias in aliases:
        target = store.collection_of(alias, patient=True)
        if alias != own and target not in (collection, led_to.get(alias)):
            say(f"the alias {alias!r} is left where it is: it was moved to another collection meanwhile")
        elif is_empty and target not in (None, collection) and has_points(store, str(target)):
            say(f"the alias {alias!r} stays: {collection!r} has no points, and {target!r}, to which it leads, has some")
            kept.append(alias)
        else:
            store.alias(alias, collection)
            moved.append(alias)
    return MovedAliases(tuple(moved), tuple(kept))


def has_points(store: Store, collection: str) -> bool:
    """Whether a collection has a point."""
    return bool(store.scroll(collection, {}, False, limit=1)[0])  # noqa: FBT003
