"""`explain`: the explanation of each hit is complete and correct."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder import Embedder, SparseVector
from qdrant_sink import Draft, Vectors
from qdrant_sink.edge import EdgeStore
from qdrant_sink.writing.pooling import pooled
from service.operations import Operations
from service.operations.search import EXPLAINED_HITS_MAX, EXPLAINED_ROWS_HITS_MAX
from service.settings import Settings
from tests.embedder.texts import TEXTS
from tests.service.client import ENVIRONMENT, Client, Json, unpacked
from tests.service.conftest import Serve
from tests.service.doubles import WatchedStore
from tests.sink.samples import schema_for
from tests.sink.writing import write

NOTES = "notes"
SEARCH: Json = {"operation": "search", "collection": NOTES, "explain": True}
WITHOUT_SPAN = ("</s>", "\u2581")
"""Tokens without characters in the text: the end of a text, and the mark of a word's beginning."""

STORED = [
    "\U0001f680 RSYNC copies only the changed parts of files. Nothing but changed parts!",
    "PhotoRec recovers deleted files from memory cards.",
    "A relational database server.",
    *(
        TEXTS[name]
        for name in ("emoji", "chinese", "repeats", "combining marks", "compatibility forms", "all literals")
    ),
]


def stored(worker: Client, texts: list[str], **more: Any) -> None:
    """Store texts under their numbers."""
    raw = {"texts": texts, "isPassage": True, "qdrant": {"collection": NOTES, "ids": list(range(len(texts)))}, **more}
    assert worker.good(raw)["upsert"]["stored"] == len(texts)


def hits(worker: Client, query: str, **fields: Any) -> list[Json]:
    """The explained hits of a query."""
    explained: list[Json] = worker.good({**SEARCH, "queries": [query], **fields})["results"][0]["hits"]
    return explained


def shown(text: str, spans: list[list[int]]) -> set[str]:
    """The highlighted parts of a text in lower case."""
    return {text[start:end].lower() for start, end in spans}


