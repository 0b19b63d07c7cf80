"""Scores of pairs of texts."""

from __future__ import annotations

from typing import Any, Final

from tests.contract.steps import Job, Scenario

PAIRS: Final = [
    ["copy only what changed", "rsync copies only the changed parts of files."],
    ["copy only what changed", "A relational database."],
    ["Datenbank", "A relational database."],
]
LONG: Final = "One more sentence of a text that is cut. " * 80


def _score(name: str, pairs: list[list[str]], **fields: Any) -> Job:
    return Job(name, {"operation": "score", "pairs": pairs, **fields})


SCENARIOS: Final = (
    Scenario(
        "scores",
        [
            _score("pairs", PAIRS),
            _score("weighted", PAIRS, weights=[0.5, 0.25, 0]),
            _score("integer-weights", PAIRS[:1], weights=[0, 1, 3]),
            _score("same-text-twice", [["a", "a"], ["a", "a"]]),
            _score("empty-texts", [["", "a"], ["a", ""], ["", ""]]),
            _score("short-limits", PAIRS, maxQueryLength=4, maxPassageLength=6),
            _score("long-passage", [["a sentence", LONG]], maxPassageLength=64),
        ],
        engines=("stub", "mini"),
        stores=("edge",),
    ),
    Scenario(
        "failures",
        [
            _score("a-failing-query", [["a zebra", "a"], ["a", "b"]]),
            _score("a-failing-passage", [["a", "a zebra"]]),
            _score("score-timings", PAIRS[:1], timings=True),
            Job("scores-too-large", {"operation": "score", "pairs": PAIRS}, settings={"MAX_RESPONSE_MB": "0.0001"}),
            Job("pairs-more-than-the-queue", {"operation": "score", "pairs": PAIRS}, settings={"QUEUE_TOKENS": "10"}),
            Job("too-many-pairs", {"operation": "score", "pairs": PAIRS}, settings={"MAX_TEXTS": "2"}),
        ],
        stores=("edge",),
    ),
)
