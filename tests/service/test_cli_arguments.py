"""Errors of a command name its arguments, whatever field of a request is at fault."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

import click
import pytest
from pydantic import BaseModel
from pydantic.alias_generators import to_camel

from embedder import InvalidRequest
from service.operations import CompletionRequest, ReindexRequest
from service.transports.cli.arguments import ARGUMENTS
from service.transports.cli.main import cli
from service.validation import invalid_field
from service.wire.load_requests import LoadRequest
from service.wire.requests import Chunking, EmbedRequest, QdrantTarget, SearchRequest

REQUESTS: Final[Mapping[str, Sequence[type]]] = {
    "ask": (SearchRequest,),
    "bulk": (EmbedRequest, LoadRequest),
    "complete": (CompletionRequest,),
    "embed": (EmbedRequest,),
    "reindex": (ReindexRequest,),
}
"""The requests that a command makes."""

_CONSTANT: Final = {
    "operation",
    "texts",
    "isPassage",
    "batchSize",
    "compareKept",
    "maxLength",
    "encoding",
    "dtype",
    "includeText",
}
_CONSTANT_OF_EMBED: Final = {*_CONSTANT, "returnVectors", "qdrant", "ids", "payloads"}

NOT_BY_AN_ARGUMENT: Final[Mapping[str, set[str]]] = {
    "ask": {
        "operation", "like", "offset", "fusion", "rrfK", "weights", "prefetch", "scoreThreshold", "params",
        "withPayload", "withVectors", "groupBy", "groupSize",
    },
    "bulk": {*_CONSTANT_OF_EMBED, "action", "content", "read", "lines", "points", "rejected", "complete"},
    "complete": set(),
    "embed": {*_CONSTANT_OF_EMBED, "collection", "idScope", "mode", "textKey"},
    "reindex": set(),
}  # fmt: skip
"""Fields that no argument sets: they are constant, counted, of a line, or left out."""

OF_THE_COMMAND: Final[Mapping[str, set[str]]] = {
    "ask": {"as_json"},
    "bulk": {
        "files", "allow_rejected", "replace", "allow_differing", "endpoint", "key", "jobs", "finish", "allow_empty",
        "drop_load", "vectors_model", "dry_run", "tokens_per_s", "rejects", "rejected_lines", "as_json",
    },
    "complete": {"as_json"},
    "embed": {
        "files", "out", "dtype", "part_mb", "rejects", "rejected_lines", "format", "encoding", "id_field",
        "text_fields", "payload_fields", "columns", "as_json",
    },
    "reindex": {"config", "from_path", "back", "drop_old", "as_json"},
}  # fmt: skip
"""Parameters of a command that are no field of a request."""


def paths(request: type, prefix: str = "") -> Iterator[str]:
    """The paths of the fields of a request, of which those of the `qdrant` block have no prefix."""
    if not issubclass(request, BaseModel):
        yield from (to_camel(field.name) for field in fields(request))  # type: ignore[arg-type]
        return
    for name in request.model_fields:
        yield f"{prefix}{to_camel(name)}"
    if request is EmbedRequest:
        yield from paths(QdrantTarget)
    if request is QdrantTarget:
        yield from paths(Chunking, "chunk.")


def parameters(command: str) -> dict[str, click.Parameter]:
    """The parameters of a command by name."""
    with cli.make_context("bge-m3-qdrant", [command]) as context:
        found = cli.get_command(context, command)
        assert found is not None
        return {str(parameter.name): parameter for parameter in found.params}


def argument_of(parameter: click.Parameter) -> str:
    """The name by which a user knows a parameter."""
    if isinstance(parameter, click.Argument):
        return str(parameter.metavar or parameter.human_readable_name).strip("[].").upper()
    return max(parameter.opts, key=len)


@pytest.mark.parametrize("command", sorted(ARGUMENTS))
def test_every_field_of_a_request_has_an_argument(command: str) -> None:
    """A field that is added to a request is named by its argument, or is known to have none."""
    all_fields = {path for request in REQUESTS[command] for path in paths(request)}
    named = set(ARGUMENTS[command].fields)
    assert all_fields - named == NOT_BY_AN_ARGUMENT[command]
    assert not named & NOT_BY_AN_ARGUMENT[command]


@pytest.mark.parametrize("command", sorted(ARGUMENTS))
def test_every_argument_of_a_command_is_that_of_a_field_or_its_own(command: str) -> None:
    """An argument that is added to a command is known to the errors, or is known to be no field."""
    arguments = {name: argument_of(parameter) for name, parameter in parameters(command).items()}
    of_fields = {argument.replace("{}", "").strip() for argument in ARGUMENTS[command].fields.values()}
    assert {name for name, argument in arguments.items() if argument not in of_fields} == OF_THE_COMMAND[command]
    assert of_fields <= set(arguments.values())


@pytest.mark.parametrize("command", sorted(ARGUMENTS))
def test_every_error_about_a_field_begins_with_the_argument(command: str) -> None:
    """However the error is made, and wherever the field is in the request."""
    arguments = ARGUMENTS[command]
    for field, argument in arguments.fields.items():
        shown = argument.format(1)
        for path in (field, f"qdrant.{field}", f"{field}[0]"):
            expected = argument.replace(" {}", "") if not path.endswith("]") else shown
            assert arguments.message(invalid_field(path, "must be 1, got 2").message) == f"{expected} must be 1, got 2"
            assert arguments.message(InvalidRequest("must be 1").at(path).message) == f"{expected} must be 1"


@pytest.mark.parametrize(
    ("command", "message", "expected"),
    [
        (
            "bulk",
            "qdrant.chunk.overlap must be at most half of maxTokens (8), got 9",
            "--chunk-overlap must be at most half of --chunk-tokens (8), got 9",
        ),
        (
            "bulk",
            "collection 'n' has several; give textKey in the request, or set textKey or layout in QDRANT_…",
            "collection 'n' has several; give --text-key, or set textKey or layout in QDRANT_…",
        ),
        ("bulk", "insertOnly needs Qdrant 1.17", "--insert-only needs Qdrant 1.17"),
        ("bulk", "collection 'textKey' does not exist", "collection 'textKey' does not exist"),
        ("ask", "filter.must[0].key must be a string", "--filter.must[0].key must be a string"),
        ("ask", "queries[2] must have at least 1 character", "QUESTION 3 must have at least 1 character"),
        ("reindex", "into must not be an alias, got 'x'", "TO must not be an alias, got 'x'"),
    ],
)
def test_sentences_and_names_of_users_stay_as_they_are(command: str, message: str, expected: str) -> None:
    """Only fields are replaced, also after the beginning of a message."""
    assert ARGUMENTS[command].message(message) == expected


def test_the_error_keeps_its_type_and_what_else_it_says() -> None:
    """A program that reads the report gets the same code."""
    error: Any = ARGUMENTS["reindex"].error(invalid_field("into", "must be new"))
    assert (type(error), error.message) == (InvalidRequest, "TO must be new")
