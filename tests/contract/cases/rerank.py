"""Rankings in the form of Cohere and Jina over HTTP and on the queue, and the API of Text Embeddings Inference."""

from __future__ import annotations

from typing import Any, Final

from tests.contract.steps import Call, Job, Scenario

QUERY: Final = "copy only what changed"
DOCUMENTS: Final = ["A relational database.", {"text": "rsync copies only the changed parts of files.", "id": 7}, "a"]
TEXTS: Final = ["A relational database.", "rsync copies only the changed parts of files."]
SAME: Final[dict[str, Any]] = {"max_chunks_per_doc": 1, "rank_fields": ["text"], "priority": 0}
SAME_TEI: Final[dict[str, Any]] = {"truncate": True, "truncation_direction": "right"}
"""Fields that change nothing."""


def _job(name: str, *, settings: dict[str, str] | None = None, **fields: Any) -> Job:
    return Job(name, {"openai_route": "/v1/rerank", "openai_input": fields}, settings=settings or {})


def _post(name: str, path: str, *, settings: dict[str, str] | None = None, **fields: Any) -> Call:
    return Call(name, "POST", path, fields, settings=settings or {})


SCENARIOS: Final = (
    Scenario(
        "rankings",
        [
            _job("ranking", query=QUERY, documents=DOCUMENTS),
            _job("ranking-with-documents", query={"text": QUERY}, documents=DOCUMENTS, return_documents=True, top_n=2),
            _job("ranking-weighted", query=QUERY, documents=DOCUMENTS, weights=[0, 0, 1]),
            _job("ranking-weighted-by-setting", query=QUERY, documents=DOCUMENTS, settings={"RERANK_WEIGHTS": "1,0,0"}),
            _job("ranking-truncated", query=QUERY, documents=DOCUMENTS, max_tokens_per_doc=4),
            _post(
                "ranking-of-texts",
                "/rerank",
                query=QUERY,
                texts=TEXTS,
                return_text=True,
                **SAME_TEI,
                top_n=9,
                weights=[1, 1, 1],
            ),
            _post("ranking-of-texts-raw", "/rerank", query=QUERY, texts=TEXTS, raw_scores=True),
        ],
        engines=("stub", "mini"),
        stores=("edge",),
    ),
    Scenario(
        "rankings over HTTP",
        [
            _post("ranking-v1", "/v1/rerank", query=QUERY, documents=DOCUMENTS, model="mini", **SAME),
            _post("ranking-v2", "/v2/rerank", query=QUERY, documents=DOCUMENTS),
            _post("ranking-without-version", "/rerank", query=QUERY, documents=DOCUMENTS),
            _post("ranking-other-model", "/v1/rerank", query=QUERY, documents=DOCUMENTS, model="other"),
            _post("ranking-of-nothing", "/v1/rerank", query="", documents=[]),
            _post("ranking-unknown-field", "/v2/rerank", query=QUERY, documents=DOCUMENTS, top_k=3),
            _post("ranking-unsupported", "/v1/rerank", query=QUERY, documents=["a"], rank_fields=["b"]),
            _post("ranking-of-a-failing-text", "/v1/rerank", query=QUERY, documents=["a", "a zebra"]),
            _post("ranking-of-texts-empty", "/rerank", query=QUERY, texts=[]),
            _post("ranking-of-a-failing-text-tei", "/rerank", query=QUERY, texts=["a zebra"]),
            Call("ranking-by-get", "GET", "/v1/rerank"),
        ],
        stores=("edge",),
    ),
    Scenario(
        "tei",
        [
            _post("tei-root", "/", inputs="a"),
            _post(
                "tei-embed", "/embed", inputs=["a", "b"], prompt_name="query", normalize=True, dimensions=64, **SAME_TEI
            ),
            _post("tei-embed-sparse", "/embed_sparse", inputs=["a text", "b"], prompt_name="passage", **SAME_TEI),
            _post("tei-empty", "/embed", inputs=["a", ""]),
            _post("tei-token-ids", "/embed", inputs=[1, 2]),
            _post("tei-not-normalized", "/", inputs="a", normalize=False, prompt_name="other"),
            _post("tei-dimensions", "/", inputs="a", dimensions=3),
            _post("tei-too-many", "/embed_sparse", inputs=["a"] * 3, settings={"MAX_TEXTS": "2"}),
            _post("tei-too-long", "/embed", inputs="word " * 20, truncate=False, settings={"PASSAGE_MAX_LENGTH": "8"}),
            _post("tei-a-failing-text", "/embed", inputs=["a zebra"]),
            _post("tei-answer-too-large", "/embed", inputs=["a"], settings={"MAX_RESPONSE_MB": "0.0001"}),
        ],
        stores=("edge",),
    ),
    Scenario(
        "rankings with a key",
        [
            _post("ranking-without-key", "/v1/rerank", query=QUERY, documents=DOCUMENTS),
            _post("tei-without-key", "/", inputs="a"),
            Call("info-without-key", "GET", "/info"),
        ],
        settings={"API_KEY": "k3y-0123456789"},
        stores=("edge",),
    ),
)
