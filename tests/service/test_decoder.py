"""Compressed request bodies: understood, limited by their decompressed size, and refused cleanly where damaged."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import httpx
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from embedder import InvalidRequest, WorkerError
from service.transports.http.decoder import CODINGS, Decoder
from service.wire.errors import BodyTooLarge
from tests.service.client import Client
from tests.service.served import Served

MAX_BYTES = 100_000
Compress = Callable[[bytes], bytes]
COMPRESS: dict[str, Compress] = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd.compress}
BODY = json.dumps({"texts": ["a" * 900], "vectors": ["dense"]}).encode()
coded = pytest.mark.parametrize("coding", CODINGS)


@pytest.fixture
def http(worker: Client) -> Iterator[httpx.Client]:
    """A client of a server with a small limit on bodies."""
    with Served(worker.operations, body_max_bytes=MAX_BYTES) as served, served.client() as client:
        yield client


def post(http: httpx.Client, coding: str, *parts: bytes) -> tuple[int, str]:
    """Send a body in parts, and return the status of the answer and the message of an error."""
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    response = http.post("/embed", content=iter(parts), headers=headers)
    return response.status_code, response.json().get("error", "")


@coded
def test_a_compressed_body_is_read_as_the_plain_one(http: httpx.Client, coding: str) -> None:
    """A body that is compressed in any of the codings is answered, in whatever parts it arrives."""
    packed = COMPRESS[coding](BODY)
    assert post(http, coding.upper(), packed) == (200, "")
    assert post(http, coding, *(packed[n : n + 1] for n in range(len(packed)))) == (200, "")


@coded
def test_a_damaged_body_is_an_error_of_its_own(http: httpx.Client, coding: str) -> None:
    """Data that is damaged, cut or continued is said to be that, and the server goes on."""
    packed = COMPRESS[coding](BODY)
    assert post(http, coding, BODY) == (400, f"the body is not valid {coding}")
    assert post(http, coding, b"") == (400, f"the body ends before the end of its {coding} data")
    assert post(http, coding, packed[:-1]) == (400, f"the body ends before the end of its {coding} data")
    for rest in (packed, b"x"):
        status, said = post(http, coding, packed, rest)
        assert (status, said.partition(";")[0]) == (400, f"the body goes on after the end of its {coding} data")
        assert post(http, coding, packed + rest) == (status, said)
    assert post(http, coding, COMPRESS[coding](b"{")) == (400, "the body is not valid JSON (line 1, column 2)")
    assert post(http, coding, packed) == (200, "")


@coded
def test_the_limit_counts_decompressed_bytes(http: httpx.Client, coding: str) -> None:
    """A body at the limit is read, and one byte more is refused, however small it is when it is compressed."""
    fits = BODY + b" " * (MAX_BYTES - len(BODY))
    assert post(http, coding, COMPRESS[coding](fits)) == (200, "")
    status, said = post(http, coding, COMPRESS[coding](fits + b" "))
    assert (status, said) == (413, "the body must have at most 100000 bytes when it is decompressed, got more")


@coded
def test_a_bomb_costs_no_more_than_the_limit(coding: str) -> None:
    """Fifty megabytes of zeros are refused with the memory of the limit."""
    bomb = COMPRESS[coding](bytes(50_000_000))
    decoder = Decoder(coding, MAX_BYTES)
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            list(decoder.pieces(bomb))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * MAX_BYTES + len(bomb)


def test_a_large_window_of_zstd_is_refused() -> None:
    """A frame that asks for a window of 128 MiB, beyond what HTTP has, is refused rather than given the memory."""
    compressor = zstd.ZstdCompressor(
        options={zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    )
    packed = compressor.compress(BODY) + compressor.flush()
    with pytest.raises(InvalidRequest, match="not valid zstd"):
        list(Decoder("zstd", MAX_BYTES).pieces(packed))


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "compress", "gzip;q=1"])
def test_another_coding_is_refused_with_those_that_work(http: httpx.Client, coding: str) -> None:
    """The message and the header name the codings; a wrong content type has no such header."""
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    response = http.post("/embed", content=BODY, headers=headers)
    assert (response.status_code, response.headers["accept-encoding"]) == (415, "gzip, deflate, zstd")
    assert response.json()["error"] == (
        f"Content-Encoding must be one of gzip, deflate, zstd, or left out, got '{coding}'"
    )
    wrong = http.post("/embed", content=BODY, headers={"Content-Type": "text/plain", "Content-Encoding": "gzip"})
    assert (wrong.status_code, "accept-encoding" in wrong.headers) == (415, False)


def test_codings_in_several_lines_are_a_list(http: httpx.Client) -> None:
    """A proxy may add its coding in a line of its own; two of them are refused as in one line."""
    lines = [("Content-Type", "application/json"), ("Content-Encoding", "gzip"), ("Content-Encoding", "gzip")]
    response = http.post("/embed", content=gzip.compress(gzip.compress(BODY)), headers=lines)
    assert response.status_code == 415
    assert response.json()["error"].endswith("or left out, got 'gzip, gzip'")


def test_identity_is_no_coding(http: httpx.Client) -> None:
    """A body that names `identity`, or the old name of gzip, is read."""
    assert post(http, "identity", BODY) == (200, "")
    assert post(http, "x-gzip", gzip.compress(BODY)) == (200, "")


@given(coding=st.sampled_from(CODINGS), data=st.binary(max_size=300), at=st.integers(0, 300), flip=st.integers(1, 255))
def test_any_bytes_decode_or_are_an_error(coding: str, data: bytes, at: int, flip: int) -> None:
    """Damaged data raises an error of the contract and nothing else, and never gives more than the limit."""
    packed = bytearray(COMPRESS[coding](data))
    if at < len(packed):
        packed[at] ^= flip
    for content in (bytes(packed), data):
        decoder = Decoder(coding, 200)
        try:
            assert sum(map(len, decoder.pieces(content))) <= 200
            decoder.check_complete()
        except WorkerError:
            pass
