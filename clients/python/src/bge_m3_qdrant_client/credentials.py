"""Keys, headers and addresses: whether HTTP can carry them, and how much of them may be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import httpx

from bge_m3_qdrant_client.errors import InvalidOption

_HEADER_NAME: Final = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
_HEADER_VALUE: Final = re.compile(r"([!-~]+([ \t]+[!-~]+)*)?")


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


def carried(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Headers of the caller.

    Raises:
        InvalidOption: HTTP cannot carry one of them; the message quotes neither its name nor its value.
    """
    for index, (name, value) in enumerate((headers or {}).items()):
        if not _HEADER_NAME.fullmatch(name):
            raise InvalidOption(f"the name of header {index} must have only letters, digits and !#$%&'*+-.^_`|~")
        if not _HEADER_VALUE.fullmatch(value):
            raise InvalidOption(
                f"the value of header {index} must have only printable characters of ASCII, without spaces at its ends"
            )
    return dict(headers or {})


def shown_url(url: str) -> str:
    """An address without the user and the query, either of which may be secret.

    Raises:
        InvalidOption: it is not an address of HTTP.
    """
    try:
        parts = httpx.URL(url)
        parts.raw_host.decode("ascii").encode("idna")  # the lengths of its labels, which the resolver refuses otherwise
    except (httpx.InvalidURL, UnicodeError):
        raise InvalidOption("the address is not a URL") from None
    if parts.scheme not in {"http", "https"} or not parts.host:
        raise InvalidOption("the address must begin with http:// or https:// and a host")
    return str(parts.copy_with(userinfo=b"", query=None, fragment=None))
