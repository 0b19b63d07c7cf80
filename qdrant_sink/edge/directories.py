"""Directories of the embedded store: one per collection, with a symbolic link per alias.

A directory has the name of its collection, except that `%` and a dot at the beginning are escaped as in a URL: the
collection `.notes 5%` is in `%2Enotes 5%25`. So no collection is taken for a file of the store itself, all of which
begin with a dot, and every name can be read from its directory.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Final

from embedder.errors import InvalidRequest
from qdrant_sink.edge.settings import CONFIG_FILE
from qdrant_sink.store import is_collection_name

_TEMPORARY: Final = ".creating-"
"""Beginning of the names of unfinished collections and aliases."""


def entry_of(name: str) -> str:
    """The name of the directory or the link of a valid collection name."""
    escaped = name.replace("%", "%25")
    return f"%2E{escaped[1:]}" if escaped.startswith(".") else escaped


def name_of(entry: str) -> str | None:
    """The collection name of a directory or a link; None for other files."""
    name = (f".{entry[3:]}" if entry.startswith("%2E") else entry).replace("%25", "%")
    return name if is_collection_name(name) and entry_of(name) == entry else None


def collection_in(directory: Path) -> str:
    """The name of the collection in a directory, for messages."""
    return name_of(directory.name) or directory.name


class Directories:
    """The directories of all collections of a store, which owns them. Names must be valid.

    Every method with a name raises `InvalidRequest` if the name is too long for the disk.

    Args:
        root: existing directory in which they are.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._entry_max_bytes = os.pathconf(root, "PC_NAME_MAX")
        self._listed: set[str] = set()

    def path(self, name: str) -> Path:
        """The directory of a collection, or the link of an alias."""
        entry = entry_of(name)
        size = len(os.fsencode(entry))
        if 0 < self._entry_max_bytes < size:  # -1 stands for a disk without a limit
            raise InvalidRequest(
                f"collection: a name must take at most {self._entry_max_bytes} bytes on the disk of the embedded "
                f"store, got {size} bytes for {len(name)} characters; choose a shorter name"
            )
        return self._root / entry

    def resolve(self, name: str) -> str:
        """Resolve a name to its collection: the name itself or the target of an alias.

        A symbolic link to a path outside of the directory is not an alias but a collection on another disk.
        """
        path = self.path(name)
        if not path.is_symlink() or not self._is_listed(path.name):
            return name
        return name_of(str(path.readlink())) or name

    def exists(self, name: str) -> bool:
        """Whether the directory of a collection exists and is complete."""
        path = self.path(name)
        return (path / CONFIG_FILE).exists() and self._is_listed(path.name)

    def names(self) -> list[str]:
        """The names of all collections and aliases that are complete."""
        names = (name_of(entry) for entry in self._entries())
        return [name for name in names if name is not None and self.exists(name)]

    def check_distinct(self, name: str) -> None:
        """Check that the disk distinguishes a name from those of all other collections and aliases.

        A disk that ignores case opens `notes` where `Notes` was asked for.

        Raises:
            InvalidRequest: the disk does not distinguish it from an existing one.
        """
        path = self.path(name)
        if os.path.lexists(path) and not self._is_listed(path.name):
            raise InvalidRequest(
                f"collection: {name!r} differs from an existing name only in case or in the form of its letters, which "
                "the disk of the embedded store does not distinguish; choose another name"
            )

    def temporary(self) -> Path:
        """A new path for a collection or an alias that is moved to its name when it is complete."""
        return self._root / f"{_TEMPORARY}{uuid.uuid4().hex}"

    def remove(self, name: str) -> None:
        """Remove a collection and the links of its aliases. If the process is killed meanwhile, the next start ends it.

        Of a collection on another disk, the link is removed first.
        """
        for alias in self.names():
            if alias != name and self.resolve(alias) == name:
                self.path(alias).unlink()
        path = self.path(name)
        elsewhere = path.resolve() if path.is_symlink() else None
        removed = self.temporary()
        path.rename(removed)
        if elsewhere is not None:
            removed.unlink()
        shutil.rmtree(elsewhere or removed)

    def remove_unfinished(self) -> None:
        """Remove what processes that were killed left unfinished."""
        for leftover in self._root.glob(f"{_TEMPORARY}*"):
            if leftover.is_symlink():
                leftover.unlink(missing_ok=True)
            else:
                shutil.rmtree(leftover, ignore_errors=True)

    def _is_listed(self, entry: str) -> bool:
        """Whether an existing entry has exactly this name. The directory is listed once per entry."""
        if entry not in self._listed:
            self._listed = self._entries()
        return entry in self._listed

    def _entries(self) -> set[str]:
        return {path.name for path in self._root.iterdir()}
