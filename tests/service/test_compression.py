"""Compressed answers: only where they are asked for and worth it, and equal to the plain ones."""

from __future__ import annotations

import json
import socket
import zlib
from collections.abc import Iterator, Mapping

import httpx
import numpy as np
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from service.transports.http.compression import COMPRESSED_MIN_BYTES, accepted
from tests.embedder.oracle import TOLERANCE
from tests.service.client import ENVIRONMENT, PATIENCE, Client, unpacked
from tests.service.conftest import Serve
from tests.service.served import Served

LISTS = {"texts": [f"text {n}" for n in range(100)], "vectors": ["dense"]}
BASE64 = {**LISTS, "encoding": "base64"}
SMALL = {"texts": ["a"], "vectors": ["dense"]}


@pytest.fixture(scope="module")
def http(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client that asks for no compression by itself."""
    store = EdgeStore(tmp_path_factory.mktemp("edge"))
    operations = Operations(Settings.from_environment(ENVIRONMENT), embedder, store)
    with Served(operations) as served, served.client() as client:
        del client.headers["accept-encoding"]
        yield client
    store.close()


def decoded(raw: bytes, coding: str | None) -> NDArray[np.float32]:
    """The vectors of an answer as it came over the wire."""
    if coding == "zstd":
        raw = zstd.decompress(raw)
    elif coding == "gzip":
        raw = zlib.decompress(raw, wbits=31)
    dense = [result["dense"] for result in json.loads(raw)["results"]]
    return np.array([unpacked(vector) if isinstance(vector, dict) else vector for vector in dense], dtype=np.float32)


def assert_same(one: NDArray[np.float32], other: NDArray[np.float32]) -> None:
    """Check that two answers have the same vectors; the batches of two requests may differ."""
    assert one.shape == other.shape
    assert np.abs(one - other).max() <= TOLERANCE


def sent(http: httpx.Client, raw: Mapping[str, object], asked: str | None) -> tuple[httpx.Response, bytes]:
    """Post a request, and return the response and its bytes on the wire."""
    headers = {} if asked is None else {"Accept-Encoding": asked}
    with http.stream("POST", "/embed", json=raw, headers=headers) as response:
        return response, b"".join(response.iter_raw())


@pytest.mark.parametrize(
    ("asked", "coding"),
    [
        ("zstd", "zstd"),
        ("gzip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=1.0, zstd;q=0.5", "gzip"),
        (None, None),
        ("br", None),
        ("gzip;q=0", None),
    ],
)
def test_lists_of_numbers_shrink_where_that_is_asked_for(
    http: httpx.Client, asked: str | None, coding: str | None
) -> None:
    """The answer is the same JSON, with less than half of the bytes, and says that it depends on the header."""
    plain, raw = sent(http, LISTS, None)
    assert len(raw) > COMPRESSED_MIN_BYTES
    assert int(plain.headers["content-length"]) == len(raw)
    response, compressed = sent(http, LISTS, asked)
    assert response.headers.get("content-encoding") == coding
    assert response.headers["vary"] == "Accept-Encoding"
    assert_same(decoded(compressed, coding), decoded(raw, None))
    if coding is not None:
        assert "content-length" not in response.headers
        assert len(compressed) < len(raw) / 2


def test_base64_is_compressed_by_zstd_alone(http: httpx.Client) -> None:
    """base64 shrinks by a quarter, which zstd does at next to no cost and gzip does not."""
    _, raw = sent(http, BASE64, None)
    for asked, coding in (("gzip", None), ("zstd, gzip", "zstd")):
        response, body = sent(http, BASE64, asked)
        assert response.headers.get("content-encoding") == coding
        assert_same(decoded(body, coding), decoded(raw, None))


def test_small_answers_are_sent_as_they_are(http: httpx.Client, serve: Serve) -> None:
    """One embedding is not delayed by compression, HEAD says what GET would, and a setting turns it off."""
    response, body = sent(http, SMALL, "gzip")
    assert ("content-encoding" in response.headers, "vary" in response.headers) == (False, False)
    assert len(body) == int(response.headers["content-length"])
    document = http.get("/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert document.headers["content-encoding"] == "gzip"
    head = http.head("/openapi.json", headers={"Accept-Encoding": "gzip"})
    for name in ("content-encoding", "content-length", "vary", "content-type"):
        assert head.headers.get(name) == document.headers.get(name), name
    assert head.content == b""
    plain = http.head("/openapi.json", headers={"Accept-Encoding": "identity"})
    assert int(plain.headers["content-length"]) == len(document.content)
    with Served(serve(COMPRESS_RESPONSES="false").operations) as served, served.client() as client:
        response, _ = sent(client, LISTS, "gzip")
        assert ("content-encoding" in response.headers, "vary" in response.headers) == (False, False)


def test_large_answers_go_in_parts(worker: Client) -> None:
    """An answer of several parts, each of which is compressed in a thread, arrives whole."""
    raw = {"texts": [f"text {n}" for n in range(600)], "vectors": ["dense"]}
    with Served(worker.operations) as served, served.client() as client:
        plain = sent(client, raw, "identity")[1]
        assert len(plain) > 1_000_000
        for coding in ("gzip", "zstd"):
            assert_same(decoded(sent(client, raw, coding)[1], coding), decoded(plain, None))


def test_a_client_of_http_1_0_gets_an_answer_with_a_length(worker: Client) -> None:
    """Some proxies speak HTTP/1.0, which has no answers in chunks."""
    body = json.dumps(LISTS).encode()
    head = (
        "POST /embed HTTP/1.0\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\nContent-Length: {}\r\n\r\n"
    )
    with Served(worker.operations) as served, socket.create_connection(("127.0.0.1", served.port), PATIENCE) as raw:
        raw.sendall(head.format(len(body)).encode() + body)
        answer = b"".join(iter(lambda: raw.recv(65_536), b""))
    headers, _, content = answer.partition(b"\r\n\r\n")
    assert f"content-length: {len(content)}".encode() in headers.lower()
    assert len(json.loads(content)["results"]) == 100


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("", None),
        ("*", "zstd"),
        ("*;q=0.5, gzip", "gzip"),
        ("identity", None),
        ("identity;q=1, gzip;q=0.5", None),
        ("identity;q=0, gzip;q=0.5", "gzip"),
        ("GZIP ; Q=0.8", "gzip"),
        ("zstd;q=0, *", "gzip"),
        ("zstd;q=x, gzip;q=0.001", "gzip"),
    ],
)
def test_the_weights_of_a_client_are_respected(header: str, coding: str | None) -> None:
    """The coding with the largest weight is used, zstd before gzip, and none that is refused."""
    assert accepted(header) == coding


@given(st.text(max_size=60) | st.text(alphabet="gzipstd;q=0.19*, ", max_size=60))
def test_any_header_is_understood(header: str) -> None:
    """No header raises an error."""
    assert accepted(header) in {None, "gzip", "zstd"}
