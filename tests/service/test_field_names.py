"""Names of fields: what is needed comes first, an unknown field names the one that was meant, and null is absence."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from embedder import InvalidRequest
from service.wire.fields import QuantizationParams, SearchParams
from service.wire.parsing import completed, parse
from service.wire.requests import (
    Chunking,
    CountRequest,
    DeleteRequest,
    EmbedRequest,
    Like,
    QdrantTarget,
    ScoreRequest,
    SearchRequest,
)
from tests.service.test_requests import EMBED, LIMITS, SEARCH, stored


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"text": ["a"]}, "texts is required; unknown field 'text': did you mean 'texts'?"),
        (
            {"operation": "search", "query": "x"},
            "queries or like must be given; unknown field 'query': did you mean 'queries'?",
        ),
        (
            {"operation": "search", "q": "x", "limit": "10"},
            "queries or like must be given; unknown field 'q'; limit must be an integer, got a string",
        ),
        (
            {"operation": "delete", "collection": 5},
            "ids or docIds or filter must be given; collection must be a string, got an integer",
        ),
        (
            {"operation": "search", "query": "x", "filter": {"must": [{"has_id": ["", 1]}]}},
            (
                "queries or like must be given; unknown field 'query': did you mean 'queries'?; "
                "filter.must[0].has_id[0]: must be an unsigned 64-bit integer or a UUID, got an empty string"
            ),
        ),
        (
            {"operation": "search", "query": "x", "queries": []},
            "unknown field 'query'; queries must have at least 1 item, got 0",
        ),
        (
            {"operation": "delete", "id": 1},
            "ids or docIds or filter must be given; unknown field 'id': did you mean 'ids'?",
        ),
        (
            {"operation": "search", "like": {"positiv": [1]}, "z": 0},
            "like.positive is required; unknown field 'like.positiv': did you mean 'like.positive'?; unknown field 'z'",
        ),
        (
            {"texts": [1], "qdrant": {"id": ["a"]}},
            "unknown field 'qdrant.id': did you mean 'qdrant.ids'?; texts[0] must be a string, got an integer",
        ),
    ],
)
def test_what_is_needed_is_named_first(raw: dict[str, Any], message: str) -> None:
    """The missing field comes first, then the unknown one that probably stands for it, then all else."""
    with pytest.raises(InvalidRequest) as refusal:
        parse(raw, LIMITS)
    assert refusal.value.message == message
    assert [field.message for field in refusal.value.fields] == message.split("; ")


def test_rules_between_fields_are_named_beside_an_unknown_field() -> None:
    """An unknown field hides no other error of the request."""
    with pytest.raises(InvalidRequest, match=r"^unknown field 'typo'; qdrant.ids must have one item per text \(2\)"):
        parse({**stored(ids=[1]), "typo": 1}, LIMITS)


@pytest.mark.parametrize(
    ("raw", "meant"),
    [
        ({**EMBED, "is_passage": True}, "isPassage"),
        ({**EMBED, "MaxLength": 5}, "maxLength"),
        ({**EMBED, "collection": "notes"}, "qdrant.collection"),
        ({**EMBED, "id": [1]}, "qdrant.ids"),
        (stored(vectors=["dense"]), "vectors"),
        (stored(text_key="body"), "qdrant.textKey"),
        (stored(chunk={"maxToken": 64}), "qdrant.chunk.maxTokens"),
        ({**SEARCH, "hnswEf": 64}, "params.hnswEf"),
        ({**SEARCH, "withVector": True}, "withVectors"),
        ({**SEARCH, "params": {"limit": 5}}, "limit"),
        ({**SEARCH, "query": "a"}, None),
        ({**SEARCH, "text": "a"}, None),
        ({**SEARCH, "top_k": 5}, None),
        ({**SEARCH, "l" * 10_000: 5}, None),
    ],
)
def test_the_field_that_was_meant_is_named(raw: dict[str, Any], meant: str | None) -> None:
    """An unknown field that is like one that is not given, or that stands in the wrong block, comes with its path."""
    with pytest.raises(InvalidRequest) as refusal:
        parse(raw, LIMITS)
    _, _, hint = refusal.value.message.partition(": did you mean ")
    assert hint == ("" if meant is None else f"'{meant}'?")


def test_the_input_of_an_input_is_named() -> None:
    """A job whose input stands in another `input` is told where its fields belong."""
    with pytest.raises(InvalidRequest, match="unknown field 'input': its fields must stand one level higher"):
        parse({"input": EMBED}, LIMITS)


NULLS: dict[str, type[BaseModel]] = {
    "embed": EmbedRequest, "search": SearchRequest, "count": CountRequest, "delete": DeleteRequest,
    "score": ScoreRequest,
}  # fmt: skip
MINIMAL: dict[str, dict[str, Any]] = {
    "embed": EMBED, "search": {"queries": ["one"]}, "count": {}, "delete": {"ids": [1]},
    "score": {"pairs": [["one", "two"]]},
}  # fmt: skip


@pytest.mark.parametrize("operation", MINIMAL)
def test_null_is_absence(operation: str) -> None:
    """Every optional field may be null, as may an unknown one; the request is the one without these fields."""
    given = MINIMAL[operation]
    names = [str(field.alias) for field in NULLS[operation].model_fields.values()]
    nulls = dict.fromkeys([*names, "unknown"])
    assert parse({**nulls, **given, "operation": operation}, LIMITS) == parse({**given, "operation": operation}, LIMITS)
    assert parse({**EMBED, "operation": None}, LIMITS) == parse(EMBED, LIMITS)


@pytest.mark.parametrize("block", [QdrantTarget, Chunking, Like, SearchParams, QuantizationParams])
def test_null_is_absence_in_blocks(block: type[BaseModel]) -> None:
    """The fields of a block may be null, too."""
    given = {"positive": [1]} if block is Like else {}
    nulls = dict.fromkeys([*(str(field.alias) for field in block.model_fields.values()), "unknown"])
    assert block.model_validate({**nulls, **given}, context=LIMITS) == block.model_validate(given, context=LIMITS)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({**EMBED, "qdrnt": {}}, "qdrant is required on /points; unknown field 'qdrnt': did you mean 'qdrant'?"),
        ({**EMBED, "qdrant": None}, "qdrant is required on /points"),
        (
            {"input": EMBED},
            "unknown field 'input': over HTTP the fields of a request stand at the top of the body, without it",
        ),
        (
            {"input": {"input": EMBED}, "id": "x"},
            "unknown field 'input': over HTTP the fields of a request stand at the top of the body, without it",
        ),
        ({"operation": "search"}, "operation must be 'embed' or left out on /points, got 'search'"),
    ],
)
def test_a_body_with_the_wrong_fields_is_refused(raw: dict[str, Any], message: str) -> None:
    """Over HTTP a missing block is named before a misspelt one, and the queue's `input` is named with the way out."""
    with pytest.raises(InvalidRequest) as refusal:
        completed(raw, "embed", passages=True, path="/points")
    assert refusal.value.message == message


def test_null_is_absence_over_http() -> None:
    """A field that is null has the default of its path: texts of /points are passages."""
    raw = {**stored(), "isPassage": None, "operation": None, "unknown": None}
    assert completed(raw, "embed", passages=True, path="/points") == {
        **stored(),
        "isPassage": True,
        "operation": "embed",
    }
