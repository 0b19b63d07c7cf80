"""The limits of JSON before it is parsed or validated, and the memory that parsed JSON takes at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from embedder import InvalidRequest
from service.validation import counted

JSON_MAX_DEPTH: Final = 128
"""Maximum levels of lists and objects in a request. Filters of the maximum depth need 70 of them."""

STRUCTURE_MAX_BYTES: Final = 100_000_000
"""Maximum memory of the values of a request in bytes, beside four bytes for each byte that its body may have."""

CHARACTER_MAX_BYTES: Final = 4
"""Maximum memory of a character in bytes, in a string that has one beyond U+FFFF."""

_OBJECT_BYTES: Final = 224
_LIST_BYTES: Final = 136
_NAME_BYTES: Final = 112
_STRING_BYTES: Final = 80
_SCALAR_BYTES: Final = 48
"""Upper bounds on the memory of a value of each kind in bytes, beside the characters of strings.

Each has its own head, the slot in the container around it as that grows, and its part of the index of a large body.
"""


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """The limits of one request.

    Attributes:
        max_nodes: maximum number of values and field names (`JSON_MAX_NODES`).
        max_bytes: maximum memory of the parsed values in bytes.
    """

    max_nodes: int
    max_bytes: int

    @classmethod
    def of(cls, max_nodes: int, body_max_bytes: int) -> JsonLimits:
        """The limits where a body may have so many bytes."""
        return cls(max_nodes, STRUCTURE_MAX_BYTES + CHARACTER_MAX_BYTES * body_max_bytes)


@dataclass(slots=True)
class JsonSize:
    """The size of JSON, counted before it is parsed, or before parsed values are validated.

    Attributes:
        lists: number of lists.
        objects: number of objects.
        names: number of field names.
        strings: number of strings that are values.
        scalars: number of other values, or more.
        character_bytes: upper bound on the memory of the characters in bytes.
        depth: levels of lists and objects.
    """

    lists: int = 0
    objects: int = 0
    names: int = 0
    strings: int = 0
    scalars: int = 0
    character_bytes: int = 0
    depth: int = 0

    @property
    def nodes(self) -> int:
        """Number of values and field names, or more."""
        return self.lists + self.objects + self.names + self.strings + self.scalars

    @property
    def max_bytes(self) -> int:
        """Upper bound on the memory of the parsed values in bytes."""
        return (
            self.objects * _OBJECT_BYTES
            + self.lists * _LIST_BYTES
            + self.names * _NAME_BYTES
            + self.strings * _STRING_BYTES
            + self.scalars * _SCALAR_BYTES
            + self.character_bytes
        )

    def check(self, limits: JsonLimits, root: str) -> None:
        """Check the size against the limits.

        Args:
            limits: the limits.
            root: name of the whole value in errors.

        Raises:
            InvalidRequest: the size exceeds a limit.
        """
        if self.depth > JSON_MAX_DEPTH:
            raise InvalidRequest(f"{root} must be nested at most {JSON_MAX_DEPTH} levels deep, got more")
        if self.nodes > limits.max_nodes:
            raise InvalidRequest(
                f"{root} must have at most {counted(limits.max_nodes, 'value')} and field names (JSON_MAX_NODES), got "
                "more; send it in parts"
            )
        if self.max_bytes > limits.max_bytes:
            raise InvalidRequest(
                f"the values of {root} must need at most {limits.max_bytes} bytes of memory, got up to "
                f"{self.max_bytes} or more; send it in parts"
            )
