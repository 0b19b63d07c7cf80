"""Hypothesis strategies for inputs: valid and almost valid requests, and arbitrary JSON."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from service.wire.requests import DeleteRequest, EmbedRequest, QdrantTarget, ScoreRequest, SearchRequest

PRIVATE: Final = "the private words of a user, which stay here: " + "lorem ipsum " * 6
"""A text that is longer than anything a message may quote."""

_REQUESTS: Final = (EmbedRequest, SearchRequest, DeleteRequest, ScoreRequest)
_FIELDS: Final = sorted(
    {str(field.alias) for kind in _REQUESTS for field in kind.model_fields.values()} - {"operation"}
)
_TARGET_FIELDS: Final = sorted({str(field.alias) for field in QdrantTarget.model_fields.values()} - {"collection"})
_OPERATIONS: Final = ["embed", "search", "count", "delete", "score", ""]

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from([PRIVATE, "", "\ud800", "dense", "colbert", "notes", "base64", 2**64, 10**400])
)

values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)
"""Any JSON value, also values that JSON cannot represent."""

_texts = st.lists(st.text(max_size=6) | st.just(PRIVATE), min_size=1, max_size=3)

requests = st.fixed_dictionaries(
    {"operation": st.sampled_from(_OPERATIONS)},
    optional={
        **dict.fromkeys(_FIELDS, values),
        "texts": _texts | values,
        "queries": _texts | values,
        "collection": st.just("notes") | values,
        "qdrant": st.fixed_dictionaries(
            {"collection": st.just("notes") | values}, optional=dict.fromkeys(_TARGET_FIELDS, values)
        )
        | values,
        "filter": st.fixed_dictionaries({}, optional=dict.fromkeys(["must", "should", "must_not"], values)) | values,
    },
)
"""Requests with arbitrary values in any field. Arbitrary JSON alone would hardly pass the first check."""

spoiled_requests = st.builds(
    lambda request, fields: {**request, **fields},
    st.sampled_from(
        [
            {"texts": ["a", PRIVATE]},
            {"texts": ["a", PRIVATE], "qdrant": {"collection": "notes"}},
            {"operation": "search", "queries": [PRIVATE], "collection": "notes"},
            {"operation": "search", "queries": ["a"], "collection": "notes", "explain": True, "rerank": "colbert"},
            {"operation": "count", "collection": "notes"},
            {"operation": "delete", "collection": "notes", "ids": [1]},
            {"operation": "score", "pairs": [["a", PRIVATE]]},
        ]
    ),
    st.dictionaries(st.sampled_from(_FIELDS), values, max_size=2),
)
"""Valid requests with arbitrary values in up to two fields."""
