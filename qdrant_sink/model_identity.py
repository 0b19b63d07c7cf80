"""The identity of a model: its name and its revision, as collections carry them in their metadata.

Names are compared by their last component without regard to case, because one model is `BAAI/bge-m3` on the hub and
`/models/bge-m3` on a disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

METADATA_KEY: Final = "bge_m3_qdrant"
"""Key of the identity in the metadata of a collection, which belongs to all programs that use the collection."""

SHOWN_MAX_CHARACTERS: Final = 64
"""Maximum characters of a name in a message, because any program can write metadata."""

_HUB_CACHE: Final = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<revision>[^/]+)")
"""Path of a snapshot in the cache of the hub's client."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Name and revision of a model.

    Attributes:
        name: `mini`, a hub name (`OWNER/NAME`) or the last component of a directory; never a whole path.
        revision: commit of a hub model, or a digest of the weights; None if unknown.
    """

    name: str
    revision: str | None = None

    @classmethod
    def of(cls, model_id: str, revision: str | None = None) -> ModelIdentity:
        """Return the identity of a model as the settings name it.

        Args:
            model_id: `mini`, a hub name, or a directory. A snapshot in the hub's cache has the name of its model.
            revision: revision of the loaded weights; None if unknown.
        """
        path = Path(model_id)
        if not path.is_dir():
            return cls(model_id if model_id.count("/") <= 1 else path.name, revision)
        resolved = path.resolve()
        for place in (path, resolved):
            snapshot = _HUB_CACHE.search(place.as_posix())
            if snapshot is not None:
                return cls(f"{snapshot['owner']}/{snapshot['name']}", revision or snapshot["revision"])
        return cls(resolved.name if path.name in ("", "..") else path.name, revision)

    @classmethod
    def from_metadata(cls, metadata: object) -> ModelIdentity | None:
        """Read the identity from the metadata of a collection; None if it has none, or one in another form."""
        value = metadata.get(METADATA_KEY) if isinstance(metadata, Mapping) else None
        if not isinstance(value, Mapping):
            return None
        name, revision = value.get("model"), value.get("revision")
        if not isinstance(name, str) or not name:
            return None
        return cls(name, revision if isinstance(revision, str) and revision else None)

    @property
    def metadata(self) -> dict[str, Any]:
        """The identity as metadata of a collection."""
        return {METADATA_KEY: {"model": self.name, "revision": self.revision}}

    @property
    def shown(self) -> str:
        """The name for a message, shortened."""
        is_short = len(self.name) <= SHOWN_MAX_CHARACTERS
        return self.name if is_short else f"{self.name[: SHOWN_MAX_CHARACTERS - 1]}…"

    def has_name_of(self, other: ModelIdentity) -> bool:
        """Whether both have the same name."""
        return _key(self.name) == _key(other.name)

    def is_certainly(self, other: ModelIdentity) -> bool:
        """Whether both are the same model for certain: by name, and by a revision that is known of both."""
        return self.has_name_of(other) and self.revision is not None and self.revision == other.revision


def _key(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()
