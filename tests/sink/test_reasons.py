"""What a server says reaches the user in its fixed words and numbers; names and texts in a message do not."""

from __future__ import annotations

import re
from collections.abc import Callable

import grpc  # type: ignore[import-untyped,unused-ignore]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdrant_sink.errors import AccessDenied, StoreRejected
from qdrant_sink.reasons import missing_index, reason
from qdrant_sink.server import ServerStore
from tests.sink.grpc_double import GrpcDouble

PRIVATE = "Zebra 10.1.2.3"

MESSAGES = {
    'Bad request: Limit exceeded 108 > 100 for "limit". Help: Reduce the "limit" parameter to or below 100.': (
        'Limit exceeded 108 > 100 for "limit"'
    ),
    'Bad request: Limit exceeded 3.5 > 1 for "oversampling". Help: Reduce the "oversampling" parameter.': (
        'Limit exceeded 3.5 > 1 for "oversampling"'
    ),
    'Bad request: Limit exceeded 9 > 4 for "search batch size". Help: Reduce.': (
        'Limit exceeded 9 > 4 for "search batch size"'
    ),
    "Bad request: Exact search disabled!. Help: Set exact=false.": "Exact search disabled",
    "Bad request: Filter condition limit reached (2 > 1). Help: Reduce the amount of conditions of your filter.": (
        "Filter condition limit reached (2 > 1)"
    ),
    "Bad request: Condition size limit reached (101 > 100). Help: Reduce the size of your condition.": (
        "Condition size limit reached (101 > 100)"
    ),
    f"Bad request: Request is forbidden on '{PRIVATE}' because global vector indexing is disabled "
    "(hnsw_config.m = 0). Help: Use tenant-specific filter": (
        "Request is forbidden because global vector indexing is disabled"
    ),
    "Bad request: Request is forbidden because vector indexing is disabled (hnsw_config.m = 0 and "
    "hnsw_config.payload_m = 0). Help: Enable vector indexing": (
        "Request is forbidden because vector indexing is disabled"
    ),
    "Bad request: Max points count limit of 5 reached!": "Max points count limit of 5 reached",
    "Bad request: Max vector storage size limit of 12MB reached!": "Max vector storage size limit of 12MB reached",
    "Bad request: Max payload storage size limit of 12MB reached!": "Max payload storage size limit of 12MB reached",
    f"Bad request: Sparse vector '{PRIVATE}' has a limit of 5 indices, but 10 were provided!": (
        "Sparse vector has a limit of 5 indices, but 10 were provided"
    ),
    f"Bad request: Multivector '{PRIVATE}' has a limit of 5 vectors, but 10 were provided!": (
        "Multivector has a limit of 5 vectors, but 10 were provided"
    ),
    "Bad request: Collection already has the maximum number of payload indices (100). Help: Please delete one.": (
        "Collection already has the maximum number of payload indices (100)"
    ),
    f"Bad request: Can't create collection with name {PRIVATE}. Max collections limit reached: 1000": (
        "Max collections limit reached: 1000"
    ),
    "Bad request: Resident memory usage is at 85% of total memory, exceeding the configured limit of 80%. Help: x": (
        "Resident memory usage is at 85% of total memory, exceeding the configured limit of 80%"
    ),
    "Bad request: Disk usage is at 91% of total capacity, exceeding the configured limit of 90%. Help: Reduce": (
        "Disk usage is at 91% of total capacity, exceeding the configured limit of 90%"
    ),
    "Rate limiting exceeded: Write rate limit exceeded: Operation requires 3 tokens but only 0.5 were available. "
    "Retry after 30s": (
        "Rate limiting exceeded; Write rate limit exceeded; Operation requires 3 tokens but only 0.5 were available"
    ),
    "Rate limiting exceeded: Read rate limit exceeded, request larger than rate limiter capacity, please try to "
    "split your request": (
        "Rate limiting exceeded; Read rate limit exceeded; request larger than rate limiter capacity"
    ),
    f'Bad request: Index of type "Text" found for "{PRIVATE}". Help: Create an index supporting `match`.': (
        "Index of type Text found"
    ),
    f'Bad request: Index required but not found for "{PRIVATE}". Help: Create an index supporting `match`.': (
        "Index required but not found"
    ),
    "Service internal error: 1 of 1 read operations failed:\n  Service internal error: Failed to search,  Qdrant was "
    f"killed during initialization. Most likely it's Out-of-Memory.\n{PRIVATE}": (
        "Qdrant was killed during initialization; Most likely it's Out-of-Memory"
    ),
    "Service internal error: Failed to count,  Dirty shard - shard is not fully initialized": (
        "shard is not fully initialized"
    ),
    "Shard temporarily unavailable: The replica set for shard 1 on peer 7 does not have enough active replicas": (
        "Shard temporarily unavailable; does not have enough active replicas"
    ),
    f"1 out of 3 shards failed to apply operation. First error captured: {PRIVATE}": (
        "1 out of 3 shards failed to apply operation"
    ),
    f"Storage locked: {PRIVATE}": "Storage locked",
    "Forbidden: Global manage access is required": "Global manage access is required",
    "Forbidden: Write access to collection zebra-1.0 is required": "Write access is required",
    "Forbidden: Access to collection my zebra, 日本 is required": "Access is required",
    "Forbidden: Access to collection zebra-1.0 is required": "Access is required",
    "Forbidden: Manage access for this operation is required": "Manage access for this operation is required",
    f"Wrong input: Collection `{PRIVATE}` already exists!": "already exists",
    f"Wrong input: Not existing vector name error: {PRIVATE}": "Not existing vector name error",
    "Malformed Match condition": "Malformed Match condition",
    "Format error in JSON body: data did not match any variant of untagged enum MatchInterface at line 1 column 69": (
        "data did not match any variant of untagged enum"
    ),
    "Format error in JSON body: Expected some form of condition, which can be a field condition": (
        "Expected some form of condition"
    ),
    "Validation error in body: [points[0].data: multi vector must not be empty]": ("multi vector must not be empty"),
    "Validation error in body: [data: all vectors must have the same dimension, found vector with dimension 3]": (
        "all vectors must have the same dimension, found vector with dimension 3"
    ),
    "Validation error in body: [data: Total size of all vectors (1048576) must be less than 1048576]": (
        "Total size of all vectors (1048576) must be less than 1048576"
    ),
    "JSON payload (33554433 bytes) is larger than allowed (limit: 33554432 bytes).": (
        "payload (33554433 bytes) is larger than allowed (limit: 33554432 bytes)"
    ),
    "grpc: received message larger than max (5000000 vs. 4194304)": "message larger than max (5000000 vs. 4194304)",
    "Error, decoded message length too large: found 5000000 bytes, the limit is: 4194304 bytes": (
        "message length too large: found 5000000 bytes, the limit is: 4194304 bytes"
    ),
    "No space left on device: WAL buffer size exceeds available disk space": "No space left on device",
}
"""Messages as servers write them, and what of them is shown."""


