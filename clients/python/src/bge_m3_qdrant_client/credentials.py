"""Keys and addresses, and how much of them may be shown."""

from __future__ import annotations

import httpx

from bge_m3_qdrant_client.errors import InvalidOption


def authorization(api_key: str | None) -> dict[str, str]:
    """The header with a key; none without one.

    Raises:
        InvalidOption: a header cannot hold the key; the message does not quote it.
    """
    if api_key is None:
        return {}
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise InvalidOption("api_key must have at least one character, and only printable ones of ASCII without spaces")
    return {"Authorization": f"Bearer {api_key}"}


def shown_url(url: str) -> str:
    """An address without the user and the query, either of which may be secret.

    Raises:
        InvalidOption: it is not an address of HTTP.
    """
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        raise InvalidOption("the address is not a URL") from None
    if parts.scheme not in {"http", "https"} or not parts.host:
        raise InvalidOption("the address must begin with http:// or https:// and a host")
    return str(parts.copy_with(userinfo=b"", query=None, fragment=None))
