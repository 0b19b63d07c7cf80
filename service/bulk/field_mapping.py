"""Mapping of the fields of a file to id, text and payload."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qdrant_sink import kind_of
from service.bulk.line import BadLineError, Line, Origin, WrongFileError
from service.validation import is_unicode

TEXT_SEPARATOR: Final = "\n"
"""What stands between the texts of several fields."""

_FIELD_NAME_MAX = 64
"""Maximum characters of a field name in a message."""

_FIELDS_NAMED_MAX = 20
"""Maximum field names in a message."""


@dataclass(frozen=True, slots=True)
class FieldOptions:
    """The fields that the user names.

    Attributes:
        id: field of the id; None for `id`.
        texts: fields of the text, which are joined; empty for `text`.
        payload: fields of the payload; empty for all others.
    """

    id: str | None = None
    texts: Sequence[str] = ()
    payload: Sequence[str] = ()

    def __bool__(self) -> bool:
        """Whether any field is named."""
        return bool(self.id is not None or self.texts or self.payload)

    @property
    def by_option(self) -> dict[str, object]:
        """The fields by the names of the options that name them."""
        return {"id-field": self.id, "text-field": self.texts, "payload-fields": self.payload}


@dataclass(frozen=True, slots=True)
class Layout:
    """Which fields of a file are what.

    Attributes:
        id: field of the id, which may be absent.
        texts: fields of the text; those that are present and not empty are joined.
        whose: program whose layout it is; empty for one that the user names, and for the plain one.
        nested: field whose object is a part of the payload; None if there is none.
        kept: fields of the text that are in the payload too.
        dropped: fields that are not in the payload.
        payload: fields of the payload; None for all that have no other use.
    """

    id: str
    texts: tuple[str, ...]
    whose: str = ""
    nested: str | None = None
    kept: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()
    payload: tuple[str, ...] | None = None

    def line(self, origin: Origin, number: int, fields: Mapping[str, Any], size: int) -> Line:
        """The document of these fields.

        Raises:
            BadLineError: the text is missing, or a field has a wrong type.
        """
        texts = [required_text(name, fields[name]) for name in self.texts if fields.get(name) not in (None, "")]
        if not texts:
            names = [of_field(name) for name in self.texts]
            raise BadLineError(
                f"{names[0]} is required" if len(names) == 1 else f"one of {', '.join(names)} is required"
            )
        return Line(number, TEXT_SEPARATOR.join(texts), fields.get(self.id), self._payload(fields), size, origin)

    def _payload(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        if self.payload is not None:
            return {name: fields[name] for name in self.payload if fields.get(name) is not None}
        used = ({self.id, self.nested, *self.texts} - self.kept) | self.dropped
        payload = {name: value for name, value in fields.items() if name not in used and value is not None}
        nested = None if self.nested is None else fields.get(self.nested)
        if nested is None:
            return payload
        if not isinstance(nested, dict):
            raise BadLineError(f"{self.nested} must be an object, got {kind_of(nested)}")
        return {**payload, **nested}

    def draft(self, fields: Mapping[str, Any]) -> bytes | None:
        """A line of text, id and payload to correct, as JSON, of fields of which `line` makes none."""
        texts = [fields[name] for name in self.texts if fields.get(name) not in (None, "")]
        text = TEXT_SEPARATOR.join(texts) if all(isinstance(value, str) for value in texts) else texts[0]
        usable = {name: value for name, value in fields.items() if name != self.nested or isinstance(value, dict)}
        draft = {"text": text, "id": fields.get(self.id), "payload": self._payload(usable)}
        try:
            return json.dumps({name: value for name, value in draft.items() if value is not None}, default=str).encode()
        except (ValueError, RecursionError):
            return None

    def check(self, names: Collection[str], origin: Origin) -> None:
        """Check that a table has the columns that are needed.

        Raises:
            WrongFileError: a column is missing, or two have one name.
        """
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise WrongFileError(str(origin.file), f"two columns have the name {of_field(twice)}; rename one")
        needed = list(self.payload or ())
        if not set(self.texts) & set(names):
            needed[:0] = self.texts
        for name in needed:
            if name not in names:
                found = ", ".join(of_field(column) for column in list(names)[:_FIELDS_NAMED_MAX])
                more = ", …" if len(names) > _FIELDS_NAMED_MAX else ""
                reason = f"there is no column {of_field(name)}; its columns are {found}{more}: name them with "
                raise WrongFileError(str(origin.file), f"{reason}--text-field, --id-field and --payload-fields")

    def described(self) -> str:
        """The layout in words, for the terminal."""
        texts = " and ".join(self.texts)
        nested = "" if self.nested is None else f" and the fields of {self.nested}"
        return f"the fields of {self.whose}: id is {self.id}, text is {texts}, payload is the rest{nested}"


TABLE: Final = Layout("id", ("text",), nested="payload")
"""Layout of a table without further word."""

KNOWN: Final = (
    (
        frozenset({"_id", "text"}),
        Layout("_id", ("title", "text"), "BEIR", nested="metadata", kept=frozenset({"title"})),
    ),
    (
        frozenset({"page_content"}),
        Layout("id", ("page_content",), "LangChain", nested="metadata", dropped=frozenset({"type"})),
    ),
    (
        frozenset({"content", "meta"}),
        Layout(
            "id",
            ("content",),
            "Haystack",
            nested="meta",
            dropped=frozenset({"blob", "dataframe", "embedding", "score", "sparse_embedding"}),
        ),
    ),
)
"""Layouts of other programs, by fields that they always have."""


class Mapper:
    """Chooses the layout of a file.

    Args:
        options: the fields that the user names.
        say: prints a message about a file, unless it was printed of another.
    """

    def __init__(self, options: FieldOptions, say: Callable[[Origin, str], None]) -> None:
        self._say = say
        self._named: Layout | None = None
        if options:
            payload = tuple(options.payload) or None
            self._named = Layout(
                options.id or "id",
                tuple(options.texts) or ("text",),
                nested=None if payload else "payload",
                payload=payload,
            )

    def layout(self, names: Collection[str], origin: Origin) -> Layout | None:
        """The layout that the user names, or the one of another program, which is said once; None for neither.

        Args:
            names: the fields of a first line, or the columns.
            origin: the file.
        """
        if self._named is not None:
            return self._named
        for needed, layout in KNOWN:
            if needed <= set(names):
                self._say(origin, layout.described())
                return layout
        return None

    def table(self, names: Collection[str], origin: Origin) -> Layout:
        """The layout of a table with these columns.

        Raises:
            WrongFileError: a column that is needed is missing, or two have one name.
        """
        layout = self.layout(names, origin) or TABLE
        layout.check(names, origin)
        return layout


class LayoutChooser:
    """Chooses the layout of one file of objects by the first object that shows it.

    Args:
        mapper: knows the layouts.
        origin: the file.
    """

    def __init__(self, mapper: Mapper, origin: Origin) -> None:
        self._mapper = mapper
        self._origin = origin
        self._layout: Layout | None = None
        self._is_chosen = False

    def layout(self, fields: Mapping[str, Any]) -> Layout | None:
        """The layout of the file, as far as it is known from this object on; None for text, id and payload."""
        if not self._is_chosen:
            self._layout = self._mapper.layout(fields.keys(), self._origin)
            self._is_chosen = self._layout is not None or fields.get("text") is not None
        return self._layout


def required_text(name: str, text: object) -> str:
    """The text of a field.

    Raises:
        BadLineError: it is missing, or not a string of valid Unicode.
    """
    if text is None:
        raise BadLineError(f"{name} is required")
    if not isinstance(text, str):
        raise BadLineError(f"{name} must be a string, got {kind_of(text)}")
    if not is_unicode(text):
        raise BadLineError(f"{name} is not valid Unicode (a lone surrogate)")
    return text


def of_field(name: str) -> str:
    """A field name for a message."""
    return repr(name[:_FIELD_NAME_MAX])