@pytest.mark.parametrize("message", MESSAGES)
def test_the_fixed_words_and_numbers_of_a_server_are_shown(message: str) -> None:
    """A refusal says which limit was exceeded, by how much, or in which state the server is."""
    assert reason(message) == MESSAGES[message]


words = st.text(st.characters(codec="utf-8", exclude_characters="'\"`")).filter(lambda text: not reason(text))


@given(before=words, word=st.from_regex("Q[a-z]{8,20}Q", fullmatch=True), after=words)
def test_no_word_of_a_text_is_shown_whatever_surrounds_it(before: str, word: str, after: str) -> None:
    """A word of the user next to the fixed words of a server is not part of what is shown."""
    text = f"{before} {word} {after}"
    for message in (
        f"Wrong input: Vector dimension error: expected dim: 8, got 3 {text}",
        f"Conversion between sparse and regular vectors failed {text}",
        f"Sparse vector '{text}' has a limit of 5 indices, but 10 were provided!",
        f"message larger than max {text}",
        f"Malformed {text} condition",
        f"payload {text} is larger than allowed",
    ):
        assert word not in reason(message)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            'Bad request: Index required but not found for "k" of one of the following types: [keyword, uuid]. Help: x',
            ("k", "keyword, uuid"),
        ),
        (
            'Index required but not found for ""user key".b[]" of one of the following types: [integer]. Help: x',
            ('"user key".b[]', "integer"),
        ),
        (
            'Index required but not found for "t" of one of the following types: [text (with phrase_matching: true)].',
            ("t", "text (with phrase_matching: true)"),
        ),
        ("Bad request: Exact search disabled!. Help: Set exact=false.", None),
    ],
)
def test_a_missing_index_is_found_by_its_key_and_types(message: str, expected: tuple[str, str] | None) -> None:
    """Keys with quotes and dots, and every type of index, are recognised."""
    assert missing_index(message) == expected


def test_a_denied_call_says_which_right_is_missing(server_store: ServerStore, double: GrpcDouble) -> None:
    """The error of a key that may not do something names the right that it lacks."""
    details = "Forbidden: Write access to collection docs is required"
    double.fail("Count", grpc.StatusCode.PERMISSION_DENIED, details=details)
    with pytest.raises(AccessDenied) as caught:
        server_store.count("docs")
    assert caught.value.message == (
        "Qdrant denied access: PERMISSION_DENIED, Write access is required; check QDRANT_API_KEY and its permissions"
    )


def test_a_missing_index_says_what_to_do(server_store: ServerStore, double: GrpcDouble) -> None:
    """The refusal of a filter without an index names the key and the setting that creates the index."""
    details = 'Bad request: Index required but not found for "topic" of one of the following types: [keyword]. Help: x'
    calls: tuple[Callable[[], object], ...] = (
        lambda: server_store.count("docs", {"must": [{"key": "topic", "match": {"value": "a"}}]}),
        lambda: server_store.delete("docs", where={"must": [{"key": "topic", "match": {"value": "a"}}]}),
    )
    double.fail("Count", grpc.StatusCode.INVALID_ARGUMENT, times=2, details=details)
    for call in calls:
        with pytest.raises(StoreRejected, match=re.escape("'topic' has no index")) as caught:
            call()
        assert "(keyword)" in caught.value.message
        assert "payloadIndexes in QDRANT_COLLECTION_CONFIG" in caught.value.message
