"""Files at URLs are read like files of this machine, and errors of their stores say nothing of keys and hosts."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from service.bulk.line import InputError
from tests.service.bulk_files import Read
from tests.service.pdf_files import pdf

LINES = b'{"text": "a"}\n{"text": "b"}\n'


@pytest.fixture
def memory() -> Iterator[Any]:
    """An empty file system in memory."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


def parquet() -> bytes:
    """Parquet with one row."""
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["p"]}), file)
    return file.getvalue()


def wrong(url: str) -> str:
    """What is said of a wrong URL."""
    with pytest.raises(InputError) as raised:
        Read(url)
    return str(raised.value)


def test_every_format_is_read_from_a_url(memory: Any) -> None:
    """One file, a pattern, and a folder, in the order of their names; all with their URL."""
    for name, content in (
        ("1.jsonl", LINES),
        ("2.jsonl.gz", gzip.compress(b'{"text": "c"}')),
        ("3.parquet", parquet()),
        ("sub/4.pdf", pdf(["page"])),
        ("sub/5.csv", b"text\nx\n"),
        ("sub/picture.png", b""),
    ):
        memory.pipe(f"/data/{name}", content)
    read = Read("memory://data")
    assert read.texts == ["a", "b", "c", "p", "page", "x"]
    assert read.said == ["memory://data: files of unknown formats are left out (.png: 1)"]
    assert {line.origin.file for line in read.lines} == {
        f"memory:///data/{name}" for name in ("1.jsonl", "2.jsonl.gz", "3.parquet", "sub/4.pdf", "sub/5.csv")
    }
    assert Read("memory://data/*.jsonl*").texts == ["a", "b", "c"]
    assert Read("memory://data/**/*.csv").texts == ["x"]
    assert Read("memory://data/1.jsonl").texts == ["a", "b"]


def test_a_url_without_files_is_said(memory: Any) -> None:
    """As a path is."""
    memory.pipe("/data/picture.png", b"x")
    assert wrong("memory://absent.jsonl") == "memory://absent.jsonl: there is no such file"
    assert wrong("memory://data/*.csv") == "memory://data/*.csv: no file has a name of this pattern"
    assert wrong("memory://data").startswith("memory://data: the folder has no file of a known format")


def test_a_scheme_without_its_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    said = wrong("gs://bucket/a.jsonl")
    assert said == "gs://bucket/a.jsonl: the package for gs:// is missing; install it with: pip install gcsfs"
    assert wrong("klingon://a.jsonl").startswith("klingon://a.jsonl: the package for klingon:// is missing; is the")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    assert wrong("memory://a") == "memory:// needs fsspec, which is not installed: pip install '.[files]'"


def test_an_error_of_the_store_is_named_by_its_kind_alone(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While files are listed, opened and read."""

    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise PermissionError("secret key at host")

    memory.pipe("/data/a.jsonl", LINES)
    reason = "it cannot be read (PermissionError); are the address and the credentials right?"
    opened = type(memory.open("/data/a.jsonl"))
    for owner, method in ((opened, "read"), (type(memory), "_open"), (type(memory), "isdir")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, fail)
            assert wrong("memory://data/a.jsonl") in (
                f"memory:///data/a.jsonl: {reason}",
                f"memory://data/a.jsonl: {reason}",
            )


@pytest.mark.slow
def test_a_bucket_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """`s3://` against a mock of S3, with the credentials of the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ):
            monkeypatch.setenv(name, value)
        files = fsspec.filesystem("s3")
        files.mkdir("bucket")
        files.pipe("bucket/a/1.jsonl", b"".join(b'{"text": "%d"}\n' % n for n in range(1000)))
        files.pipe("bucket/a/2.parquet", parquet())
        files.pipe("bucket/a/3.jsonl.gz", gzip.compress(LINES))
        texts = [str(n) for n in range(1000)]
        assert Read("s3://bucket/a").texts == [*texts, "p", "a", "b"]
        assert Read("s3://bucket/a/*.parquet").texts == ["p"]
        assert wrong("s3://absent/a.jsonl") == "s3://absent/a.jsonl: there is no such file"
    finally:
        server.stop()
