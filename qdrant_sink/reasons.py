"""Extract the parts of a vendor's error message that may be shown to a caller.

An error message of a server or of the engine can quote hosts, paths, payloads and texts, so it is never shown as a
whole. Only known phrases that consist of field names, limits and numbers are shown.
"""

from __future__ import annotations

import re

_NUMBER = r"\d+(?:\.\d+)?"

_HARMLESS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # vectors and points
        r"vector dimension error: expected dim: \d+, got \d+",
        r"not existing vector name(?: error)?",
        r"conversion between (?:sparse|dense|multi) and (?:regular|sparse|dense|multi) vectors?(?: failed)?",
        r"must be unique",
        r"must be the same length(?: as indices)?",
        r"multi vector must not be empty",
        r"all vectors must (?:be non-empty|have the same dimension, found vector with dimension \d+)",
        r"total size of all vectors \(\d+\) must be less than \d+",
        r"(sparse vector|multivector) '[^']*' (has a limit of \d+ (?:indices|vectors), but \d+ were provided)",
        # strict mode and the limits of a server
        rf"limit exceeded {_NUMBER} > {_NUMBER} for \"[a-z_ ]+\"",
        r"exact search disabled",
        r"(request is forbidden)(?: on '[^']*')? (because (?:global )?vector indexing is disabled)",
        r"(?:filter condition|condition size) limit reached \(\d+ > \d+\)",
        r"max (?:points count|vector storage size|payload storage size) limit of \d+(?:MB)? reached",
        r"collection already has the maximum number of payload indices \(\d+\)",
        r"max collections limit reached: \d+",
        r"resident memory usage is at \d+% of total memory, exceeding the configured limit of \d+%",
        r"disk usage is at \d+% of total capacity, exceeding the configured limit of \d+%",
        r"index required but not found",
        r"no range index for `order_by` key",
        r"(index of type) \"([a-z]+)\" (found)",
        rf"operation requires \d+ tokens but only {_NUMBER} were available",
        r"(?:(?:read|write) )?rate limit(?:er)?(?: is)? exceeded",
        r"request larger than rate limiter capacity",
        r"rate limiting exceeded",
        # rights of a key
        r"global (?:manage )?access is required",
        r"((?:write )?access) to collection .{1,255}? (is required)",
        r"manage access for this operation is required",
        # requests that the server cannot read
        r"malformed match condition",
        r"data did not match any variant of untagged enum",
        r"expected some form of condition",
        r"recursion limit (?:exceeded|reached)",
        r"payload too large",
        r"message larger than max \(\d+ vs\. \d+\)",
        r"message length too large: found \d+ bytes, the limit is: \d+ bytes",
        r"payload \(\d+ bytes\) is larger than allowed \(limit: \d+ bytes\)",
        # state of the server
        r"storage locked",
        r"(?:qdrant is (?:loaded|running) )?in recovery mode",
        r"qdrant was killed during initialization",
        r"most likely it's out-of-memory",
        r"shard is not fully initialized",
        r"shard temporarily unavailable",
        r"\d+ out of \d+ shards failed to apply operation",
        r"does not have enough active replicas",
        r"has no active replica",
        r"already exists",
        r"doesn't exist",
        r"no space left on device",
        r"not enough (?:disk )?space",
        r"out of memory, free: \d+",
        r"deadline exceeded",
        r"connection (?:refused|reset)",
        r"failed to connect",
        r"timed? ?out",
    )
)
"""Patterns of the phrases. Of a pattern with groups, only the groups are shown, because a name stands between them."""

_MISSING_INDEX = re.compile(
    r"index required but not found for \"(?P<key>.{1,200}?)\" of one of the following types: "
    r"\[(?P<types>[a-z_ ,:()]{1,200})\]",
    re.IGNORECASE,
)


def reason(message: str | None) -> str:
    """Return the harmless phrases of a vendor's message in their order; empty if it contains none of them."""
    text = (message or "")[:4000]
    phrases = sorted({(match.start(), _phrase(match)) for pattern in _HARMLESS for match in pattern.finditer(text)})
    return "; ".join(phrase.strip() for _, phrase in phrases)[:200]


def missing_index(message: str) -> tuple[str, str] | None:
    """Return the payload key of a filter that lacks an index in strict mode, and the types of index that would do.

    The key is one of the caller's own filter. Returns None for any other message.
    """
    match = _MISSING_INDEX.search(message[:4000])
    return None if match is None else (match["key"], match["types"])


def _phrase(match: re.Match[str]) -> str:
    return " ".join(match.groups()) if match.groups() else match.group()
