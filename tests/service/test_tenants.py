"""Tenants: a request of one never gets the points of all because its filter is missing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service.client import Client
from tests.service.conftest import Serve
from tests.service.ingests import NOTES, job


@pytest.mark.parametrize("absent", [{}, {"filter": None}, {"filter": {}}, {"filter": {"must": []}}])
def test_no_request_sees_all_tenants_by_a_missing_filter(serve: Serve, absent: dict[str, Any]) -> None:
    """Where collections have tenants, a search or count needs a filter; one that is null or empty is none."""
    worker = serve(QDRANT_COLLECTION_CONFIG='{"tenantKey": "tenant"}')
    worker.good(job("of a", "of b", ids=[1, 2], payloads=[{"tenant": "a"}, {"tenant": "b"}]))
    message = "filter must have a condition where collections have tenants (tenantKey 'tenant'), got none"
    search = {"operation": "search", "collection": NOTES}
    for raw in (
        {**search, "queries": ["of"]},
        {**search, "like": {"positive": [1]}},
        {"operation": "count", "collection": NOTES},
        {"operation": "count", "collection": "missing"},
    ):
        answer = worker.error({**raw, **absent}, "invalid_request")
        assert (answer["error"], answer["details"]["errors"][0]["field"]) == (message, "filter")
    mine = {"filter": {"must": [{"key": "tenant", "match": {"value": "b"}}]}}
    assert [hit["id"] for hit in worker.good({**search, "queries": ["of"], **mine})["results"][0]["hits"]] == [2]
    assert worker.good({"operation": "count", "collection": NOTES, **mine}) == {"count": 1}


def test_without_tenants_the_filter_null_is_no_filter(worker: Client) -> None:
    """A search or count with `filter: null` is the one without a filter."""
    worker.good(job("one", "two"))
    assert worker.good({"operation": "count", "collection": NOTES, "filter": None}) == {"count": 2}
    search = {"operation": "search", "collection": NOTES, "queries": ["one"]}
    assert worker.good({**search, "filter": None}) == worker.good(search)
