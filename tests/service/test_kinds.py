"""Workers whose collections have fewer kinds of vectors: what requests default to, and what they are refused."""

from __future__ import annotations

import json

import pytest

from embedder import KINDS, Embedder
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from service.transports.cli.bulk import BulkOptions, load_options
from service.wire.fields import Limits
from tests.service.client import ENVIRONMENT, Client, Json
from tests.service.conftest import Serve
from tests.service.doubles import Watched

TEXTS = ["a fox in the forest", "a dog in the house", "a bird in the air"]
SEARCH: Json = {"operation": "search", "collection": "notes", "queries": ["a fox"], "limit": 2}


def _config(*kinds: str) -> str:
    return json.dumps({"kinds": kinds})


@pytest.mark.parametrize(
    ("kinds", "using"),
    [
        (("dense",), ("dense",)),
        (("sparse", "colbert"), ("sparse",)),
        (("colbert",), ("colbert",)),
        (KINDS, ("dense", "sparse")),
    ],
)
def test_requests_default_to_the_kinds_of_the_collection(
    serve: Serve, store: EdgeStore, kinds: tuple[str, ...], using: tuple[str, ...]
) -> None:
    """An ingest stores all kinds of the collection, and a search asks for dense and sparse, or for ColBERT alone."""
    worker = serve(QDRANT_COLLECTION_CONFIG=_config(*kinds))
    answer = worker.good({"texts": TEXTS, "isPassage": True, "returnVectors": True, "qdrant": {"collection": "notes"}})
    assert answer["upsert"]["stored"] == 3
    assert [kind for kind in KINDS if kind in answer["results"][0]] == list(kinds)
    [result] = worker.good({**SEARCH, "withVectors": True, "explain": True})["results"]
    best = result["hits"][0]
    assert best["payload"]["text"] == TEXTS[0]
    assert tuple(best["explain"]["branches"]) == using
    assert [kind for kind in KINDS if kind in best["vectors"]] == list(kinds)
    ids = [text["id"] for text in answer["results"]]
    like = {"operation": "search", "collection": "notes", "like": {"positive": [ids[0]]}}
    assert ids[0] not in [hit["id"] for hit in worker.good(like)["results"][0]["hits"]]
    names = {kind: store.count("notes", {"must": [{"has_vector": kind}]}) for kind in kinds}
    assert names == dict.fromkeys(kinds, 3)


def test_only_the_needed_kinds_are_computed(watched: Watched, store: EdgeStore) -> None:
    """The model computes for an ingest what the collection holds, and nothing else."""
    settings = Settings.from_environment({**ENVIRONMENT, "QDRANT_COLLECTION_CONFIG": _config("sparse")})
    worker = Client(Operations(settings, watched.embedder, store))
    # the double's dense vector of a text with "zebra" is NaN, which would reject the point
    answer = worker.good({"texts": ["a zebra"], "qdrant": {"collection": "notes"}})
    assert answer["upsert"] == {"collection": "notes", "stored": 1, "skipped": 0, "rejected": []}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"texts": TEXTS, "vectors": ["dense", "colbert"], "qdrant": {"collection": "notes"}}, "vectors[1]"),
        ({**SEARCH, "using": ["colbert"]}, "using[0]"),
        ({**SEARCH, "rerank": "colbert"}, "rerank"),
    ],
)
def test_a_kind_that_collections_lack_is_an_error(serve: Serve, request_: Json, field: str) -> None:
    """The error names the field and the kinds that there are."""
    worker = serve(QDRANT_COLLECTION_CONFIG=_config("dense", "sparse"))
    error = worker.error(request_, "invalid_request")
    assert error["error"] == (
        f"{field} must be a kind of vector that the collection has (dense, sparse), got 'colbert'"
    )
    assert [problem["field"] for problem in error["details"]["errors"]] == [field]


def test_vectors_without_a_store_are_all_kinds(serve: Serve) -> None:
    """An embed request without a `qdrant` block does not depend on collections."""
    worker = serve(QDRANT_COLLECTION_CONFIG=_config("dense"))
    [result] = worker.good({"texts": ["a fox"]})["results"]
    assert set(KINDS) <= result.keys()


def test_the_weights_are_those_of_the_default_branches(serve: Serve) -> None:
    """Without `using` the number of weights is checked against the branches that the collection has."""
    worker = serve(QDRANT_COLLECTION_CONFIG=_config("dense"))
    worker.good({"texts": TEXTS, "qdrant": {"collection": "notes"}})
    error = worker.error({**SEARCH, "weights": [1.0, 2.0]}, "invalid_request")
    assert error["error"] == "weights must have one item per branch (dense), got 2"


def test_a_bulk_load_stores_the_kinds_of_the_collection(embedder: Embedder, serve: Serve) -> None:
    """Without `--vectors` a load leaves the kinds to the collection."""
    limits = Limits(max_texts=10, max_length=embedder.max_length)
    request = load_options(BulkOptions(collection="notes"), limits).request
    assert request.vectors == ()
    serve(QDRANT_COLLECTION_CONFIG=_config("sparse")).operations.ingest.check(request)


@pytest.mark.parametrize("distance", ["euclid", "manhattan"])
def test_scores_that_are_distances_grow(serve: Serve, distance: str) -> None:
    """The nearest text comes first with the smallest score, a threshold is a maximum, and DBSF is an error."""
    worker = serve(QDRANT_COLLECTION_CONFIG=json.dumps({"dense": {"distance": distance}}))
    worker.good({"texts": TEXTS, "qdrant": {"collection": "notes"}})
    exact = {**SEARCH, "queries": [TEXTS[0]], "limit": 3, "using": ["dense"]}
    [result] = worker.good(exact)["results"]
    scores = [hit["score"] for hit in result["hits"]]
    assert result["hits"][0]["payload"]["text"] == TEXTS[0]
    assert scores == sorted(scores)
    assert scores[0] == pytest.approx(0, abs=1e-3)
    [near] = worker.good({**exact, "scoreThreshold": (scores[0] + scores[1]) / 2})["results"]
    assert [hit["payload"]["text"] for hit in near["hits"]] == [TEXTS[0]]
    [fused] = worker.good({**exact, "using": ["dense", "sparse"]})["results"]
    assert fused["hits"][0]["payload"]["text"] == TEXTS[0]
    error = worker.error({**SEARCH, "fusion": "dbsf"}, "invalid_request")
    assert error["error"] == (f"fusion must be 'rrf' where the scores of dense are distances ({distance}), got 'dbsf'")
