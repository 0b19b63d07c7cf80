"""Only valid points reach a store. Invalid points are repaired or refused one by one."""

from __future__ import annotations

import math
import re
import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedder.vectors import SparseVector
from qdrant_sink.conformance import PAYLOAD_DEPTH_MAX, PAYLOAD_MAX_BYTES, Refusal, conform
from qdrant_sink.edge import EdgeStore
from qdrant_sink.points import Draft, Point, Vectors
from qdrant_sink.searching import Search, SearchOptions, conform_query, run
from tests.sink.samples import SCHEMA, SIZE, draft, sample_vectors, schema_for, search_by, spoilt, unit
from tests.sink.writing import causes, write


def sparse(indices: Any, values: Any) -> SparseVector:
    """Create a sparse vector without validation."""
    return SparseVector(indices, values)


def nested(depth: int) -> Any:
    """Create a payload with this many nested objects."""
    value: Any = "leaf"
    for _ in range(depth):
        value = {"a": value}
    return value


NAN, INF = float("nan"), float("inf")
SOUND = sample_vectors(0)
assert SOUND.dense is not None
assert SOUND.colbert is not None
DENSE, COLBERT = SOUND.dense.tolist(), SOUND.colbert.tolist()

REFUSED_VECTORS: dict[str, tuple[dict[str, Any], str]] = {
    "dense NaN": ({"dense": [NAN, *DENSE[1:]]}, r"dense\[0\]: must be finite in float32, got nan"),
    "dense infinite": ({"dense": [*DENSE[:-1], -INF]}, r"dense\[7\]: must be finite in float32, got -inf"),
    "dense beyond float32": ({"dense": np.array([*DENSE[:-1], 1e39])}, r"dense\[7\]: .* got 1e\+39"),
    "dense too short": ({"dense": DENSE[:-1]}, r"dense: must have shape \(8,\), got \(7,\)"),
    "dense of two dimensions": ({"dense": [DENSE]}, r"got \(1, 8\)"),
    "dense zero": ({"dense": [0.0] * SIZE}, r"dense: the norm must be 0.001 to 1e\+18, got 0"),
    "dense tiny": ({"dense": [3e-4] + [0.0] * 7}, r"the norm must be 0.001 to 1e\+18, got 0.0003"),
    "dense whose square overflows": ({"dense": [1e30] * SIZE}, r"the norm must be .* got 2.83e\+30"),
    "dense of text": ({"dense": ["1"] * SIZE}, r"dense: must hold real numbers, got dtype str"),
    "dense of booleans": ({"dense": [True] * SIZE}, r"dense: must hold real numbers, got dtype bool"),
    "dense of objects": ({"dense": np.array([object()] * SIZE)}, r"got dtype object"),
    "dense complex": ({"dense": np.ones(SIZE, dtype=complex)}, r"got dtype complex128"),
    "dense with None": ({"dense": [None, *DENSE[1:]]}, r"got dtype object"),
    "dense a mapping": ({"dense": dict(enumerate(DENSE))}, r"must be an array or a list of numbers, got dict"),
    "dense masked": ({"dense": np.ma.masked_array(DENSE)}, r"got MaskedArray"),
    "sparse no vector": ({"sparse": {3: 0.5}}, r"sparse: must have indices and values, got dict"),
    "sparse too few values": (
        {"sparse": sparse([1, 2], [0.5])},
        r"sparse: must have as many indices as values, got 2 and 1",
    ),
    "sparse too many values": (
        {"sparse": sparse([1], [0.5, 0.5])},
        r"sparse: must have as many indices as values, got 1 and 2",
    ),
    "sparse 2**32": ({"sparse": sparse([1, 2**32], [0.5, 0.5])}, r"must be 0 to 4294967295, got 4294967296"),
    "sparse -1": ({"sparse": sparse([-1], [0.5])}, r"sparse.indices: must be 0 to 4294967295, got -1"),
    "sparse float index": (
        {"sparse": sparse([1.0], [0.5])},
        r"sparse.indices: must hold integers, got dtype float64",
    ),
    "sparse boolean index": ({"sparse": sparse([True], [0.5])}, r"must hold integers, got dtype bool"),
    "sparse text index": ({"sparse": sparse(["1"], [0.5])}, r"must hold integers, got dtype str"),
    "sparse index beyond 64 bits": (
        {"sparse": sparse([2**70], [0.5])},
        r"must hold integers, got dtype object",
    ),
    "sparse two values": (
        {"sparse": sparse([7, 3, 7], [0.5, 1, 0.25])},
        r"must be unique, got index 7 with two different values",
    ),
    "sparse NaN": (
        {"sparse": sparse([7, 8], [0.5, NAN])},
        r"sparse.values\[1\]: must be finite in float32, got nan",
    ),
    "sparse beyond float32": ({"sparse": sparse([7], [1e39])}, r"must be finite in float32, got 1e\+39"),
    "sparse beyond a finite score": (
        {"sparse": sparse([7], [1e16])},
        r"must be at most 1e\+15 in magnitude, got 1e\+16",
    ),
    "sparse of two dimensions": ({"sparse": sparse([[7]], [[1.0]])}, r"must be one-dimensional, got shapes \(1, 1\)"),
    "colbert empty": ({"colbert": []}, r"colbert: must have shape \(rows > 0, 8\), got \(0,\)"),
    "colbert no rows": ({"colbert": np.empty((0, SIZE))}, r"got \(0, 8\)"),
    "colbert ragged": ({"colbert": [DENSE, DENSE[:-1]]}, r"colbert: rows must have the same length"),
    "colbert empty row": ({"colbert": [[]]}, r"got \(1, 0\)"),
    "colbert wrong size": ({"colbert": [[1.0, 0.0]]}, r"got \(1, 2\)"),
    "colbert NaN": ({"colbert": [COLBERT[0], [NAN, *COLBERT[1][1:]]]}, r"colbert\[1\]\[0\]: must be finite"),
    "colbert zero row": (
        {"colbert": [COLBERT[0], [0.0] * SIZE]},
        r"colbert\[1\]: the norm must be .* got 0$",
    ),
    "colbert beyond float16": ({"colbert": [[7e4] * SIZE]}, r"must be at most 65504 in float16, got 70000.0"),
}


