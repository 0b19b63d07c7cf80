"""Extract the parts of a vendor's error message that may be shown to a caller.

An error message of a server or of the engine can quote hosts, paths, payloads and texts, so it is never shown as a
whole. Only known phrases that consist of field names, limits and numbers are shown.
"""

from __future__ import annotations

import re

_HARMLESS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"vector dimension error: expected dim: \d+, got \d+",
        r"not existing vector name(?: error)?",
        r"conversion between (?:sparse|dense|multi) and (?:regular|sparse|dense|multi) vectors?[a-z ]*",
        r"must be unique",
        r"must be the same length(?: as indices)?",
        r"multivector[a-z ]*(?:empty|same (?:length|dimension)s?|too large)",
        r"limit exceeded \d+ > \d+ for \"[a-z_ ]+\"",
        r"rate limit(?:er)?(?: is)? exceeded",
        r"request larger than rate limiter capacity",
        r"rate limiting exceeded",
        r"index required but not found",
        r"storage locked",
        r"already exists",
        r"doesn't exist",
        r"recursion limit (?:exceeded|reached)",
        r"payload too large",
        r"(?:message|payload|body)[a-z ]*(?:larger|bigger|exceeds)[a-z :(]*\d*(?: vs\.? \d+)?",
        r"no space left on device",
        r"not enough (?:disk )?space",
        r"deadline exceeded",
        r"connection (?:refused|reset)",
        r"failed to connect",
        r"timed? ?out",
    )
)


def reason(message: str | None) -> str:
    """Return the harmless phrases of a vendor's message in their order; empty if it contains none of them."""
    text = (message or "")[:4000]
    phrases = sorted({(match.start(), match.group()) for pattern in _HARMLESS for match in pattern.finditer(text)})
    return "; ".join(phrase.strip() for _, phrase in phrases)[:200]
