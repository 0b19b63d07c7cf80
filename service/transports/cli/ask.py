"""Questions to a collection, and their hits as a person reads them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import orjson
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qdrant_sink import Layout, text_of
from service.operations import Operations
from service.operations.store_access import check_contact
from service.settings import Settings
from service.transports.cli.arguments import ARGUMENTS
from service.transports.cli.options import Failure
from service.wire import Codec

Json = dict[str, Any]

EXCERPT_MAX_CHARACTERS = 480
"""Characters of a text that are shown, around its best match."""

BEFORE_MATCH_MAX_CHARACTERS = 120
"""Characters of an excerpt before its best match."""

INDENT_COLUMNS = 5
"""Indentation of what belongs to a hit."""

GAP_COLUMNS = 4
"""Space between two tables."""

SPARSE_STYLE = "bold yellow"
COLBERT_STYLE = "underline"


class Answer:
    """Shows hits to a person.

    Args:
        console: where.
        layout: of payloads.
        text_key: where a plain payload keeps the text.
    """

    def __init__(self, console: Console, layout: Layout, text_key: str) -> None:
        self._console = console
        self._layout = layout
        self._text_key = text_key

    def show(self, query: str, hits: Sequence[Json], unranked: int = 0) -> None:
        """One question and its hits, best first, with the number of candidates that have no ColBERT rows."""
        self._console.print(Text(f"? {_printable(query)}", style="bold cyan"))
        if not hits:
            self._console.print("  nothing found")
        for rank, hit in enumerate(hits, start=1):
            self._hit(rank, hit)
        if unranked:
            self._console.print(f"  without ColBERT rows, and so not reranked: {unranked} of the candidates")
        self._console.print()

    def _hit(self, rank: int, hit: Json) -> None:
        payload, why = hit.get("payload") or {}, hit.get("explain")
        score = "-" if hit["score"] is None else f"{hit['score']:.4g}"
        line = Text(f"{rank:>3}  {score:<8} ")
        line.append(_title(payload, hit["id"]), style="bold")
        self._console.print(line)
        if why is not None:
            places = "  ".join(_placed(kind, place) for kind, place in why["branches"].items())
            self._indented(Text(places, style="dim"))
        text = text_of(self._layout, payload, self._text_key)
        self._indented(Text("(no text in the payload)", style="dim") if text is None else excerpt(text, why))
        if why is not None:
            self._side_by_side([table for table in (_fusion(why), _sparse(why), _colbert(why)) if table is not None])

    def _indented(self, what: RenderableType) -> None:
        self._console.print(Padding(what, (0, 0, 0, INDENT_COLUMNS)))

    def _side_by_side(self, tables: Sequence[Table]) -> None:
        """As many beside each other as the console is wide enough for, the rest below: no figure is cut."""
        row: list[Table] = []
        free = self._console.width - INDENT_COLUMNS
        for table in tables:
            width = self._console.measure(table).maximum
            if row and width + GAP_COLUMNS > free:
                self._row(row)
                row, free = [], self._console.width - INDENT_COLUMNS
            free -= width + (GAP_COLUMNS if row else 0)
            row.append(table)
        if row:
            self._row(row)

    def _row(self, tables: Sequence[Table]) -> None:
        grid = Table.grid(padding=(0, GAP_COLUMNS))
        grid.add_row(*tables)
        self._indented(grid)


def excerpt(text: str, why: Json | None) -> Text:
    """The text, or the part of it around its best match, with what matched highlighted."""
    lexical = [span for match in (why or {}).get("sparse") or [] for span in match["spans"] or []]
    alignment = sorted((why or {}).get("colbert") or [], key=lambda match: -match["score"])
    aligned = [match["span"] for match in alignment if match["span"] is not None]
    shown = Text(_printable(text))
    for spans, style in ((lexical, SPARSE_STYLE), (aligned, COLBERT_STYLE)):
        for start, end in spans:
            shown.stylize(style, start, end)
    if len(text) <= EXCERPT_MAX_CHARACTERS:
        return shown
    best = (lexical or aligned or [[0, 0]])[0][0]
    start = max(0, min(best - BEFORE_MATCH_MAX_CHARACTERS, len(text) - EXCERPT_MAX_CHARACTERS))
    part = shown[start : start + EXCERPT_MAX_CHARACTERS]
    return Text("…" if start else "") + part + Text("…" if start + EXCERPT_MAX_CHARACTERS < len(text) else "")


def _title(payload: Json, point_id: int | str) -> str:
    for key in ("title", "id"):
        if isinstance(payload.get(key), str | int):
            return _printable(str(payload[key]))
    return str(point_id)


def _placed(kind: str, place: Json | None) -> str:
    return f"{kind} -" if place is None else f"{kind} #{place['rank']} ({place['score']:.4g})"


def _table(title: str, words: Sequence[str], figures: Sequence[str]) -> Table:
    table = Table(
        box=None,
        title=title,
        title_justify="left",
        title_style="dim",
        header_style="dim",
        padding=(0, 1),
        min_width=len(title),
    )
    for column in words:
        table.add_column(column)
    for column in figures:
        table.add_column(column, justify="right")
    return table


def _fusion(why: Json) -> Table | None:
    if why["fusion"] is None:
        return None
    table = _table("fused score", ["branch"], ["part"])
    for kind, part in why["fusion"].items():
        table.add_row(kind, f"{part:.5f}")
    return table


def _sparse(why: Json) -> Table | None:
    if not why["sparse"]:
        return None
    parts = [match["contribution"] for match in why["sparse"]]
    if None in parts:
        table = _table("sparse, weighted by IDF", ["token"], ["query", "text"])
    else:
        table = _table(f"sparse, {sum(parts):.4f} in all", ["token"], ["query", "text", "part"])
    for match, part in zip(why["sparse"], parts, strict=True):
        figures = [f"{match[side]:.3f}" for side in ("query", "passage")] + ([] if part is None else [f"{part:.4f}"])
        table.add_row(Text(_printable(match["token"]), style=SPARSE_STYLE), *figures)
    return table


def _colbert(why: Json) -> Table | None:
    if not why["colbert"]:
        return None
    total = sum(match["score"] for match in why["colbert"])
    table = _table(f"ColBERT, {total:.4f} in all", ["query", "text"], ["score"])
    for match in why["colbert"]:
        token = f"row {match['row']}" if match["token"] is None else _printable(match["token"])
        table.add_row(_printable(match["query"]), Text(token, style=COLBERT_STYLE), f"{match['score']:.3f}")
    return table


def _printable(text: str) -> str:
    """As long as the text, without what would move the cursor or change the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskOptions:
    """What to ask.

    Attributes:
        questions: each is a query.
        collection: by name; None for `QDRANT_COLLECTION`.
        limit: maximum number of hits per question.
        using: kinds of vectors to search; empty for dense and sparse where collections have them.
        filter: filter in Qdrant's JSON; None for no filter.
        rerank: whether ColBERT orders all candidates.
        explain: whether each hit says why it was found.
        text_key: where a plain payload keeps the text; None for that of the collection.
        as_json: whether the answer is printed as JSON.
    """

    questions: Sequence[str]
    collection: str | None = None
    limit: int = 5
    using: Sequence[str] = ()
    filter: object = None
    rerank: bool = False
    explain: bool = False
    text_key: str | None = None
    as_json: bool = False


