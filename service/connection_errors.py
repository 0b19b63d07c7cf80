"""Errors of clients that a server refuses or cuts before it knows what they want."""

from __future__ import annotations

from embedder.errors import InvalidRequest, Overloaded


class BodyStalled(InvalidRequest):
    """The client stopped sending in the middle of the request body."""

    retryable = True


class HeadStalled(InvalidRequest):
    """The client stopped sending in the middle of the head of a request."""

    retryable = True


class HeadTooLarge(InvalidRequest):
    """The head of the request has too many bytes or too many headers."""


class TargetTooLong(InvalidRequest):
    """The target of the request, which is its path and its query, is too long."""


class TooManyConnections(Overloaded):
    """The HTTP server has as many connections as it may have."""
