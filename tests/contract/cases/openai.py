"""OpenAI's embeddings API on the queue; `http` has the cases over HTTP."""

from __future__ import annotations

from typing import Any, Final

from tests.contract.steps import Job, Scenario

IDS_ALLOWED: Final = {"ALLOW_TOKEN_IDS": "true"}
TEXTS: Final = ["rsync copies only the changed parts of files.", "", "a query"]


def _job(name: str, route: str = "/v1/embeddings", *, settings: dict[str, str] | None = None, **fields: Any) -> Job:
    return Job(name, {"openai_route": route, "openai_input": fields}, settings=settings or {})


SCENARIOS: Final = (
    Scenario(
        "embeddings",
        [
            _job("a-string", input=TEXTS[0]),
            _job("strings", input=TEXTS, model="mini", user="somebody"),
            _job("floats", input=["a"], encoding_format="float", dimensions=64),
            _job("token-ids", input=[100, 200, 300], settings=IDS_ALLOWED),
            _job("lists-of-token-ids", input=[[100, 200], [5]], settings=IDS_ALLOWED),
            _job("token-ids-with-special-ones", input=[0, 100, 2], settings=IDS_ALLOWED),
            _job("token-ids-truncated", input=[[100, 200, 300], [5]], truncate_prompt_tokens=4, settings=IDS_ALLOWED),
            _job("truncated", input=["a b c d e f", "a"], truncate_prompt_tokens=4, truncation_side="right"),
            _job("truncated-by-the-worker", input="word " * 600, truncate_prompt_tokens=-1),
            _job("truncated-by-a-setting", input="word " * 600, settings={"OPENAI_TRUNCATE": "true"}),
            _job("all-vectors", input=TEXTS, vectors=["dense", "sparse", "colbert"]),
            _job("sparse-vectors", input="a", vectors=["sparse"]),
            _job("unknown-field", input="a", dimension=64),
            _job("timings", input="a", timings=True),
            _job("nulls", input="a", model=None, dimensions=None, user=None),
        ],
        stores=("edge",),
    ),
    Scenario(
        "embeddings of mini",
        [_job("mini-strings", input=TEXTS), _job("mini-dimensions", input="a", dimensions=192)],
        engines=("mini",),
        stores=("edge",),
    ),
    Scenario(
        "base64 and models",
        [
            _job("base64", input=TEXTS[:1], encoding_format="base64"),
            _job("base64-of-colbert", input=TEXTS[:1], encoding_format="base64", vectors=["colbert"]),
            _job("models", "/v1/models"),
            Job("models-without-input", {"openai_route": "/v1/models"}),
            _job("one-model", "/v1/models/mini"),
            _job("named-model", "/v1/models/BAAI/bge-m3", settings={"SERVED_MODEL_NAME": "BAAI/bge-m3"}),
            _job("several-names", "/v1/models", settings={"SERVED_MODEL_NAME": "bge-m3,BAAI/bge-m3"}),
            _job("second-name", input="a", model="BAAI/bge-m3", settings={"SERVED_MODEL_NAME": "bge-m3,BAAI/bge-m3"}),
            _job("no-name-of-several", input="a", model="mini", settings={"SERVED_MODEL_NAME": "bge-m3,BAAI/bge-m3"}),
            _job("any-name", input="a", model="text-embedding-3-small", settings={"SERVED_MODEL_NAME": "*"}),
            _job("any-name-described", "/v1/models/text-embedding-3-small", settings={"SERVED_MODEL_NAME": "*"}),
            _job("named-model-in-use", input="a", model="BAAI/bge-m3", settings={"SERVED_MODEL_NAME": "BAAI/bge-m3"}),
        ],
        stores=("edge",),
    ),
    Scenario(
        "errors",
        [
            _job("no-input"),
            _job("empty-list", input=[]),
            _job("an-object", input={"a": 1}),
            _job("mixed", input=["a", 1]),
            _job("empty-ids", input=[[1], []]),
            _job("boolean-ids", input=[[1], [True]]),
            _job("id-above", input=[[5, 10**9]], settings=IDS_ALLOWED),
            _job("id-negative", input=[-1], settings=IDS_ALLOWED),
            _job("token-ids-refused", input=[100, 200, 300]),
            _job("surrogate", input="\ud800"),
            _job("too-long", input="word " * 600),
            _job("too-many-ids", input=[7] * 511, settings=IDS_ALLOWED),
            _job("truncated-to-nothing", input="a", truncate_prompt_tokens=0),
            _job("truncated-beyond-the-model", input="a", truncate_prompt_tokens=100_000),
            _job("truncated-on-the-left", input="a", truncate_prompt_tokens=4, truncation_side="left"),
            _job("other-vectors", input="a", vectors=["splade"]),
            _job("other-dimensions", input="a", dimensions=32),
            _job("dimensions-zero", input="a", dimensions=0),
            _job("other-encoding", input="a", encoding_format="hex"),
            _job("strict-unknown-field", input="a", dimension=64, settings={"OPENAI_STRICT": "true"}),
            _job("strict-timings", input="a", timings=True, settings={"OPENAI_STRICT": "true"}),
            _job("other-model", input="a", model="text-embedding-3-small"),
            _job("other-model-listed", "/v1/models/gpt"),
            _job("other-route", "/v1/chat/completions"),
            Job(
                "field-beside-the-route",
                {"openai_route": "/v1/embeddings", "openai_input": {"input": "a"}, "texts": []},
            ),
            Job("route-a-number", {"openai_route": 1}),
            Job("input-a-string", {"openai_route": "/v1/embeddings", "openai_input": "a"}),
            _job("a-failing-input", input=["fine", "a zebra"]),
            _job("too-many-inputs", input=["a"] * 3, settings={"MAX_TEXTS": "2"}),
            _job("colbert-too-large", input=["a"] * 3, vectors=["colbert"], settings={"MAX_RESPONSE_MB": "0.002"}),
            _job("answer-too-large", input=["a"] * 3, encoding_format="base64", settings={"MAX_RESPONSE_MB": "0.0005"}),
            _job("more-than-the-queue", input=["some words"] * 9, settings={"QUEUE_TOKENS": "20"}),
            Job(
                "queue-full",
                {"openai_route": "/v1/embeddings", "openai_input": {"input": "a"}},
                {"QUEUE_TOKENS": "100"},
                "queue full",
            ),
        ],
        stores=("edge",),
    ),
)