@pytest.mark.parametrize("case", REFUSED_VECTORS)
def test_an_invalid_vector_is_refused_with_field_limit_and_value(case: str) -> None:
    """The refusal of an invalid vector states the field, the limit and the value."""
    fields, message = REFUSED_VECTORS[case]
    refusal = conform(spoilt(3, **fields), SCHEMA)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "invalid_vector"
    assert re.search(message, refusal.message), refusal.message


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"a": np.float32(1)}, "payload.a: must be plain JSON, got float32"),
        ({"a": np.float64(1)}, "payload.a: must be plain JSON, got float64"),
        ({"a": [1, {"b": np.int64(1)}]}, r"payload.a\[1\].b: must be plain JSON, got int64"),
        ({"a": (1, 2)}, "payload.a: must be plain JSON, got tuple"),
        ({"a": b"x"}, "payload.a: must be plain JSON, got bytes"),
        ({"a": {1, 2}}, "payload.a: must be plain JSON, got set"),
        ({"a": NAN}, "payload.a: must be a finite number, got nan"),
        ({"a": [INF]}, r"payload.a\[0\]: must be a finite number, got inf"),
        ({"a": 2**63}, "payload.a: must be a signed 64-bit integer, got 9223372036854775808"),
        ({"a": -(2**63) - 1}, "payload.a: must be a signed 64-bit integer"),
        ({"a": 10**5000}, "payload.a: must be a signed 64-bit integer, got an integer of 16610 bits"),
        ({1: "a"}, "payload: a key must be a string, got int"),
        ({"a": {None: 1}}, "payload.a: a key must be a string, got NoneType"),
        ({"a": "x\ud800"}, "payload.a: must be text, got a lone surrogate at character 1"),
        ({"\ud800": 1}, "payload: a key must be text, got a lone surrogate at character 0"),
        (nested(PAYLOAD_DEPTH_MAX + 1), "must be nested at most 24 levels deep"),
        (["a"], "payload: must be an object, got a list"),
    ],
)
def test_a_payload_that_is_not_json_is_refused_with_its_path(payload: Any, message: str) -> None:
    """A payload that a transport could not carry unchanged is refused, and the refusal names the key."""
    refusal = conform(draft(5, payload=payload), SCHEMA)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "invalid_payload"
    assert re.search(message, refusal.message), refusal.message


