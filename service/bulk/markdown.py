"""Cutting of Markdown along its headings."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

from service.bulk.extras import library
from service.bulk.line import BadLine, Line, Origin
from service.bulk.whole_file import document, read_text

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n.*?^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
"""Fields between two lines of dashes, which many programs write before the text."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a text from a heading to the next.

    Attributes:
        line: number of its first line, from 1.
        headings: its heading and those above it, from the top; empty before the first one.
        text: the part as it was written, with its heading.
    """

    line: int
    headings: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class _Heading:
    first: int
    end: int
    level: int
    title: str


def sections(text: str) -> Iterator[Section]:
    """Cut a text along its headings. One that stands only above deeper headings is no section of its own."""
    front = _FRONT_MATTER.match(text)
    # Blank lines in the place of the fields keep the numbers of the lines.
    text = "\n" * front.group().count("\n") + text[front.end() :] if front else text
    lines = text.split("\n")
    headings = _headings(text)
    path: list[_Heading] = []
    starts = [_Heading(0, 0, 0, ""), *headings]
    for index, heading in enumerate(starts):
        following = starts[index + 1] if index + 1 < len(starts) else None
        while path and path[-1].level >= heading.level:
            path.pop()
        if heading.level:
            path.append(heading)
        end = len(lines) if following is None else following.first
        body = "\n".join(lines[heading.end : end])
        is_above = following is not None and following.level > heading.level
        if body.strip() or (heading.level and not is_above):
            whole = "\n".join(lines[heading.first : end]).strip()
            yield Section(heading.first + 1, tuple(above.title for above in path), whole)


def _headings(text: str) -> list[_Heading]:
    # Blocks alone: what is inside a line is kept as it was written.
    tokens = library("markdown_it", "Markdown").MarkdownIt("commonmark").disable("inline").parse(text)
    return [
        _Heading(token.map[0], token.map[1], int(token.tag[1:]), " ".join(tokens[index + 1].content.split()))
        for index, token in enumerate(tokens)
        if token.type == "heading_open" and token.level == 0 and token.map
    ]


def read_markdown(file: io.BufferedIOBase, origin: Origin) -> Iterator[Line | BadLine]:
    """Read the sections of a file.

    Raises:
        BadLineError: the file is too large, or not UTF-8.
        InputError: markdown-it-py is not installed.
    """
    for number, section in enumerate(sections(read_text(file)), start=1):
        payload = {"headings": list(section.headings), "line": section.line}
        yield document(origin, section.text, payload, number=number)
