"""Refusing a request costs no more for being large: lengths come before items, and the first errors are the last."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from embedder import InvalidRequest, NotFound
from service.wire.errors import IDS_MAX, error_answer
from service.wire.fields import Limits
from service.wire.load_requests import COUNT_MAX, LoadRequest
from service.wire.openai import openai_error
from service.wire.openai_requests import EmbeddingsRequest, QueueJob, parse_embeddings
from service.wire.parsing import completed, parse, validated
from service.wire.qdrant_inference import INPUTS_MAX, InferenceRequest, inference_error
from service.wire.read_requests import CollectionsRequest, ReadPointsRequest
from service.wire.requests import CountRequest, DeleteRequest, EmbedRequest, ScoreRequest, SearchRequest
from service.wire.rerank import RerankJob, RerankRequest, rerank_error
from service.wire.tei import tei_error
from service.wire.tei_requests import TeiEmbedRequest, TeiRerankRequest, TeiSparseRequest

COUNT: Final = 200_000
"""Items of a hostile list, and fields of a hostile object."""

ANSWER_MAX_BYTES: Final = 4096
"""Maximum size of the answer to a hostile request."""

ITEM_MAX_BYTES: Final = 16
"""Maximum memory per item of a hostile value: a copy of its pointers has room, an error for each has not."""

LIMITS: Final = Limits(max_texts=10_000, max_length=8192)

JOBS: Final = (
    EmbedRequest,
    SearchRequest,
    CountRequest,
    DeleteRequest,
    ScoreRequest,
    ReadPointsRequest,
    CollectionsRequest,
    LoadRequest,
)

VALID: Final[list[tuple[type[BaseModel], dict[str, Any]]]] = [
    (EmbedRequest, {"texts": ["a"], "qdrant": {"collection": "c", "chunk": {}}}),
    (SearchRequest, {"operation": "search", "queries": ["a"], "params": {"quantization": {}}}),
    (SearchRequest, {"operation": "search", "like": {"positive": [1]}}),
    (CountRequest, {"operation": "count"}),
    (DeleteRequest, {"operation": "delete", "ids": [1]}),
    (ScoreRequest, {"operation": "score", "pairs": [["a", "b"]]}),
    (ReadPointsRequest, {"operation": "points", "orderBy": {"key": "k"}}),
    (CollectionsRequest, {"operation": "collections"}),
    (LoadRequest, {"operation": "load", "action": "begin", "collection": "c"}),
    (EmbeddingsRequest, {"input": "a"}),
    (QueueJob, {"openai_route": "/v1/embeddings"}),
    (RerankRequest, {"query": "a", "documents": ["b"]}),
    (RerankJob, {"openai_route": "/v1/rerank"}),
    (TeiSparseRequest, {"inputs": "a"}),
    (TeiEmbedRequest, {"inputs": "a"}),
    (TeiRerankRequest, {"query": "a", "texts": ["b"]}),
    (InferenceRequest, {"inputs": [{"data": "a", "model": "m"}]}),
]
"""A valid request of every type, into whose fields hostile values are put."""

HOSTILE: Final[dict[str, Any]] = {
    "objects": [{}] * COUNT,
    "numbers": [0.5] * COUNT,
    "kinds": ["dense"] * COUNT,
    "lists": [[]] * COUNT,
    "wide lists": [[1] * COUNT],
    "surrogates": ["\ud800"] * COUNT,
    "fields": {f"name{number}": number for number in range(COUNT)},
    "a long name": {"name" * COUNT: 1},
    "a long string": "text" * COUNT,
    "a long text in a list": ["text" * COUNT, 0.5],
    "a large number": 10**4000,
}


SLOW: Final = {"kinds", "wide lists"}
"""Values that some fields take, each of whose items is looked at."""


def paths(kind: type[BaseModel]) -> Iterator[tuple[str | int, ...]]:
    """The paths of all fields of a type, of the types inside it, and of an unknown field of each."""
    yield ("unknown",)
    for name, field in kind.model_fields.items():
        path = (field.alias or name,)
        yield path
        for inner, part in _models(field.annotation):
            yield from ((*path, *inner, *rest) for rest in paths(part))


def _models(annotation: Any) -> Iterator[tuple[tuple[int, ...], type[BaseModel]]]:
    """The models in an annotation, with the index of an item where it is a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield (), annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from _models(part)
    elif get_origin(annotation) is list:
        for inner, part in _models(get_args(annotation)[0]):
            yield (0, *inner), part