def request_of(options: AskOptions) -> Json:
    """The search that the options describe, as the worker takes it."""
    request: Json = {
        "operation": "search",
        "queries": list(options.questions),
        "limit": options.limit,
        "explain": options.explain,
    }
    if options.text_key is not None:
        request["textKey"] = options.text_key
    if options.using:
        request["using"] = list(options.using)
    if options.collection is not None:
        request["collection"] = options.collection
    if options.filter is not None:
        request["filter"] = options.filter
    if options.rerank:
        request["rerank"] = "colbert"
    return request


def ask(operations: Operations, options: AskOptions) -> None:
    """Ask, and print the hits.

    Raises:
        Failure: a question could not be asked.
    """
    answer = orjson.loads(asyncio.run(Codec(operations).answer(request_of(options))).body)
    if "error" in answer:
        raise Failure(ARGUMENTS["ask"].message(answer["error"]))
    if options.as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    config, taken = operations.settings.qdrant_collection_config, answer.get("recognised", {})
    layout = taken.get("layout", config.layout)
    text_key = options.text_key or taken.get("textKey", config.text_key)
    shown = Answer(Console(highlight=False), layout, text_key)
    for warning in answer.get("warnings", ()):
        click.echo(f"warning: {warning['message']}", err=True)
    for query, result in zip(options.questions, answer["results"], strict=True):
        shown.show(query, result["hits"], result.get("unranked", 0))


def run(options: AskOptions, build: Callable[[Settings], Operations] | None = None) -> int:
    """Load the model of the environment and ask; returns the exit status.

    Args:
        options: what to ask.
        build: loads the model; None for `Operations.build`.

    Raises:
        ConfigurationError: the settings are invalid.
        Failure: a question could not be asked.
    """
    settings = Settings.from_environment()
    check_contact(settings)
    operations = (build or Operations.build)(settings)
    try:
        ask(operations, options)
    finally:
        operations.close()
    return 0