@pytest.mark.parametrize(
    "large",
    [
        {"a": "x" * 4_000_000},
        {"a": ["é" * 1_000_000] * 2},
        {"n": [0] * 500_001},
        {"k" * 4_000_001: 1},
        {"n": [[]] * 500_001},
        {"n": [{}] * 500_001},
        {"n": [""] * 500_001},
        {"n": [[[None] * 5000]] * 100},
    ],
)
def test_a_payload_is_at_most_four_megabytes(large: dict[str, Any]) -> None:
    """Keys, strings (in UTF-8) and all values count, even empty ones. The refusal states the limit and the size."""
    refusal = conform(draft(5, payload=large), SCHEMA)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "invalid_payload"
    assert refusal.message.startswith("payload: must be at most 4000000 bytes including the text, got 400")
    assert isinstance(conform(draft(5, payload={"a": "x" * (PAYLOAD_MAX_BYTES - 9)}), SCHEMA), Point)


def test_a_payload_that_contains_itself_is_refused() -> None:
    """A payload with a cycle is refused instead of being traversed forever."""
    payload: dict[str, Any] = {}
    payload["self"] = payload
    assert isinstance(conform(draft(0, payload=payload), SCHEMA), Refusal)


@pytest.mark.parametrize("point_id", [-1, 2**64, True, 1.0, "1", None, np.int64(3)])
def test_an_id_that_is_neither_u64_nor_uuid_is_refused(point_id: Any) -> None:
    """An id that Qdrant does not support is refused before it reaches a store."""
    refusal = conform(draft(0, id=point_id), SCHEMA)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "invalid_id"


@pytest.mark.parametrize("point_id", [0, 2**64 - 1, uuid.uuid4()])
def test_the_whole_range_of_ids_is_kept(edge_store: EdgeStore, point_id: Any) -> None:
    """The smallest and the largest integer id and any UUID are stored and returned unchanged."""
    edge_store.ensure("ids", SCHEMA)
    assert write(edge_store, "ids", [draft(0, id=point_id)], SCHEMA).stored == 1
    assert edge_store.existing("ids", [point_id]) == {point_id}


def test_repairs_lose_nothing() -> None:
    """Indices are sorted, zeros and repetitions of the same weight are dropped, and signs are kept."""
    point = conform(spoilt(0, sparse=sparse([9, 2**32 - 1, 4, 9, 1], [0.5, 0.25, 0.0, 0.5, -1.0])), SCHEMA)
    assert isinstance(point, Point)
    assert point.sparse is not None
    assert point.sparse.indices.tolist() == [1, 9, 2**32 - 1]
    assert point.sparse.values.tolist() == [-1.0, 0.5, 0.25]
    assert point.sparse.indices.dtype == np.uint32
    assert point.sparse.values.dtype == np.float32


@pytest.mark.parametrize("weights", [([], []), ([3], [0.0]), ([3], [1e-60])])
def test_a_text_without_weights_is_stored_without_sparse(edge_store: EdgeStore, weights: Any) -> None:
    """An empty text has no lexical weights. Its point is stored and can be searched by its dense vector."""
    sample = spoilt(1, sparse=sparse(*weights))
    edge_store.ensure("docs", SCHEMA)
    assert write(edge_store, "docs", [sample], SCHEMA).stored == 1
    [[hit]] = run(edge_store, "docs", [search_by(dense=sample.vectors.dense, using=("dense",))])
    assert hit.id == 1


def test_a_point_without_vectors_is_refused() -> None:
    """A point that no search could return is refused."""
    refusal = conform(spoilt(2, dense=None, colbert=None, sparse=sparse([], [])), SCHEMA)
    assert isinstance(refusal, Refusal)
    assert "only a sparse vector without weights" in refusal.message
    assert isinstance(conform(spoilt(2, dense=None, colbert=None, sparse=None), SCHEMA), Refusal)