def spoiled(valid: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """A valid request with another value at a path."""
    request = copy.deepcopy(valid)
    block: Any = request
    for part, following in pairwise(path):
        if isinstance(part, str) and part not in block:
            block[part] = [] if isinstance(following, int) else {}
        block = block[part]
    block[path[-1]] = value
    return request


def refused(kind: type[BaseModel], raw: dict[str, Any]) -> InvalidRequest | None:
    """The error of a request; None for a valid one."""
    try:
        if kind is EmbeddingsRequest:
            parse_embeddings(raw, LIMITS, strict=False)
            parse_embeddings(raw, LIMITS, strict=True)
        elif kind in JOBS:
            parse(raw, LIMITS)
        else:
            validated(kind, raw, LIMITS)
    except InvalidRequest as error:
        return error
    return None


def may_be_valid(kind: type[BaseModel], path: tuple[str | int, ...], name: str) -> bool:
    """Whether a type takes a hostile value: because it takes anything there, or what is valid in itself.

    Too many inputs of OpenAI's and TEI's form are refused in their own words, before they are looked at.
    """
    if isinstance(HOSTILE[name], list) and (kind, path[0]) in {
        (EmbeddingsRequest, "input"),
        (TeiSparseRequest, "inputs"),
        (TeiEmbedRequest, "inputs"),
        (TeiRerankRequest, "texts"),
    }:
        return True
    if name == "kinds" and path[-1] in {"ids", "docIds"}:  # so many points can be deleted
        return True
    if path in {("qdrant", "ids"), ("qdrant", "payloads")} and isinstance(HOSTILE[name], list):
        return len(HOSTILE[name]) == 1  # the ingest rejects the point alone
    is_string = name == "a long string"
    field = path[-1]
    if field == "openai_input" or (field == "unknown" and kind.model_config["extra"] == "ignore"):
        return True
    if path[0] == "inputs" and len(path) > 1 and field == "unknown":
        return True
    texts = {"input", "inputs", "query", "model", "user", "data", "token", "openai_route"}
    numbers = {"top_n", "max_tokens_per_doc", "priority", "dimensions"}
    return (is_string and field in texts) or (name == "a large number" and field in numbers)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in HOSTILE]
)
def test_refusing_costs_nothing_per_item(name: str) -> None:
    """Whatever field of whatever request a large wrong value is in, it is refused briefly and without a look at all."""
    value = HOSTILE[name]
    for kind, valid in VALID:
        assert refused(kind, valid) is None
        for path in paths(kind):
            raw = spoiled(valid, path, value)
            tracemalloc.start()
            try:
                error = refused(kind, raw)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            where = f"{kind.__name__} {path}"
            assert error is not None or may_be_valid(kind, path, name), where
            assert peak < COUNT * ITEM_MAX_BYTES, where
            if error is not None:
                for form in (error_answer, openai_error, rerank_error, tei_error, inference_error):
                    assert len(json.dumps(form(error))) < ANSWER_MAX_BYTES, where


@pytest.mark.parametrize(("kind", "valid"), VALID)
def test_many_fields_at_the_top_are_refused_by_their_number(kind: type[BaseModel], valid: dict[str, Any]) -> None:
    """Also a type that ignores unknown fields takes a bounded number of them."""
    error = refused(kind, {**valid, **HOSTILE["fields"]})
    assert error is not None
    assert f"must have at most 1000 fields, got {COUNT + len(valid)}" in error.message


def test_many_fields_of_a_body_are_refused_before_they_are_copied() -> None:
    """A body over HTTP is completed to a job's input only if the number of its fields is right."""
    with pytest.raises(InvalidRequest, match=f"the body must have at most 1000 fields, got {COUNT}"):
        completed(HOSTILE["fields"], "embed", passages=True, path="/points")


@pytest.mark.parametrize(
    ("kind", "field", "item"),
    [
        (EmbedRequest, "texts", 1),
        (SearchRequest, "queries", 1),
        (ScoreRequest, "pairs", 1),
        (RerankRequest, "documents", 1),
    ],
)
def test_the_number_of_texts_comes_before_their_types(kind: type[BaseModel], field: str, item: object) -> None:
    """A list that is too long is refused for its length, whatever its items are."""
    valid = next(valid for other, valid in VALID if other is kind)
    error = refused(kind, {**valid, field: [item] * (LIMITS.max_texts + 1)})
    assert error is not None
    assert error.message == f"{field} must have at most 10000 items (MAX_TEXTS), got 10001"


def test_inputs_of_an_inference_are_limited() -> None:
    """Each input takes half a kilobyte beside its text, so their number has a limit of its own."""
    inputs = [{"data": "a", "model": "m"}] * (INPUTS_MAX + 1)
    error = refused(InferenceRequest, {"inputs": inputs})
    assert error is not None
    assert (
        error.message
        == f"inputs must have at most {INPUTS_MAX} items, got {INPUTS_MAX + 1}; send fewer points in a request"
    )


@pytest.mark.parametrize(("value", "rule"), [(COUNT_MAX + 1, "at most 9007199254740991"), (-1, "at least 0")])
def test_limits_of_integers_are_written_as_integers(value: int, rule: str) -> None:
    """The error names a large limit with all its digits, so that the value that it permits can be sent."""
    error = refused(LoadRequest, {"operation": "load", "action": "end", "collection": "notes", "read": value})
    assert error is not None
    assert error.message == f"read must be {rule}, got {value}"


def test_repeated_kinds_are_listed_in_part() -> None:
    """An error lists the first kinds of a list, and the number of the others."""
    error = refused(EmbedRequest, {"texts": ["a"], "vectors": ["dense"] * 9})
    assert error is not None
    assert error.message == ("vectors must not repeat a kind, got dense, dense, dense, dense, dense, dense and 3 more")


def test_missing_points_are_named_in_part() -> None:
    """An error that lists ids leaves out long ones."""
    error = NotFound("not found", collection="notes", ids=[1, "b" * 200, "c" * 201, *range(IDS_MAX)])
    assert error_answer(error)["details"]["ids"] == [1, "b" * 200, *range(IDS_MAX - 2)]
