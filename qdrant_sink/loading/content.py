"""What decides the content of the points of a load, so that the parts of one load can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

_KINDS: Final = ("dense", "sparse", "colbert")

_OF_NEW_POINTS: Final = frozenset({"colbert_pooling", "input"})
"""Fields of which a point that is stored already does not depend: a line that they change was rejected before, or has
other content."""


@dataclass(frozen=True, slots=True)
class LoadContent:
    """What decides the content of the points of a load, apart from the lines, the collection and its model.

    Attributes:
        vectors: kinds of vectors, in the order dense, sparse, colbert; empty for those of the collection.
        chunk_tokens: maximum tokens of a chunk; None for no chunks.
        chunk_overlap: tokens that a chunk repeats of the previous one; None for no chunks.
        max_length: tokens beyond which a text without chunks is truncated; None with chunks, and for given vectors.
        colbert_pooling: `none` or `mean`.
        text_key: payload key of the text; None for that of the collection.
        id_scope: name from which ids are derived; None for that of the collection.
        input: options by which lines are read from the input, with their names, in the order of the names.
    """

    vectors: tuple[str, ...] = ()
    chunk_tokens: int | None = None
    chunk_overlap: int | None = None
    max_length: int | None = None
    colbert_pooling: str = "none"
    text_key: str | None = None
    id_scope: str | None = None
    input: tuple[tuple[str, str], ...] = ()

    @property
    def values(self) -> dict[str, object]:
        """All values by the names of their attributes, and those of the input by `input.` and their names."""
        values = {name: value for name, value in self._fields().items() if name != "input"}
        return {**values, **{f"input.{name}": value for name, value in self.input}}

    def keeps_points_of(self, earlier: LoadContent) -> bool:
        """Whether a load of this content may keep the points that one of an earlier content has stored."""
        mine, theirs = self._fields(), earlier._fields()
        return all(mine[name] == theirs[name] for name in mine.keys() - _OF_NEW_POINTS)

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def parse(cls, value: object) -> LoadContent | None:
        """Read the content of a record; None if the value is none, or has fields of a later release."""
        if not isinstance(value, Mapping) or not value.keys() <= {field.name for field in fields(cls)}:
            return None
        vectors, read = value.get("vectors", ()), value.get("input", {})
        numbers = {name: value.get(name) for name in ("chunk_tokens", "chunk_overlap", "max_length")}
        texts = {name: value.get(name) for name in ("text_key", "id_scope")}
        pooling = value.get("colbert_pooling", "none")
        is_content = (
            isinstance(vectors, list | tuple)
            and all(kind in _KINDS for kind in vectors)
            and all(isinstance(number, int | None) for number in numbers.values())
            and all(isinstance(text, str | None) for text in texts.values())
            and isinstance(pooling, str)
            and isinstance(read, Mapping)
            and all(isinstance(text, str) for item in read.items() for text in item)
        )
        if not is_content:
            return None
        return cls(tuple(vectors), **numbers, **texts, colbert_pooling=pooling, input=tuple(sorted(read.items())))

    @property
    def value(self) -> dict[str, Any]:
        """The content as JSON values."""
        return {**asdict(self), "vectors": list(self.vectors), "input": dict(self.input)}
