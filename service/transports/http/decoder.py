"""Decompression of request bodies, part by part, which stops at the size limit."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Final, Protocol, Self

from backports import zstd

from embedder import InvalidRequest
from service.validation import shown
from service.wire.errors import BodyTooLarge, UnknownCoding

CODINGS: Final = ("gzip", "deflate", "zstd")
"""Values of `Content-Encoding` that are understood."""

_ALIASES: Final[Mapping[str, str]] = {"x-gzip": "gzip"}

PIECE_BYTES: Final = 1_000_000
"""Maximum bytes that are decompressed in one step, so that their memory is reserved before there are more."""

_ZSTD_WINDOW_LOG_MAX: Final = 23
"""Largest window of zstd that a decoder of HTTP must have, 8 MiB (RFC 9659); a larger one would cost more memory."""


class _Stream(Protocol):
    """What the two libraries have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Decoder:
    """The decompression of one body. It never holds more than the limit and one byte.

    Args:
        coding: one of `CODINGS`.
        max_bytes: maximum size of the decompressed body.
    """

    def __init__(self, coding: str, max_bytes: int) -> None:
        self._coding = coding
        self._max_bytes = max_bytes
        self._left = max_bytes
        self._stream = _stream(coding)

    @classmethod
    def of(cls, header: str, max_bytes: int) -> Self | None:
        """The decoder for a `Content-Encoding`; None for a body that is not compressed.

        Raises:
            UnknownCoding: the coding is unknown, or there are several.
        """
        coding = header.strip().lower()
        if coding in ("", "identity"):
            return None
        coding = _ALIASES.get(coding, coding)
        if coding not in CODINGS:
            raise UnknownCoding(
                f"Content-Encoding must be one of {', '.join(CODINGS)}, or left out, got {shown(header)}"
            )
        return cls(coding, max_bytes)

    def pieces(self, part: bytes) -> Iterator[bytes]:
        """Decompress the next part of the body, in pieces of bounded size. Blocks for milliseconds per piece.

        Raises:
            BodyTooLarge: the decompressed body exceeds the limit.
            InvalidRequest: the data is damaged, or goes on after its end.
        """
        if not part:
            return
        if self._stream.eof:
            raise self._trailing()
        while True:
            most = min(self._left + 1, PIECE_BYTES)
            try:
                piece = self._stream.decompress(part, most)
            except (zlib.error, zstd.ZstdError):
                raise InvalidRequest(f"the body is not valid {self._coding}") from None
            self._left -= len(piece)
            if self._left < 0:
                raise BodyTooLarge(
                    f"the body must have at most {self._max_bytes} bytes when it is decompressed, got more"
                )
            yield piece
            if self._stream.eof or len(piece) < most:
                break
            part = getattr(self._stream, "unconsumed_tail", b"")  # zstd keeps it itself
        if self._stream.unused_data:
            raise self._trailing()

    def check_complete(self) -> None:
        """Check that the body has reached the end of its data.

        Raises:
            InvalidRequest: it has not.
        """
        if not self._stream.eof:
            raise InvalidRequest(f"the body ends before the end of its {self._coding} data")

    def _trailing(self) -> InvalidRequest:
        return InvalidRequest(f"the body goes on after the end of its {self._coding} data; send one compressed stream")


def _stream(coding: str) -> _Stream:
    if coding == "zstd":
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG_MAX})
    return zlib.decompressobj(wbits=zlib.MAX_WBITS + 16 if coding == "gzip" else zlib.MAX_WBITS)