@pytest.mark.parametrize("rows", [1023, 1024])
def test_colbert_rows_have_the_limit_of_the_server(rows: int) -> None:
    """1023 rows of 1024 are accepted and 1024 are not. The refusal has its own code and lists the ways out."""
    schema = schema_for(1024, 1024)
    outcome = conform(Draft(0, 0, {}, sample_vectors(0, rows=rows, size=1024)), schema)
    if rows == 1023:
        assert isinstance(outcome, Point)
    else:
        assert isinstance(outcome, Refusal)
        assert outcome.code == "colbert_too_long"
        assert "at most 1023 rows of 1024, got 1024; split the text (chunk)" in outcome.message
        assert 'colbertPooling: "mean"' in outcome.message
        assert "leave colbert out of vectors" in outcome.message


def test_float16_rows_stay_float16() -> None:
    """Rows in float16 are not converted to float32."""
    half = unit(np.random.default_rng(0).normal(size=(3, SIZE))).astype(np.float16)
    point = conform(spoilt(0, colbert=half), SCHEMA)
    assert isinstance(point, Point)
    assert point.colbert is not None
    assert point.colbert.dtype == np.float16


def test_a_query_follows_the_same_rules() -> None:
    """An invalid query vector is refused, and a sparse one without weights is left out."""
    nan = np.full(SIZE, NAN, dtype=np.float32)
    refusal = conform_query(Vectors(dense=nan), SearchOptions(using=("dense",)), SCHEMA)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "invalid_vector"
    absent = conform_query(Vectors(), SearchOptions(using=("dense",)), SCHEMA)
    assert isinstance(absent, Refusal)
    assert "dense: the search needs a dense vector of the query" in absent.message
    sound = conform_query(Vectors(SOUND.dense, sparse([], [])), SearchOptions(), SCHEMA)
    assert isinstance(sound, Search)
    assert sound.vectors.sparse is None


# Adversarial input: the engine must accept and return every point that passes validation.

numbers = st.one_of(
    st.floats(width=64),
    st.sampled_from([NAN, INF, -INF, 1e39, -1e39, 0.0, -0.0, 1e-50, 3.4e38, 65504.0, 65520.0, 1e-3, 1.0]),
    st.floats(-2, 2),
)
sizes = st.sampled_from([SIZE, SIZE, SIZE, SIZE, 0, 1, SIZE - 1, SIZE + 1])
rows_of_numbers = sizes.flatmap(lambda n: st.lists(numbers, min_size=n, max_size=n))
sound_rows = st.lists(st.floats(-1, 1), min_size=SIZE, max_size=SIZE)
dtypes = st.sampled_from([None, "f2", "f4", "f8", ">f4", "i8", "O", "U8", "?"])


def as_array(values: list[Any], dtype: str | None) -> Any:
    """Convert the values to an array of this dtype if possible."""
    if dtype is None:
        return values
    try:
        with np.errstate(all="ignore"):
            return np.array(values).astype(dtype)
    except (ValueError, OverflowError, TypeError):
        return values