@pytest.fixture(scope="module")
def library(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A worker that has stored `STORED`."""
    store = EdgeStore(tmp_path_factory.mktemp("explained"))
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), embedder, store))
    stored(worker, STORED)
    yield worker
    store.close()


def test_a_hit_says_why_it_was_found(library: Client) -> None:
    """A hit has its rank and score per branch, the parts of its fused score, and the matched tokens."""
    best = hits(library, "copy only changed files")[0]
    why = best["explain"]
    assert set(why) == {"branches", "fusion", "sparse", "colbert"}
    assert list(why["branches"]) == list(why["fusion"]) == ["dense", "sparse"]
    for kind, branch in why["branches"].items():
        (alone,) = [hit for hit in hits(library, "copy only changed files", using=[kind]) if hit["id"] == best["id"]]
        assert branch["score"] == alone["score"]
        assert alone["explain"]["branches"] == {kind: branch}
    assert sum(why["fusion"].values()) == pytest.approx(best["score"], abs=1e-6)
    assert why["sparse"]
    for match in why["sparse"]:
        assert set(match) == {"token", "id", "query", "passage", "contribution", "spans"}
        assert match["contribution"] == pytest.approx(match["query"] * match["passage"], abs=1e-6)
    sparse = why["branches"]["sparse"]["score"]
    assert sum(match["contribution"] for match in why["sparse"]) == pytest.approx(sparse, abs=1e-4)
    assert why["colbert"] is None, "no ColBERT row of the query was computed"


def test_matches_are_highlighted_in_the_stored_text(library: Client) -> None:
    """Every span of a token, in characters, is the token in the stored text."""
    (best,) = [hit for hit in hits(library, "copies of changed files", rerank="colbert") if hit["id"] == 0]
    text, why = best["payload"]["text"], best["explain"]
    by_word = {match["token"]: match["spans"] for match in why["sparse"]}
    assert shown(text, by_word["change"]) == {"change"}
    assert len(by_word["change"]) == 2
    assert shown(text, by_word["files"]) == {"files"}
    for match in why["colbert"]:
        assert (match["span"] is None) == (match["token"] in WITHOUT_SPAN)
        if match["span"] is not None:
            assert text[slice(*match["span"])] == match["token"]
    assert [match["query"] for match in why["colbert"]] == ["copie", "s", "of", "change", "d", "files", "</s>"]
    assert {match["query"]: match["token"] for match in why["colbert"]}["files"] == "files"


@pytest.mark.parametrize("fields", [{"rerank": "colbert"}, {"using": ["colbert"]}])
def test_the_alignment_adds_up_to_the_score(library: Client, fields: Json) -> None:
    """The scores of the aligned tokens add up to the MaxSim of Qdrant."""
    for query in ("copy only changed files", "memory cards", ""):
        for hit in hits(library, query, **fields):
            why = hit["explain"]
            assert sum(match["score"] for match in why["colbert"]) == pytest.approx(hit["score"], abs=1e-4)
            assert why["fusion"] is None
            assert (why["sparse"] is None) == (query == "" or "using" in fields)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(query=st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(STORED))
def test_any_query_is_explained(library: Client, query: str) -> None:
    """For any query, sums equal scores and spans are within their text."""
    for hit in hits(library, query, rerank="colbert"):
        text, why = hit["payload"]["text"], hit["explain"]
        assert sum(match["score"] for match in why["colbert"]) == pytest.approx(hit["score"], abs=1e-4)
        spans = [match["span"] for match in why["colbert"] if match["span"] is not None]
        for match in why["sparse"] or []:
            assert bool(match["spans"]) == (match["token"] not in WITHOUT_SPAN), "a token with a weight has a span"
            spans += match["spans"]
        for start, end in spans:
            assert 0 <= start < end <= len(text)
            assert text[start:end].strip()


def test_the_answer_is_the_same_but_for_the_explanation(library: Client) -> None:
    """`explain` only adds a key to each hit."""
    fields: tuple[Json, ...] = ({}, {"withPayload": False}, {"withVectors": True}, {"rerank": "colbert", "offset": 1})
    for more in fields:
        raw = {**SEARCH, "queries": ["changed files", "memory", "changed files"], "limit": 3, **more}
        plain, explained = library.good({**raw, "explain": False}), library.good(raw)
        for result in explained["results"]:
            for hit in result["hits"]:
                assert hit.pop("explain")["branches"]
        assert explained == plain


@pytest.mark.parametrize("reason", ["truncated", "pooled"])
def test_a_text_that_does_not_match_its_vectors_has_no_spans(worker: Client, store: EdgeStore, reason: str) -> None:
    """If the text has other tokens than the rows, spans and tokens are left out, and the numbers remain."""
    stored(worker, STORED[:1], **({"maxLength": 8} if reason == "truncated" else {}))
    if reason == "pooled":
        whole = worker.good({"texts": STORED[:1], "isPassage": True, "encoding": "base64"})["results"][0]
        indices, values = whole["sparse"]["indices"], whole["sparse"]["values"]
        sparse = SparseVector(np.array(indices, np.uint32), np.array(values, np.float32))
        rows = pooled(unpacked(whole["colbert"]), 10)
        shorter = Vectors(unpacked(whole["dense"]), sparse, rows)
        schema = schema_for(rows.shape[1], rows.shape[1])
        assert write(store, NOTES, [Draft(0, 0, {"text": STORED[0]}, shorter)], schema).stored == 1
    (hit,) = hits(worker, "rsync copies files", rerank="colbert")
    why = hit["explain"]
    assert sum(match["score"] for match in why["colbert"]) == pytest.approx(hit["score"], abs=1e-4)
    assert {(match["token"], match["span"]) for match in why["colbert"]} == {(None, None)}
    assert why["sparse"]
    assert [match["spans"] for match in why["sparse"]] == [None] * len(why["sparse"])
    assert all(match["token"] for match in why["sparse"]), "a token has its name from the vocabulary all the same"


def test_a_text_with_other_tokens_has_no_spans(worker: Client) -> None:
    """A stored text without the tokens of the point's weights has no spans, even if its length fits."""
    texts = ["the files", "one library"]
    first, second = worker.good({"texts": texts})["results"]
    assert first["tokens"] == second["tokens"], "equal lengths, so that only the tokens differ"
    target = {"collection": NOTES, "ids": [0], "payloads": [{"other": texts[1]}]}
    worker.good({"texts": texts[:1], "isPassage": True, "qdrant": target})
    (hit,) = hits(worker, "files", rerank="colbert", textKey="other")
    assert hit["explain"]["sparse"][0]["spans"] is None
    assert {match["token"] for match in hit["explain"]["colbert"]} == {None}
    (right,) = hits(worker, "files", rerank="colbert")
    assert right["explain"]["sparse"][0]["spans"] == [[4, 9]]


def test_the_text_is_read_from_its_key(worker: Client) -> None:
    """The key of the text is recognised, or `textKey`; without the text, a hit has no spans."""
    target = {"collection": NOTES, "ids": [0], "textKey": "body"}
    worker.good({"texts": ["one library"], "isPassage": True, "qdrant": target})
    (named,) = hits(worker, "library", textKey="body", withPayload=False)
    assert named["explain"]["sparse"][0]["spans"] == [[4, 11]]
    assert "payload" not in named
    assert hits(worker, "library")[0]["explain"] == named["explain"]
    (unnamed,) = hits(worker, "library", textKey="title")
    assert unnamed["explain"]["sparse"][0]["spans"] is None
    assert unnamed["explain"]["sparse"][0]["contribution"] == named["explain"]["sparse"][0]["contribution"]


def test_a_truncated_text_is_highlighted_up_to_the_limit(serve: Serve) -> None:
    """A passage over `PASSAGE_MAX_LENGTH` has spans for its embedded tokens."""
    worker = serve(PASSAGE_MAX_LENGTH="20")
    stored(worker, ["library " * 30])
    (hit,) = hits(worker, "library", rerank="colbert")
    seen = [[8 * n, 8 * n + 7] for n in range(18)]
    assert hit["explain"]["sparse"][0]["spans"] == seen
    best = hit["explain"]["colbert"][0]
    assert (best["query"], best["span"]) == ("library", seen[best["row"]])


def test_very_long_texts_have_no_spans(worker: Client) -> None:
    """A query or a stored text of megabytes is explained without spans."""
    endless = "library " * 100_000
    stored(worker, [endless, "one library"])
    for query in (endless, "library"):
        why = {hit["id"]: hit["explain"] for hit in hits(worker, query, rerank="colbert")}
        assert why[0]["sparse"][0]["spans"] is None
        assert why[0]["sparse"][0]["contribution"] > 0
        assert why[1]["sparse"][0]["spans"] == [[4, 11]]


@pytest.mark.parametrize("layout", ["plain", "langchain", "llamaindex", "haystack"])
def test_every_layout_has_its_text(serve: Serve, layout: str) -> None:
    """Spans also refer to the text of a framework's payload, whichever part of it the hits contain."""
    worker = serve(QDRANT_COLLECTION_CONFIG=f'{{"layout": "{layout}"}}')
    stored(worker, ["one library"])
    for selection, kept in ((True, ...), (["topic"], {}), ({"exclude": ["topic"]}, ...), (False, None)):
        (hit,) = hits(worker, "library", withPayload=selection)
        assert hit["explain"]["sparse"][0]["spans"] == [[4, 11]]
        assert kept is ... or hit.get("payload") == kept


def test_points_without_rows_or_weights_are_explained(worker: Client) -> None:
    """A point without ColBERT rows has no alignment, and one without a sparse vector has no matches."""
    stored(worker, ["one library"], vectors=["dense"])
    (hit,) = hits(worker, "library", using=["dense", "sparse", "colbert"])
    why = hit["explain"]
    assert why["branches"]["sparse"] is why["branches"]["colbert"] is None
    assert why["sparse"] == []
    assert why["colbert"] is None
    assert why["fusion"] == {"dense": pytest.approx(hit["score"]), "sparse": 0.0, "colbert": 0.0}


def test_hits_like_a_stored_point_are_explained(library: Client) -> None:
    """A search by stored points has no query tokens, and its sums equal the scores."""
    raw = {**SEARCH, "like": {"positive": [0], "negative": [1]}}
    for fields in ({}, {"like": {"positive": [0]}, "rerank": "colbert"}):
        for hit in library.good({**raw, **fields})["results"][0]["hits"]:
            why = hit["explain"]
            sparse = why["branches"]["sparse"]
            total = sum(match["contribution"] for match in why["sparse"])
            assert total == pytest.approx(0.0 if sparse is None else sparse["score"], abs=1e-4)
            if "rerank" in fields:
                assert {match["query"] for match in why["colbert"]} == {None}
                assert sum(match["score"] for match in why["colbert"]) == pytest.approx(hit["score"], abs=1e-3)
            else:
                assert sum(why["fusion"].values()) == pytest.approx(hit["score"], abs=1e-6)


def test_hits_by_document_are_explained(worker: Client) -> None:
    """With `groupBy`, ranks are those among all candidates."""
    texts = [f"one library number {n}" for n in range(6)]
    payloads = [{"doc_id": n // 3} for n in range(6)]
    target = {"collection": NOTES, "ids": list(range(6)), "payloads": payloads}
    worker.good({"texts": texts, "isPassage": True, "qdrant": target})
    plain = {hit["id"]: hit["explain"]["branches"] for hit in hits(worker, "library number 4")}
    grouped = hits(worker, "library number 4", groupBy="doc_id", limit=2)
    assert {hit["group"] for hit in grouped} == {0, 1}
    for hit in grouped:
        assert hit["explain"]["branches"] == plain[hit["id"]]
        assert sum(hit["explain"]["fusion"].values()) == pytest.approx(hit["score"], abs=1e-6)
        spans = {match["token"]: match["spans"] for match in hit["explain"]["sparse"]}
        assert spans["library"] == [[4, 11]]


def test_an_explanation_is_one_request(serve: Serve, tmp_path: Path) -> None:
    """Two queries with two branches each are six searches in one request to the store."""
    store = WatchedStore(tmp_path / "watched")
    worker = serve(store=store)
    stored(worker, STORED[:2])
    answer = worker.good({**SEARCH, "queries": ["files", "server"]})
    assert len(answer["results"]) == 2
    assert (store.requests, [len(plan.branches) for plan in store.plans]) == (1, [2, 2] + [0, 0] * 2)
    store.close()


def test_too_many_explained_hits_are_rejected(library: Client) -> None:
    """Hits, hits with ColBERT rows, and candidates are limited, and the message says what to lower."""
    for fields, named in (
        (
            {"limit": EXPLAINED_HITS_MAX + 1},
            f"at most {EXPLAINED_HITS_MAX} hits (queries x limit), got {EXPLAINED_HITS_MAX + 1}; lower limit",
        ),
        (
            {"limit": EXPLAINED_ROWS_HITS_MAX + 1, "rerank": "colbert"},
            f"at most {EXPLAINED_ROWS_HITS_MAX} hits with colbert",
        ),
        ({"queries": ["a"] * 6, "prefetch": 100_000}, "got 1200000; lower prefetch"),
    ):
        refusal = library.error({**SEARCH, "queries": ["a"], **fields}, "invalid_request")["error"]
        assert refusal.startswith("explain ")
        assert named in refusal


def test_too_many_candidates_of_groups_are_rejected(library: Client) -> None:
    """A grouped search reads all candidates of its branches, and these are limited."""
    grouped = {**SEARCH, "queries": ["a"] * 6, "prefetch": 100_000, "groupBy": "topic"}
    refusal = library.error({**grouped, "explain": False}, "invalid_request")["error"]
    assert refusal == (
        "prefetch must ask for at most 1000000 candidates with groupBy (queries x branches x prefetch), got 1200000; "
        "lower prefetch or send fewer queries"
    )
