"""`bge-m3-qdrant ask`: questions to a collection."""

from __future__ import annotations

import json
from typing import Any

import click

from service.transports.cli.options import CONTEXT, configure_logs, examples, json_option, kinds_option


def _json(_context: click.Context, _parameter: click.Parameter, value: str | None) -> object:
    from service.validation import BYTE_ORDER_MARK

    try:
        return None if value is None else json.loads(value.removeprefix(BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"must be valid JSON (column {getattr(error, 'colno', '?')})") from None


@click.command(
    "ask",
    context_settings=CONTEXT,
    epilog=examples(
        'MODEL_ID=mini QDRANT_PATH=build/demo bge-m3-qdrant ask "copy changed parts" --collection demo --rerank',
        'MODEL_ID=mini QDRANT_PATH=build/demo bge-m3-qdrant ask --collection demo --json "copy files" "set alarms"',
        more="`bge-m3-qdrant demo` fills the collection `demo`.",
    ),
)
@click.argument("questions", nargs=-1, required=True, metavar="QUESTION...")
@click.option("--collection", metavar="NAME", help="Collection to ask.  [default: QDRANT_COLLECTION]")
@click.option("--limit", type=int, default=5, show_default=True, metavar="N", help="Maximum hits per question.")
@kinds_option("--using", default="dense and sparse where collections have them", help="Kinds of vectors to search")
@click.option("--filter", metavar="JSON", callback=_json, help="Filter in Qdrant's JSON, which every hit matches.")
@click.option("--rerank", is_flag=True, help="Order all candidates by ColBERT.")
@click.option("--explain", is_flag=True, help="Show why each hit was found.")
@click.option("--text-key", metavar="KEY", help="Payload key of the text.  [default: that of the collection]")
@json_option
@click.pass_obj
def command(build: Any, /, as_json: bool, **options: Any) -> int:  # noqa: FBT001 - click passes it by name
    """Ask a collection each QUESTION, and show the hits, best first. Quote each question.

    With --explain the tokens that matched are highlighted (sparse in yellow, ColBERT alignments underlined); ranks,
    parts of the score and alignments stand below. In tokens, ▁ marks the start of a word, and </s> the end of a text.
    --json prints the answer of the `search` operation.

    Exit status: 0, or 2 if a question could not be asked.
    """
    configure_logs()
    from service.transports.cli.ask import AskOptions, run

    return run(AskOptions(as_json=as_json, **options), build)
