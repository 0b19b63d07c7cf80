"""Load JSON Lines into a collection.

    python -m service.bulk --collection notes passages.jsonl
    zcat dump.jsonl.gz | python -m service.bulk --collection notes-v2 --alias notes --chunk-tokens 512

Each line is `{"text": "...", "id": 7, "payload": {...}}` in UTF-8; `id` and `payload` may be absent. Model, store and
schema are those of the environment, as for the worker. The HNSW graph of a new collection is built once, at the
end. The alias is set only then, and only if no line was rejected; ids that are derived belong to it, so that they
are the same in the next collection. After an interruption run the same command again; with --insert-only it embeds
only what is missing, which is right if the collection was new.

Exit status: 0 if every point is stored, 1 if some were rejected or the alias did not move, 2 if the load could not be
finished.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TextIO

from embedder import KINDS, ConfigurationError, InvalidRequest
from service.bulk.load import INTERRUPTED, BulkLoad, LoadOptions
from service.bulk.report import LoadReport
from service.operations import IngestRequest, Operations
from service.settings import Settings
from service.shutdown import end_process
from service.wire.fields import Limits
from service.wire.parsing import parse
from service.wire.requests import EmbedRequest, QdrantTarget


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, read; None is the process's own."""
    parser = argparse.ArgumentParser(
        prog="python -m service.bulk", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="JSON Lines; none or - reads the standard input")
    parser.add_argument("--collection", required=True, help="made if it is not there")
    parser.add_argument("--alias", help="set to the collection when it is complete and indexed: blue-green")
    parser.add_argument("--allow-rejected", action="store_true", help="set the alias though lines were rejected")
    parser.add_argument("--insert-only", action="store_true", help="leave points that exist, and do not embed them")
    parser.add_argument(
        "--chunk-tokens", type=int, default=0, help="cut texts into points of so many tokens; 0: do not"
    )
    parser.add_argument("--chunk-overlap", type=int, help="tokens that a chunk repeats of the last")
    parser.add_argument("--colbert-pooling", choices=["none", "mean"], default="none")
    parser.add_argument("--vectors", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--text-key", default="text", help="where the payload keeps the text")
    parser.add_argument("--defer-index", action="store_true", help="defer the graph of a collection in use, too")
    parser.add_argument("--rejects", type=Path, help="a file for all that was rejected: line, code and message")
    arguments = parser.parse_args(argv)
    if arguments.chunk_overlap is not None and not arguments.chunk_tokens:
        parser.error("--chunk-overlap needs --chunk-tokens")
    return arguments


def options_of(arguments: argparse.Namespace, limits: Limits) -> LoadOptions:
    """What the command line asks for, checked as the worker checks a request.

    Args:
        arguments: of the command line.
        limits: of the model.

    Raises:
        InvalidRequest: an option is out of its limits.
    """
    return LoadOptions(
        request=_request(arguments, limits),
        collection=arguments.collection,
        alias=arguments.alias,
        allow_rejected=arguments.allow_rejected,
        defer_index=arguments.defer_index,
    )


def _request(arguments: argparse.Namespace, limits: Limits) -> IngestRequest:
    qdrant: dict[str, Any] = {
        "collection": arguments.collection,
        "mode": "insertOnly" if arguments.insert_only else "upsert",
        "textKey": arguments.text_key,
        "colbertPooling": arguments.colbert_pooling,
    }
    if arguments.alias is not None:
        qdrant["idScope"] = arguments.alias
    if arguments.chunk_tokens:
        qdrant["chunk"] = {"maxTokens": arguments.chunk_tokens}
        if arguments.chunk_overlap is not None:
            qdrant["chunk"]["overlap"] = arguments.chunk_overlap
    raw = {"texts": [""], "isPassage": True, "vectors": arguments.vectors, "qdrant": qdrant}
    match parse(raw, limits):
        case EmbedRequest(qdrant=QdrantTarget() as target) as request:
            return request.ingest_value(target)
    raise TypeError("an embed request with a qdrant block was expected")


def _raw_lines(files: Sequence[Path]) -> Iterator[bytes]:
    for path in files or [Path("-")]:
        if str(path) == "-":
            # Its own file object: Python aborts at exit if a thread waits inside sys.stdin.
            with os.fdopen(os.dup(sys.stdin.fileno()), "rb") as file:
                yield from file
        else:
            with path.open("rb") as file:
                yield from file


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _close(rejects: TextIO) -> None:
    with suppress(OSError):  # each line was flushed when it was written, and failed then
        rejects.close()


def _interrupted_early(_number: int, _frame: object) -> None:
    _say(INTERRUPTED)
    end_process(2)


def main(argv: Sequence[str] | None = None, build: Callable[[Settings], Operations] = Operations.build) -> int:
    """Run the load that the command line describes; returns the exit status.

    Args:
        argv: the arguments; None takes those of the process.
        build: loads the model, and is called once the command line is known to be sound.
    """
    arguments = arguments_of(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    missing = [path for path in arguments.files if str(path) != "-" and (path.is_dir() or not path.exists())]
    if missing:
        _say(f"no such file: {missing[0]}")
        return 2
    try:
        rejects = arguments.rejects.open("w", encoding="utf-8") if arguments.rejects else None
    except OSError as error:
        _say(f"--rejects cannot be written ({error.strerror}): {arguments.rejects}")
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted_early)
    try:
        core = build(Settings.from_environment())
    except ConfigurationError as error:
        _say(str(error))
        return 2
    with ExitStack() as stack:
        stack.callback(core.close)
        if rejects is not None:
            stack.callback(_close, rejects)
        return load(core, arguments, rejects)


def load(core: Operations, arguments: argparse.Namespace, rejects: TextIO | None) -> int:
    """Run a load over loaded operations, and print its summary; returns the exit status."""
    limits = Limits(max_texts=core.settings.max_texts, max_length=core.max_length)
    try:
        options = options_of(arguments, limits)
    except InvalidRequest as error:
        report = LoadReport(failure=error.message, alias=None if arguments.alias is None else False)
        print(json.dumps(report.summary(arguments.collection)))
        return report.status
    bulk = BulkLoad(core, options, rejects, _say)

    def stop(number: int, _frame: object) -> None:
        bulk.interrupt()
        signal.signal(number, signal.SIG_DFL)  # the second signal ends the process

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    report = bulk.run(_raw_lines(arguments.files))
    print(json.dumps(report.summary(arguments.collection)))
    return report.status


if __name__ == "__main__":
    sys.exit(main())
