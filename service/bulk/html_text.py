"""Extraction of the text of HTML."""

from __future__ import annotations

import codecs
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from service.bulk.extras import library
from service.bulk.line import BadLine, BadLineError, Line, Origin
from service.bulk.whole_file import TEXT_FILE_MAX_BYTES, document, read_whole

_CHARSET_MAX_BYTES = 1024
"""Bytes at the beginning of a file in which HTML names its encoding."""

_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w-]{1,40})""", re.IGNORECASE)

NESTING_MAX_STEPS: Final = 1_000_000_000
"""Maximum steps of the parser, which goes through all open elements at each tag: a few seconds.

A page of 30 MB whose elements are nested 30 levels deep takes 50 000 000.
"""

_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")

_NEVER_OPEN: Final = frozenset(
    {
        *("area", "base", "br", "col", "dd", "dt", "embed", "hr", "img", "input", "li", "link", "meta", "option"),
        *("p", "param", "rp", "rt", "source", "tbody", "td", "tfoot", "th", "thead", "tr", "track", "wbr"),
    }
)
"""Elements that hold nothing, or that the next of their kind closes."""

_BREAK: Final = "\x1e"
"""Character that stands for a line break until the blanks of the source are gone."""

_UNSEEN: Final = "script, style, noscript, template, head, svg, iframe, object"

_BLOCKS: Final = (
    "address, article, aside, blockquote, br, dd, details, div, dl, dt, fieldset, figcaption, figure, footer, form, "
    "h1, h2, h3, h4, h5, h6, header, hr, li, main, nav, ol, option, p, pre, section, summary, table, td, th, tr, ul"
)


def charset(head: bytes) -> str | None:
    """The encoding that HTML names in a `meta` element; None if there is none that Python knows."""
    match = _CHARSET.search(head[:_CHARSET_MAX_BYTES])
    if match is None:
        return None
    try:
        return codecs.lookup(match.group(1).decode("ascii")).name
    except LookupError:
        return None


def check_nesting(html: str) -> None:
    """Check that elements are not nested so deeply that parsing takes forever.

    Raises:
        BadLineError: they are.
    """
    levels: Counter[str] = Counter()
    depth = steps = 0
    for tag in _TAG.finditer(html):
        closing, name = tag.group(1), tag.group(2).lower()
        if name in _NEVER_OPEN:
            steps += depth
        elif not closing:
            levels[name] += 1
            depth += 1
            steps += depth
        elif levels[name]:
            levels[name] -= 1
            depth -= 1
        if steps > NESTING_MAX_STEPS:
            raise BadLineError(f"elements are nested too deeply (up to {depth} levels); save the page as text")


def text_of(html: str) -> tuple[str, str | None]:
    """The text that a reader sees, with a line for each block, and the title.

    Args:
        html: a page whose nesting is checked.
    """
    tree = library("selectolax.lexbor", "HTML").LexborHTMLParser(html)
    title = tree.css_first("title")
    named = " ".join(title.text().split()) if title is not None else ""
    for node in tree.css(_UNSEEN):
        node.decompose()
    for node in tree.css(_BLOCKS):
        node.insert_before(_BREAK)
        node.insert_after(_BREAK)
    body = tree.body
    text = "" if body is None else body.text(separator="")
    lines = (" ".join(line.split()) for line in text.split(_BREAK))
    return "\n".join(line for line in lines if line), named or None


def read_html(file: io.BufferedIOBase, origin: Origin) -> Iterator[Line | BadLine]:
    """Read the text of a file as one document; one without text is none.

    Raises:
        BadLineError: the file is too large, or not UTF-8.
        InputError: selectolax is not installed.
    """
    origin = replace(origin, unit="")
    raw = read_whole(file, TEXT_FILE_MAX_BYTES)
    try:
        html = raw.decode()
    except UnicodeDecodeError as error:
        reason = f"the file is not valid UTF-8 (byte {error.start}); name its encoding with --encoding"
        raise BadLineError(reason) from None
    check_nesting(html)
    text, title = text_of(html)
    if text:
        yield document(origin, text, {} if title is None else {"title": title})
