"""The address of a server: forms of its URL, and which ports belong to it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient

from embedder.errors import ConfigurationError
from qdrant_sink import ServerAddress, ServerUrl, TransportChoice
from qdrant_sink.conformance import conform
from qdrant_sink.points import Point
from qdrant_sink.server import ServerStore
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import SCHEMA, draft


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("http://host:6333", "http://host:6333"),
        ("HTTP://Host.Example:6333/", "http://host.example:6333"),
        ("https://host", "https://host"),
        ("https://host:", "https://host"),
        ("https://host:443/qdrant//", "https://host:443/qdrant"),
        ("https://host/a/B", "https://host/a/B"),
        ("http://10.0.0.7:6333", "http://10.0.0.7:6333"),
        ("http://[::1]:6333", "http://[::1]:6333"),
        ("http://[FE80::1]", "http://[fe80::1]"),
        ("http://my_qdrant:6333", "http://my_qdrant:6333"),
        ("http://host.", "http://host."),
        ("http://host/a%2fb", "http://host/a%2Fb"),
    ],
)
def test_each_form_of_a_url_has_one_normal_form(text: str, normal: str) -> None:
    """Case, slashes at the end and an empty port make no difference."""
    assert str(ServerUrl.parse(text)) == normal


@pytest.mark.parametrize(
    "text",
    [
        "", "host", "host:6333", "localhost:6333", "ftp://host", "//host", "http:/host", "http://", "http:///path",
        "http://:6333", "http://[", "http://[::1", "http://[::1]x", "http://[::1%eth0]", "http://[host]",
        "http://host:0", "http://host:65536", "http://host:port", "http://host:-1", "http://a b", "http://a\nb",
        "http://host/a b", "http://host\\a", "http://-host", "http://a..b", f"http://{'a' * 64}",
        f"http://{'a.' * 130}a", "http://u@host", "http://u:p@host", "http://host?x=1",
        "http://host/%", "http://host/%2g", "http://host/..", "http://host/a/./b",
        "http://host#x", "http://ho\u2100st", "http://höst",
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_server_is_an_error(text: str) -> None:
    """The message is a rule, and quotes nothing of the text, since a key may stand in it."""
    with pytest.raises(ValueError, match=r"^must ") as refusal:
        ServerUrl.parse(text)
    assert text in "http://host:6333" or text not in str(refusal.value)
    with pytest.raises(ConfigurationError, match=r"^QDRANT_URL: must "):
        ServerStore(text)


HOSTS = st.one_of(
    st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9-]{0,20}[A-Za-z0-9])?(\.[A-Za-z0-9]{1,9}){0,3}\.?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.text(max_size=8),
)
PORTS = st.one_of(st.just(""), st.integers(0, 70_000).map(lambda port: f":{port}"))
PATHS = st.one_of(
    st.sampled_from(["", "/", "/a", "/a/b/", "/%", "/%2f", "/.", "/a/../b"]),
    st.text(max_size=4).map(lambda text: f"/{text}"),
)


URLS = st.builds("{}://{}{}{}".format, st.sampled_from(["http", "HTTPS"]), HOSTS, PORTS, PATHS)


def _accepted(text: str) -> ServerUrl | None:
    try:
        return ServerUrl.parse(text)
    except ValueError:
        return None


@given(text=URLS | st.text(max_size=20))
def test_a_normal_form_is_its_own_normal_form(text: str) -> None:
    """Any text is refused with a rule, or has a normal form that is read as the same URL."""
    url = _accepted(text)
    if url is not None:
        assert ServerUrl.parse(str(url)) == url
        assert ServerAddress.of(url, "rest").grpc_port is None


@settings(max_examples=20)
@given(url=URLS.map(_accepted).filter(lambda url: url is not None))
def test_the_client_asks_the_url_that_was_accepted(url: ServerUrl) -> None:
    """The client of Qdrant reads the normal form as this project does: host, port and path."""
    client = QdrantClient(url=str(url), check_compatibility=False)
    expected = str(url) if url.port is not None else str(ServerUrl(url.https, url.host, 6333, url.prefix))
    assert client._client.rest_uri == expected  # type: ignore[attr-defined]
    client.close()


@pytest.mark.parametrize(
    ("url", "transport", "grpc_port", "uses"),
    [
        ("http://host:6333", "auto", None, 6334),
        ("http://host", "auto", None, 6334),
        ("https://host", "auto", None, 6334),
        ("http://host:6333", "grpc", None, 6334),
        ("http://host:6334", "grpc", None, 6334),
        ("http://host:6333", "rest", None, None),
        ("http://host:6333", "rest", 6334, None),
        ("http://host:6334", "rest", None, None),
        ("http://host:7333", "auto", None, None),
        ("https://host:443", "auto", None, None),
        ("http://host:80", "auto", None, None),
        ("http://host:6333/qdrant", "auto", None, None),
        ("https://host/qdrant", "auto", None, None),
        ("http://host:7333", "auto", 7334, 7334),
        ("http://host:6333", "auto", 7334, 7334),
        ("https://host:443/qdrant", "auto", 443, 443),
        ("http://host:6334", "auto", 6334, 6334),
        ("http://host:7333", "grpc", 7334, 7334),
    ],
)
def test_grpc_is_used_where_its_port_is_known(
    url: str, transport: TransportChoice, grpc_port: int | None, uses: int | None
) -> None:
    """Without an explicit port gRPC is used for the usual pair of ports alone; a warning says where it is left out."""
    address = ServerAddress.of(ServerUrl.parse(url), transport, grpc_port)
    assert address.grpc_port == uses
    assert (address.warning is None) == (uses is not None or transport == "rest")


@pytest.mark.parametrize(
    ("url", "transport", "said"),
    [
        ("http://host:6334", "auto", "must name the port of REST, got 6334.*use port 6333.*QDRANT_TRANSPORT"),
        ("http://host:7333", "grpc", "names port 7333.*set QDRANT_GRPC_PORT"),
        ("https://host/qdrant", "grpc", "names a path.*set QDRANT_GRPC_PORT"),
    ],
)
def test_an_unknown_port_is_an_error_with_its_way_out(url: str, transport: TransportChoice, said: str) -> None:
    """The usual port of gRPC in the place of that of REST, and gRPC alone on an unknown port, are refused."""
    with pytest.raises(ConfigurationError, match=f"^QDRANT_URL: {said}"):
        ServerStore(url, transport=transport)


def test_a_server_on_ipv6_is_reached(tmp_path: Path) -> None:
    """Writes and reads reach a server whose URL has an IPv6 address."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    double = GrpcDouble(tmp_path, "[::1]")
    store = ServerStore("http://[::1]:9", grpc_port=double.port)
    store.ensure("docs", SCHEMA)
    point = conform(draft(0), SCHEMA)
    assert isinstance(point, Point)
    store.upsert("docs", [point])
    assert store.count("docs") == 1
    store.close()
    double.stop()