dense_vectors = st.one_of(st.none(), st.builds(as_array, st.one_of(rows_of_numbers, sound_rows), dtypes))
indices = st.lists(
    st.one_of(st.integers(0, 30), st.sampled_from([0, -1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64, True, 1.0, "1"])),
    max_size=8,
)
sparse_vectors = st.one_of(
    st.none(),
    st.builds(sparse, indices, st.lists(numbers, max_size=8)),
    st.lists(st.tuples(st.integers(0, 50), st.floats(-3, 3)), max_size=8).map(
        lambda pairs: sparse([i for i, _ in pairs], [v for _, v in pairs])
    ),
)
colbert_vectors = st.one_of(
    st.none(),
    st.builds(as_array, st.lists(st.one_of(rows_of_numbers, sound_rows), max_size=4), dtypes),
    st.builds(as_array, st.lists(sound_rows, min_size=1, max_size=4), dtypes),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(codec=None), max_size=5),
    st.sampled_from([np.float32(1), b"x", "\ud800"]),
)
payloads = st.dictionaries(
    st.text(max_size=3),
    st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    ),
    max_size=3,
)
ids = st.one_of(st.integers(1000, 2**64 - 1), st.uuids(), st.sampled_from([-1, 2**64, "1"]))
drafts = st.builds(
    lambda point_id, payload, dense, weights, rows: Draft(1, point_id, payload, Vectors(dense, weights, rows)),
    ids,
    payloads,
    dense_vectors,
    sparse_vectors,
    colbert_vectors,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(hostiles=st.lists(drafts, min_size=1, max_size=8, unique_by=lambda hostile: hostile.id))
def test_valid_points_are_stored_and_invalid_ones_do_not_affect_the_others(
    edge_store: EdgeStore, hostiles: list[Draft]
) -> None:
    """Every point is stored and returned by its own vectors, or refused by index. No input damages a collection."""
    edge_store.ensure("hostile", SCHEMA)
    batch = [draft(0), *(replace(hostile, index=1 + i) for i, hostile in enumerate(hostiles)), draft(100)]
    indices, outcomes = [entry.index for entry in batch], [conform(entry, SCHEMA) for entry in batch]
    points = [outcome for outcome in outcomes if isinstance(outcome, Point)]
    refusals = [
        (index, outcome.code) for index, outcome in zip(indices, outcomes, strict=True) if isinstance(outcome, Refusal)
    ]
    report = write(edge_store, "hostile", batch, SCHEMA)
    assert (report.submitted, report.stored) == (len(batch), len(points))
    assert causes(report) == refusals
    assert edge_store.existing("hostile", [point.id for point in points]) == {point.id for point in points}
    for point in points:
        _assert_searchable(edge_store, point)
    search = search_by(dense=batch[0].vectors.dense, using=("dense",), limit=len(batch))
    [neighbours] = run(edge_store, "hostile", [search])
    assert neighbours[0].score == pytest.approx(1.0, abs=1e-5)
    assert all(math.isfinite(hit.known_score) for hit in neighbours)
    edge_store.delete("hostile", ids=[point.id for point in points])


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(hostile=drafts)
def test_nothing_makes_conformance_fail(hostile: Draft) -> None:
    """Any input results in a valid point or in a refusal with a short message, never in an exception."""
    outcome = conform(hostile, SCHEMA)
    if isinstance(outcome, Refusal):
        assert 0 < len(outcome.message) < 250
        return
    if outcome.dense is not None:
        assert outcome.dense.dtype == np.float32
        assert 1e-3 * 0.999 <= np.linalg.norm(outcome.dense) < math.inf
    if outcome.sparse is not None:
        assert (np.diff(outcome.sparse.indices.astype(np.int64)) > 0).all()
        assert np.isfinite(outcome.sparse.values).all()
        assert outcome.sparse.values.all()
    if outcome.colbert is not None:
        assert np.isfinite(outcome.colbert.astype(np.float16)).all()


def _equal(stored: Any, sent: Any) -> bool:
    """Whether the values are equal. The engine may change a float in its last place."""
    if isinstance(sent, float):
        return isinstance(stored, float) and math.isclose(stored, sent, rel_tol=1e-15)
    if isinstance(sent, list):
        return len(stored) == len(sent) and all(map(_equal, stored, sent))
    if isinstance(sent, dict):
        return stored.keys() == sent.keys() and all(_equal(stored[key], sent[key]) for key in sent)
    return type(stored) is type(sent) and bool(stored == sent)


def _assert_searchable(store: EdgeStore, point: Point) -> None:
    alone = {"must": [{"has_id": [point.id if isinstance(point.id, int) else str(point.id)]}]}
    searches = []
    if point.dense is not None:
        searches.append(search_by(dense=point.dense, using=("dense",), where=alone))
    if point.sparse is not None:
        searches.append(search_by(sparse=point.sparse, using=("sparse",), where=alone))
    if point.colbert is not None:
        searches.append(search_by(colbert=point.colbert.astype(np.float32), using=("colbert",), where=alone))
    for [hit] in run(store, "hostile", searches):
        assert hit.id == point.id
        assert math.isfinite(hit.known_score)
        assert _equal(hit.payload, point.payload)
    if point.dense is not None:
        [top, *_] = run(store, "hostile", [search_by(dense=point.dense, using=("dense",), limit=1)])[0]
        assert top.score == pytest.approx(1.0, abs=1e-3)
