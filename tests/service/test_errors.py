"""Errors in JSON: every error has a code, a status and four keys, and says whether it is retryable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import embedder.errors
import qdrant_sink.errors
from embedder import (
    Cancelled,
    DeviceLost,
    FieldError,
    Internal,
    InvalidRequest,
    ModelFailure,
    NotFound,
    Overloaded,
    WorkerError,
)
from qdrant_sink import (
    AccessDenied,
    CallAbandoned,
    CollectionChanged,
    Difference,
    Disagreement,
    DuplicateId,
    FeatureMissing,
    IndexRequired,
    LimitExceeded,
    ModelMismatch,
    NothingTaken,
    Refusal,
    SchemaMismatch,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    Superseded,
)
from qdrant_sink.errors import AnswerTooLarge, PointMissing
from service.connection_errors import (
    BodyStalled,
    HeadStalled,
    HeadTooLarge,
    TargetTooLong,
    TooManyConnections,
)
from service.operations import IngestFailed, IngestReport, RejectedPoint
from service.wire import CODES, error_answer
from service.wire.codec import render_error
from service.wire.errors import (
    BodyTooLarge,
    ForeignOrigin,
    Loading,
    MethodNotAllowed,
    NotJson,
    ResponseTooLarge,
    ShuttingDown,
    Unauthorized,
    UnknownCoding,
    UnknownPath,
    WrongHost,
    cause_of,
    code_for,
    code_of,
    retry_after_s,
    wire_error,
)
from service.wire.tei import EmptyInput
from tests.service import client

ROOT = Path(__file__).parents[2]

ABSTRACT = (StoreError,)
"""Base classes that are never raised."""

EXPECTED = {
    InvalidRequest: ("invalid_request", 400, False),
    Unauthorized: ("invalid_request", 401, False),
    MethodNotAllowed: ("invalid_request", 405, False),
    BodyStalled: ("invalid_request", 408, True),
    HeadStalled: ("invalid_request", 408, True),
    HeadTooLarge: ("invalid_request", 431, False),
    TargetTooLong: ("invalid_request", 414, False),
    WrongHost: ("invalid_request", 421, False),
    ForeignOrigin: ("invalid_request", 403, False),
    BodyTooLarge: ("invalid_request", 413, False),
    NotJson: ("invalid_request", 415, False),
    UnknownCoding: ("invalid_request", 415, False),
    NotFound: ("not_found", 404, False),
    UnknownPath: ("not_found", 404, False),
    Overloaded: ("overloaded", 429, True),
    TooManyConnections: ("overloaded", 503, True),
    Loading: ("overloaded", 503, True),
    ResponseTooLarge: ("response_too_large", 413, False),
    ModelFailure: ("model_failure", 500, False),
    DeviceLost: ("model_failure", 503, True),
    CallAbandoned: ("store_unavailable", 503, True),
    StoreUnavailable: ("store_unavailable", 503, True),
    StoreRejected: ("store_rejected", 502, False),
    IndexRequired: ("store_rejected", 502, False),
    LimitExceeded: ("store_rejected", 502, False),
    AnswerTooLarge: ("store_rejected", 502, False),
    NothingTaken: ("store_rejected", 502, False),
    AccessDenied: ("store_rejected", 502, False),
    FeatureMissing: ("store_rejected", 502, False),
    SchemaMismatch: ("schema_mismatch", 409, False),
    ModelMismatch: ("schema_mismatch", 409, False),
    DuplicateId: ("duplicate_id", 409, False),
    Superseded: ("superseded", 409, False),
    CollectionChanged: ("not_found", 404, True),
    PointMissing: ("not_found", 404, False),
    Cancelled: ("cancelled", 503, False),
    ShuttingDown: ("cancelled", 503, True),
    Internal: ("internal", 500, False),
    EmptyInput: ("invalid_request", 400, False),
}
"""Code, status and `retryable` by type."""


def of_kind(kind: type[WorkerError]) -> WorkerError:
    """An error of this type."""
    if kind is LimitExceeded:
        return LimitExceeded("m", field="limit", maximum=1)
    return ResponseTooLarge("m", size=2, limit=1) if kind is ResponseTooLarge else kind("m")


def all_kinds(base: type[WorkerError]) -> Iterator[type[WorkerError]]:
    """Every type of error that the project defines below a base."""
    for kind in base.__subclasses__():
        if kind.__module__.startswith(("embedder", "qdrant_sink", "service")):
            yield kind
        yield from all_kinds(kind)


def test_every_error_of_a_request_has_its_place_on_the_wire() -> None:
    """No error can reach a caller without a code and a status; the codes are those of the page on errors."""
    assert set(all_kinds(WorkerError)) - {*ABSTRACT, IngestFailed} == set(EXPECTED)
    assert {code for code, _, _ in EXPECTED.values()} == set(CODES) == client.CODES


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_an_error_has_its_code_its_status_and_four_keys(kind: type[WorkerError]) -> None:
    """The JSON of an error has its code and says whether it is retryable."""
    code, status, retryable = EXPECTED[kind]
    error = of_kind(kind)
    answer = error_answer(error)
    assert list(answer) == ["error", "error_code", "retryable", "details"]
    assert (answer["error"], answer["error_code"], answer["retryable"]) == ("m", code, retryable)
    assert (wire_error(error).code, wire_error(error).status) == (code, status)
    assert (retry_after_s(error) is not None) == (status in (429, 503))


@pytest.mark.parametrize(
    ("error", "details"),
    [
        (InvalidRequest("m"), {}),
        (InvalidRequest("must be").at("texts[1]"), {"errors": [{"field": "texts[1]", "message": "texts[1]: must be"}]}),
        (NotFound("m", fields=[FieldError("model", "m")]), {"errors": [{"field": "model", "message": "m"}]}),
        (NotFound("m", collection="notes", ids=["a", 7]), {"collection": "notes", "ids": ["a", 7]}),
        (ResponseTooLarge("m", size=7, limit=5), {"bytes": 7, "limit": 5}),
        (StoreUnavailable("m", retry_after_s=2.5), {"retry_after_s": 2.5}),
        (
            SchemaMismatch("m", collection="notes", differences=[Difference("dense.size", 8, 192)]),
            {"collection": "notes", "differences": [{"field": "dense.size", "found": 8, "wanted": 192}]},
        ),
        (
            ModelMismatch("m", collection="notes", disagreements=[Disagreement("sparse", 0.03141, 8)]),
            {"collection": "notes", "vectors": [{"kind": "sparse", "cosine": 0.0314, "texts": 8}]},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_details_have_values_for_programs(error: WorkerError, details: dict[str, object]) -> None:
    """The details contain fields, ids, sizes and differences as values."""
    assert error_answer(error)["details"] == details


@pytest.mark.parametrize(("asked", "header"), [(None, 5), (0.2, 1), (7.4, 7)])
def test_the_store_decides_how_long_to_wait(asked: float | None, header: int) -> None:
    """`Retry-After` is the store's own value, in whole seconds and at least 1, or a default."""
    assert retry_after_s(StoreUnavailable("m", retry_after_s=asked)) == header


