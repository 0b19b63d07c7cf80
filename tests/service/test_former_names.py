"""Collections of a layout from before it had vector names of its own."""

from __future__ import annotations

import json

import pytest

from tests.service.conftest import Serve


@pytest.mark.parametrize("layout", ["langchain", "llamaindex", "haystack"])
def test_a_collection_under_the_former_names_is_used_as_it_is(serve: Serve, layout: str) -> None:
    """It is searched, explained and extended without `vectorNames`; nothing is created beside its vectors."""
    names = {"dense": "dense", "sparse": "sparse"}
    former = serve(QDRANT_COLLECTION_CONFIG=json.dumps({"layout": layout, "vectorNames": names}))
    former.good({"texts": ["rsync copies files"], "qdrant": {"collection": "notes", "ids": [1]}})
    worker = serve(QDRANT_COLLECTION_CONFIG=json.dumps({"layout": layout}))
    worker.good({"texts": ["an editor for images"], "qdrant": {"collection": "notes", "ids": [2]}})
    search = {"operation": "search", "collection": "notes", "queries": ["rsync copies files"], "rerank": "colbert"}
    (result,) = worker.good({**search, "explain": True})["results"]
    assert [hit["id"] for hit in result["hits"]] == [1, 2]
    assert "unranked" not in result
