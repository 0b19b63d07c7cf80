"""The comparison of answers reports every difference that a client could notice, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.contract.compare import EXACT, MINI, STUB, Tolerance, differences
from tests.contract.masks import masked

ANSWER: dict[str, Any] = {
    "results": [
        {
            "hits": [
                {"id": 1, "score": 0.9, "payload": {"text": "one"}},
                {"id": 2, "score": 0.5, "payload": {"text": "two"}},
                {"id": 3, "score": 0.5, "payload": {"text": "three"}},
                {"id": 4, "score": 0.1, "payload": {"text": "four"}},
            ]
        }
    ],
    "usage": {"tokens": 7},
    "model": "mini",
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the answer with another value at a path such as `results.0.hits`."""
    answer = copy.deepcopy(ANSWER)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    target: Any = answer
    for key in parents:
        target = target[key]
    target[last] = value
    return answer


def test_equal_answers_do_not_differ() -> None:
    """Equal answers have no differences."""
    assert differences(ANSWER, copy.deepcopy(ANSWER), "case") == []


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("results.0.hits.0.score", 0.25, "case.results[0].hits[0].score: 0.9 -> 0.25"),
        ("usage.tokens", 8, "case.usage.tokens: 7 -> 8"),
        ("usage.tokens", 7.0, "case.usage.tokens: 7 -> 7.0"),
        ("usage.tokens", True, "case.usage.tokens: 7 -> True"),
        ("usage", None, "case.usage: {'tokens': 7} -> None"),
        ("model", "maxi", "case.model: 'mini' -> 'maxi'"),
        ("results.0.hits.1.payload", {}, "case.results[0].hits[1].payload.text: 'two' -> missing"),
        ("results.0.hits.1.payload.more", 1, "case.results[0].hits[1].payload.more: missing -> 1"),
        ("results.0.hits", ANSWER["results"][0]["hits"][:3], "case.results[0].hits: 4 items -> 3 items"),
        ("results", [*ANSWER["results"], 1], "case.results: 1 items -> 2 items"),
    ],
)
def test_a_change_is_found_by_its_path(path: str, value: Any, line: str) -> None:
    """A changed number, type, key or list length is one line each, with its path."""
    assert differences(ANSWER, changed(path, value), "case") == [line]


def test_hits_of_equal_score_may_change_places() -> None:
    """Hits of equal score may change places, as Qdrant does not order them; others may not."""
    first, second, third, fourth = ANSWER["results"][0]["hits"]
    assert differences(ANSWER, changed("results.0.hits", [first, third, second, fourth]), "case") == []
    assert differences(ANSWER, changed("results.0.hits", [second, first, third, fourth]), "case")
    assert differences(ANSWER, changed("results.0.hits", [first, second, fourth, third]), "case")
    assert differences(ANSWER, changed("results.0.hits", [first, second, second, fourth]), "case")


def test_hits_of_nearly_equal_score_may_change_places_within_the_tolerance() -> None:
    """The last decimals of a model's scores do not determine the order."""
    first, second = {"id": 1, "score": 0.50001}, {"id": 2, "score": 0.5}
    expected, actual = {"hits": [first, second]}, {"hits": [second, first]}
    assert differences(expected, actual, "case", MINI) == []
    assert len(differences(expected, actual, "case", EXACT)) == 4


def test_numbers_are_compared_within_the_tolerance() -> None:
    """The tolerance is relative above 1 and never applies to integers."""
    tolerance = Tolerance(numbers=1e-3)
    assert differences([0.5, 900.0], [0.5009, 900.8], "case", tolerance) == []
    assert len(differences([0.5, 900.0, 4], [0.5011, 901.0, 5], "case", tolerance)) == 3


def test_only_scores_have_a_tolerance_on_the_stub() -> None:
    """On the stub, vectors and contributions are compared exactly."""
    expected = {"score": 0.5, "fusion": {"dense": 0.25}, "dense": [0.125]}
    near = {"score": 0.5000001, "fusion": {"dense": 0.2500001}, "dense": [0.1250001]}
    assert differences(expected, near, "case", STUB) == ["case.dense[0]: 0.125 -> 0.1250001"]


def test_texts_and_clocks_are_masked_and_payloads_are_not() -> None:
    """The texts of messages are recorded by path, beside the answer."""
    answer = {
        "error": "no",
        "details": {"errors": [{"field": "a", "message": "a is wrong"}]},
        "timings": {"total": 0.1},
        "payload": {"error": "kept", "seconds": 1},
    }
    shown, texts = masked(answer)
    assert shown == {
        "error": "<text>",
        "details": {"errors": [{"field": "a", "message": "<text>"}]},
        "timings": {"total": "<seconds>"},
        "payload": {"error": "kept", "seconds": 1},
    }
    assert texts == {"error": "no", "details.errors[0].message": "a is wrong"}
    assert masked({"error": ""}) == ({"error": ""}, {})