def test_a_failed_ingest_has_the_code_of_its_cause_and_its_report() -> None:
    """The code and the status are those of the cause, and the details contain the report."""
    report = IngestReport(
        "notes",
        stored=1,
        skipped=0,
        rejected=(
            RejectedPoint(1, None, Refusal("invalid_payload", "payload.n: not finite")),
            RejectedPoint(2, 0, StoreUnavailable("gone")),
        ),
    )
    error = IngestFailed(StoreUnavailable("1 of 3 points were not stored: gone", retry_after_s=3.0), report)
    assert render_error(error) == {
        "error": "1 of 3 points were not stored: gone",
        "error_code": "store_unavailable",
        "retryable": True,
        "details": {
            "retry_after_s": 3.0,
            "upsert": {
                "collection": "notes",
                "stored": 1,
                "skipped": 0,
                "rejected": [
                    {"index": 1, "code": "invalid_payload", "message": "payload.n: not finite"},
                    {"index": 2, "chunk": 0, "code": "store_unavailable", "message": "gone"},
                ],
            },
        },
    }
    assert (wire_error(error).status, retry_after_s(error)) == (503, 3)
    assert error.retryable
    assert cause_of(error) is error.cause
    assert not IngestFailed(StoreRejected("no"), report).retryable


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_a_type_has_the_code_of_its_errors(kind: type[WorkerError]) -> None:
    """The code of a type equals that of its errors."""
    assert code_for(kind) == code_of(of_kind(kind)) == EXPECTED[kind][0]


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_another_message_leaves_the_rest_of_an_error(kind: type[WorkerError]) -> None:
    """An error with another message keeps its class and its attributes."""
    error = of_kind(kind)
    other = error.at("queries[3]")
    assert type(other) is kind
    assert (other.message, str(other), error.message) == ("queries[3]: m", "queries[3]: m", "m")
    assert {**vars(other), "message": "", "fields": ()} == {**vars(error), "message": "", "fields": ()}


def test_the_page_says_of_every_code_whether_a_retry_helps() -> None:
    """Its table has every code, and calls retryable what is: always, never, or in the case that it names."""
    table = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table.partition("|---|")[2], re.MULTILINE))
    assert set(rows) == set(CODES)
    for code, said in rows.items():
        retryable = {can_help for named, _, can_help in EXPECTED.values() if named == code}
        assert {"yes": {True}, "no": {False}}.get(said, {True, False}) == retryable, code


@pytest.mark.parametrize("module", [embedder.errors, qdrant_sink.errors], ids=["embedder", "qdrant_sink"])
def test_the_docstring_draws_every_class(module: ModuleType) -> None:
    """The class tree in a module's docstring is complete."""
    for kind in EXPECTED:
        if kind.__module__ == module.__name__:
            assert re.search(rf"── {kind.__name__}\b", module.__doc__ or ""), kind
