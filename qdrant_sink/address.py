"""The address of a Qdrant server: the URL of its REST API, and the port of its gRPC API on the same host.

The URL names one server, and gRPC has a port of its own. The two are known to belong together only for Qdrant's usual
pair of ports: REST on 6333 (also if the URL names no port) and gRPC on 6334. Beside any other port, and behind a path
of a proxy, port 6334 of the host may belong to another server, so that gRPC is used there only if its port is given.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Literal, Self
from urllib.parse import SplitResult, urlsplit

TransportChoice = Literal["auto", "grpc", "rest"]
"""Which API is used: gRPC if its port is known and answers, else REST (`auto`), or one of the two alone."""

REST_PORT: Final = 6333
"""Qdrant's usual port of REST, which a URL without a port stands for."""

GRPC_PORT: Final = 6334
"""Qdrant's usual port of gRPC."""

_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_PATH: Final = re.compile(r"(/(?!\.\.?(?:/|$))(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})+)*")
"""A path that no client changes: with whole escapes in upper case, and no part that is `.` or `..`."""


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """The URL of a server's REST API in its normal form, which `str` gives back.

    Attributes:
        https: whether the connection is encrypted.
        host: name or IP address in lower case, without the brackets of an IPv6 address.
        port: port of REST; None if the URL names none, which stands for `REST_PORT`.
        prefix: path that a proxy needs, such as `/qdrant`, without a slash at its end.
    """

    https: bool
    host: str
    port: int | None = None
    prefix: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a URL. The case of the scheme and the host, and slashes at the end, make no difference.

        Raises:
            ValueError: the URL cannot be used. The message quotes nothing of it, since a key may stand in it.
        """
        parts = _split(text)
        if parts.scheme not in ("http", "https"):
            raise ValueError("must look like http://host:6333 or https://host:6333")
        if parts.username or parts.password:
            raise ValueError("must not contain a user name or a password; use QDRANT_API_KEY")
        if parts.query or parts.fragment:
            raise ValueError("must not contain a query or a fragment; use QDRANT_API_KEY for a key")
        host = parts.hostname or ""
        if not (_is_ipv6(host) if ":" in host else _HOST_NAME.fullmatch(host.removesuffix("."))):
            raise ValueError("must have a host name or an IP address after http:// or https://")
        prefix = re.sub("%[0-9a-f]{2}", lambda escape: escape[0].upper(), parts.path.rstrip("/"), flags=re.IGNORECASE)
        if not _PATH.fullmatch(prefix):
            raise ValueError("must have a path of plain characters, or no path")
        url = cls(parts.scheme == "https", host, _port(parts), prefix)
        if not re.fullmatch(re.escape(url.authority) + r"(:\d*)?", parts.netloc.lower(), re.ASCII):
            raise ValueError("must have nothing but a host and a port between http:// and the path")
        return url

    @property
    def authority(self) -> str:
        """The host as URLs write it: an IPv6 address in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def is_local(self) -> bool:
        """Whether the host is this machine."""
        if self.host in ("localhost", "localhost."):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        port = "" if self.port is None else f":{self.port}"
        return f"{'https' if self.https else 'http'}://{self.authority}{port}{self.prefix}"


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where the two APIs of one server are.

    Attributes:
        url: URL of REST.
        grpc_port: port of gRPC on the same host; None if gRPC is not used.
        transport: which of the two is used.
    """

    url: ServerUrl
    grpc_port: int | None
    transport: TransportChoice

    @classmethod
    def of(cls, url: ServerUrl, transport: TransportChoice = "auto", grpc_port: int | None = None) -> Self:
        """Decide which ports are used; see the module docstring.

        Args:
            url: URL of REST.
            transport: which API is used.
            grpc_port: port of gRPC, which is trusted; None for `GRPC_PORT` where that is known to be this server's.

        Raises:
            ValueError: the port of gRPC is needed and unknown, or the URL names the usual port of gRPC.
        """
        if transport == "rest":
            return cls(url, None, transport)
        if grpc_port is None and url.port in (None, REST_PORT) and not url.prefix:
            grpc_port = GRPC_PORT
        if grpc_port is None and transport == "grpc":
            if url.port != GRPC_PORT:
                raise ValueError(
                    f"names {_named(url)}, and the port of gRPC that belongs to it is unknown; set QDRANT_GRPC_PORT, "
                    "or leave out QDRANT_TRANSPORT=grpc"
                )
            grpc_port = GRPC_PORT
        if grpc_port is None and url.port == GRPC_PORT:
            raise ValueError(
                f"must name the port of REST, got {GRPC_PORT}, which is Qdrant's port of gRPC; use port {REST_PORT}, "
                "or set QDRANT_TRANSPORT to the one that answers there, grpc or rest"
            )
        return cls(url, grpc_port, transport)

    @property
    def warning(self) -> str | None:
        """Why only REST is used although nobody asked for that, and the way out; None if that is not the case."""
        if self.grpc_port is not None or self.transport != "auto":
            return None
        return (
            f"QDRANT_URL names {_named(self.url)}, and the port of gRPC that belongs to it is unknown: using REST, "
            "which is several times slower for ColBERT and limits requests to 32 MiB; set QDRANT_GRPC_PORT to use "
            "gRPC, or QDRANT_TRANSPORT=rest if REST is meant"
        )


def _named(url: ServerUrl) -> str:
    """What the URL names beside the host that keeps it from the usual pair of ports."""
    if url.port in (None, REST_PORT):
        return "a path"
    return f"port {url.port}"


def _split(text: str) -> SplitResult:
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValueError("must not contain blanks or line breaks")
    try:
        return urlsplit(text)
    except ValueError:
        raise ValueError("must look like http://host:6333 or https://host:6333") from None


def _port(parts: SplitResult) -> int | None:
    try:
        port = parts.port
    except ValueError:  # its message quotes the port, which may be a misplaced key
        port = 0
    if port == 0:
        raise ValueError("must have a port from 1 to 65535, or no port")
    return port


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.IPv6Address(host).scope_id is None
    except ValueError:
        return False
