"""Helpers that read files as `bulk` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.bulk.field_mapping import FieldOptions
from service.bulk.line import BadLine, Line, position
from service.bulk.reading import Reader, ReadOptions
from service.bulk.sources import sources_of


class Read:
    """The lines of some files.

    Args:
        files: paths, patterns and folders.
        id_field: as `--id-field`.
        text_fields: as `--text-field`.
        payload_fields: as `--payload-fields`.
        options: other options of reading.

    Attributes:
        lines: all lines.
        said: what the user has read on the terminal.
    """

    def __init__(
        self,
        *files: str | Path,
        id_field: str | None = None,
        text_fields: Sequence[str] = (),
        payload_fields: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self.said: list[str] = []
        fields = FieldOptions(id_field, text_fields, payload_fields)
        reader = Reader(ReadOptions(fields=fields, **options), self.said.append)
        sources = sources_of(map(str, files), any_format="format" in options, say=self.said.append)
        reader.check(sources)
        self.lines = list(reader.lines(sources))

    @property
    def documents(self) -> list[tuple[Any, str, Any]]:
        """Id, text and payload of each document."""
        return [(line.id, line.text, line.payload) for line in self.lines if isinstance(line, Line)]

    @property
    def texts(self) -> list[str]:
        """The text of each document."""
        return [text for _, text, _ in self.documents]

    @property
    def rejected(self) -> list[tuple[dict[str, Any], str]]:
        """Where each line is that is not a document, without its file, and why."""
        return [
            ({name: value for name, value in position(line).items() if name != "file"}, line.message)
            for line in self.lines
            if isinstance(line, BadLine)
        ]
