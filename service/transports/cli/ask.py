"""Ask a collection from the command line.

    python -m service.ask "how do I copy only the changed parts" --collection notes --rerank --explain

Model, store and schema are those of the environment, as for the worker. With --explain the tokens that matched are
highlighted (sparse: yellow; what ColBERT aligned: underlined), with the rank in each branch, the parts of the sparse
score and the alignment beside the text. Of the tokens, ▁ is the beginning of a word and </s> the end of a text.
--json prints the worker's answer as it is.

Exit status: 0, or 2 if the question could not be asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

import orjson
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from embedder import KINDS, ConfigurationError
from qdrant_sink import Layout, text_of
from service.operations import Operations
from service.settings import Settings
from service.shutdown import uninterrupted
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

    def show(self, query: str, hits: Sequence[Json]) -> None:
        """One question and what was found, best first."""
        self._console.print(Text(f"? {_printable(query)}", style="bold cyan"))
        if not hits:
            self._console.print("  nothing found")
        for rank, hit in enumerate(hits, start=1):
            self._hit(rank, hit)
        self._console.print()

    def _hit(self, rank: int, hit: Json) -> None:
        payload, why = hit.get("payload") or {}, hit.get("explain")
        line = Text(f"{rank:>3}  {hit['score']:<8.4g} ")
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
    total = sum(match["contribution"] for match in why["sparse"])
    table = _table(f"sparse, {total:.4f} in all", ["token"], ["query", "text", "part"])
    for match in why["sparse"]:
        weights = (f"{match[side]:.3f}" for side in ("query", "passage"))
        table.add_row(Text(_printable(match["token"]), style=SPARSE_STYLE), *weights, f"{match['contribution']:.4f}")
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.ask", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="+", metavar="question", help="each in quotes")
    parser.add_argument("--collection", help="by default QDRANT_COLLECTION")
    parser.add_argument("--limit", type=int, default=5, help="hits per question; 5")
    parser.add_argument("--using", nargs="+", choices=KINDS, default=["dense", "sparse"], help="dense sparse")
    parser.add_argument("--rerank", action="store_true", help="order all candidates by ColBERT")
    parser.add_argument("--explain", action="store_true", help="show why each hit was found")
    parser.add_argument("--text-key", default="text", help="where the payload keeps the text; text")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    return parser


def request_of(arguments: argparse.Namespace) -> Json:
    """The search that the command line describes, as the worker takes it."""
    request: Json = {
        "operation": "search",
        "queries": arguments.questions,
        "limit": arguments.limit,
        "using": arguments.using,
        "explain": arguments.explain,
        "textKey": arguments.text_key,
    }
    if arguments.collection is not None:
        request["collection"] = arguments.collection
    if arguments.rerank:
        request["rerank"] = "colbert"
    return request


def ask(operations: Operations, arguments: argparse.Namespace, layout: Layout) -> int:
    """Ask and show; returns the exit status."""
    answer = orjson.loads(asyncio.run(Codec(operations).answer(request_of(arguments))).body)
    if "error" in answer:
        print(answer["error"], file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(answer, ensure_ascii=False))
        return 0
    shown = Answer(Console(highlight=False), layout, arguments.text_key)
    for query, result in zip(arguments.questions, answer["results"], strict=True):
        shown.show(query, result["hits"])
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Ask what the command line asks; returns the exit status."""
    arguments = _parser().parse_intermixed_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        settings = Settings.from_environment()
        operations = Operations.build(settings)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        return ask(operations, arguments, settings.qdrant_collection_config.layout)
    finally:
        operations.close()


if __name__ == "__main__":
    sys.exit(uninterrupted(main))
