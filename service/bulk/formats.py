"""The formats of files, and how a file shows which one it has."""

from __future__ import annotations

from typing import Final

from service.bulk.compression import without_suffix
from service.bulk.line import WrongFileError

SUFFIXES: Final = {
    "jsonl": (".jsonl", ".ndjson", ".jsonlines"),
    "json": (".json",),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc", ".arrows"),
    "text": (".txt", ".text"),
    "markdown": (".md", ".markdown"),
    "html": (".html", ".htm", ".xhtml"),
    "pdf": (".pdf",),
}
"""Formats, and the suffixes of their files."""

FORMATS: Final = tuple(SUFFIXES)

DOCUMENTS: Final = frozenset({"text", "markdown", "html", "pdf"})
"""Formats whose files are documents rather than lists of them, so that one that is wrong costs no other."""

VECTORS_KEY: Final = "bge_m3_qdrant_vectors"
"""Key of the description of vectors in the metadata of a Parquet file that `embed` wrote."""

WRITER_KEY: Final = "bge_m3_qdrant_writer"
"""Key of the metadata of a Parquet file that `embed` has written. If the other key is missing, it is damaged."""

BINARY: Final = {"parquet": b"PAR1", "arrow": b"ARROW1", "pdf": b"%PDF-"}
"""Formats that are not text, and how their files begin."""

_SIGNATURES: Final = (
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"%PDF-", "PDF"),
    (b"PK\x03\x04", "a zip archive or an Office file"),
    (b"\xd0\xcf\x11\xe0", "an Office file"),
    (b"\xfd7zXZ", "xz"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)


def suffix_format(name: str) -> str | None:
    """The format that the name of a file says; None if it says none."""
    plain = without_suffix(name).lower()
    return next((chosen for chosen, suffixes in SUFFIXES.items() if plain.endswith(suffixes)), None)


def format_of(name: str, head: bytes, chosen: str | None) -> str:
    """The format of a file.

    Args:
        name: name of the file.
        head: its first bytes, decompressed.
        chosen: the format that the user names; None for that of the name, or else of the first bytes.

    Raises:
        WrongFileError: the file has not the format that it should have.
    """
    found = chosen or suffix_format(name)
    if found is None:
        found = next((binary for binary, magic in BINARY.items() if head.startswith(magic)), "json")
    if found == "json" and chosen is None and not _is_array(head):
        return "jsonl"
    return found


def check_text(name: str, head: bytes) -> None:
    """Check that a file is text.

    Args:
        name: name of the file.
        head: its first bytes in UTF-8.

    Raises:
        WrongFileError: it is in a format that is not text.
    """
    for magic, what in _SIGNATURES:
        if head.startswith(magic):
            raise WrongFileError(name, f"it is not text but {what}; name its format with --format, or unpack it")
    if b"\0" in head:
        reason = "it is not text (it has a zero byte); name its format with --format, or its encoding with --encoding"
        raise WrongFileError(name, reason)


def _is_array(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n").startswith(b"[")
