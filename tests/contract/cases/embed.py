"""Embedding of texts: every option of `embed`, in every form of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tests.contract.steps import Engine, Job, Scenario

TEXTS: Final = ["What is BGE M3?", "Ein zweiter Satz, mit Umlauten: äöü."]
MANY: Final = [f"Text number {n} of several." for n in range(5)]
LONG: Final = "One more sentence of a text that is cut. " * 80
BOTH: Final[Sequence[Engine]] = ("stub", "mini")


def _quiet(name: str, texts: Sequence[str], **fields: Any) -> Job:
    """Return a job whose answer has no vectors."""
    return Job(name, {"texts": list(texts), "returnVectors": False, **fields})


SCENARIOS: Final = (
    Scenario(
        "vectors",
        [
            Job("original-request", {"texts": TEXTS[:1], "isPassage": False, "batchSize": 0}),
            Job("texts-alone", {"texts": TEXTS}),
            Job(
                "nulls",
                {
                    "texts": TEXTS[:1],
                    **dict.fromkeys(["operation", "isPassage", "vectors", "maxLength", "timings", "qdrant", "unknown"]),
                },
            ),
            Job("passages", {"operation": "embed", "texts": TEXTS, "isPassage": True}),
            Job("empty-and-blank", {"texts": ["", " \n\t"]}),
            Job("dense", {"texts": TEXTS, "vectors": ["dense"]}),
            Job("sparse", {"texts": TEXTS, "vectors": ["sparse"]}),
            Job("colbert", {"texts": TEXTS[:1], "vectors": ["colbert"]}),
            Job("two-kinds", {"texts": TEXTS[:1], "vectors": ["sparse", "dense"]}),
            Job("repeated-text", {"texts": ["same", "same"], "vectors": ["dense"]}),
            Job("batch-of-two", {"texts": MANY, "batchSize": 2, "vectors": ["sparse"]}),
            Job("cut-to-five-tokens", {"texts": [*TEXTS, "a"], "maxLength": 5, "vectors": ["sparse"]}),
            Job("largest-batch", {"texts": MANY[:1], "batchSize": 1_000_000, "maxLength": 512, "vectors": ["sparse"]}),
            Job("cut-to-three-tokens", {"texts": TEXTS[:1], "maxLength": 3, "isPassage": True}),
            Job("without-texts", {"texts": TEXTS, "includeText": False, "vectors": ["sparse"]}),
            Job("list-of-float32", {"texts": TEXTS[:1], "encoding": "list", "dtype": "float32", "vectors": ["dense"]}),
            Job("odd-unicode", {"texts": ["🙂 e\u0301 \u202e", "\x00", "日本語のテキスト"], "vectors": ["sparse"]}),
        ],
        engines=BOTH,
        stores=("edge",),
    ),
    Scenario(
        "base64",
        [
            Job("base64", {"texts": TEXTS, "encoding": "base64"}),
            Job("base64-float16", {"texts": TEXTS[:1], "encoding": "base64", "dtype": "float16"}),
            Job("base64-dense", {"texts": [""], "encoding": "base64", "vectors": ["dense", "sparse"]}),
        ],
        stores=("edge",),
    ),
    Scenario(
        "without vectors",
        [
            _quiet("no-vectors", TEXTS),
            Job("vectors-on-request", {"texts": ["a"], "returnVectors": True, "vectors": ["sparse"]}),
            _quiet("no-vectors-and-no-texts", TEXTS, includeText=False),
            _quiet("long-query", [LONG]),
            _quiet("long-passage", [LONG], isPassage=True),
            _quiet("timings", TEXTS, timings=True),
            _quiet("timings-false", TEXTS, timings=False),
            _quiet("a-failing-text", ["fine", "a zebra", "fine too"]),
            Job("a-failing-text-with-vectors", {"texts": ["a zebra", "fine"], "vectors": ["dense"]}),
            _quiet("a-failing-text-without-dense", ["a zebra"], vectors=["sparse"]),
        ],
        stores=("edge",),
    ),
    Scenario(
        "settings",
        [
            _quiet("query-limit", [LONG]),
            _quiet("passages-limit", [LONG], isPassage=True),
            _quiet("limit-of-the-job", [LONG], maxLength=40),
            _quiet("served-model-name", ["a"]),
            _quiet("as-many-texts-as-allowed", ["a", "b", "c"]),
            _quiet("too-many-texts", ["a", "b", "c", "d"]),
        ],
        settings={
            "QUERY_MAX_LENGTH": "16",
            "PASSAGE_MAX_LENGTH": "24",
            "SERVED_MODEL_NAME": "BAAI/bge-m3",
            "MAX_TEXTS": "3",
        },
        stores=("edge",),
    ),
    Scenario(
        "limits of the worker",
        [
            Job("answer-too-large", {"texts": TEXTS}, settings={"MAX_RESPONSE_MB": "0.002"}),
            Job("texts-too-large", {"texts": [LONG], "returnVectors": False}, settings={"MAX_RESPONSE_MB": "0.002"}),
            Job("job-larger-than-the-queue", {"texts": MANY, "vectors": ["dense"]}, settings={"QUEUE_TOKENS": "20"}),
            Job("queue-full", {"texts": MANY, "vectors": ["dense"]}, {"QUEUE_TOKENS": "100"}, "queue full"),
            Job("device-lost", {"texts": ["a"]}, fault="device lost"),
        ],
        stores=("edge",),
    ),
)
