"""Rows of Parquet and Arrow are documents, in memory that the file does not decide."""

from __future__ import annotations

import datetime as dt
import gzip
import subprocess
import sys
import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.bulk.columnar import BATCH_MAX_ROWS
from service.bulk.line import InputError
from service.bulk.raw_lines import LINE_MAX_BYTES
from service.bulk.reading import Reader, ReadOptions
from service.bulk.sources import sources_of
from tests.service.bulk_files import Read

SUFFIXES = (".parquet", ".feather", ".arrows")


def write(path: Path, table: Any, **options: Any) -> Path:
    """Write a table in the format of the name."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
        return path
    writer = pa.ipc.new_file if path.suffix == ".feather" else pa.ipc.new_stream
    with writer(str(path), table.schema) as file:
        file.write_table(table)
    return path


def wrong(path: Path, **options: Any) -> str:
    """What is said of a wrong file, without its folder."""
    with pytest.raises(InputError) as raised:
        Read(path, **options)
    return str(raised.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_are_documents(tmp_path: Path, suffix: str) -> None:
    """Of all types of columns that JSON can have; null is absence, and times are ISO 8601."""
    day = dt.datetime(2024, 5, 6, 7, 8, 9, 10, tzinfo=dt.UTC)
    table = pa.table(
        {
            "id": pa.array([1, None, 3], pa.int64()),
            "text": pa.array(["a", "b", "c"]).dictionary_encode(),
            "nested": [{"x": [1, None], "day": day.date()}, None, {"x": [], "day": None}],
            "when": pa.array([day, None, day], pa.timestamp("ns", "UTC")),
            "price": pa.array([Decimal("1.50"), Decimal("2.00"), None]),
            "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
            "score": pa.array([1.5, None, 2.0], pa.float32()),
        }
    )
    assert Read(write(tmp_path / f"a{suffix}", table)).documents == [
        (
            1,
            "a",
            {
                "nested": {"x": [1, None], "day": "2024-05-06"},
                "when": "2024-05-06T07:08:09.000010+00:00",
                "price": 1.5,
                "map": {"k": 1},
                "score": 1.5,
            },
        ),
        (None, "b", {"price": 2}),
        (3, "c", {"nested": {"x": [], "day": None}, "when": "2024-05-06T07:08:09.000010+00:00", "map": [], "score": 2}),
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_columns_are_named_and_layouts_recognised(tmp_path: Path, suffix: str) -> None:
    """As the fields of lines are; columns that are not needed are not read."""
    table = pa.table({"_id": ["7"], "title": ["T"], "text": ["x"], "vector": [b"\x00"]})
    path = write(tmp_path / f"a{suffix}", table)
    read = Read(path, id_field="_id", text_fields=["title", "text"], payload_fields=["title"])
    assert read.documents == [("7", "T\nx", {"title": "T"})]
    assert "'vector' has values that JSON has not; leave out the column with --payload-fields" in wrong(path)
    plain = write(tmp_path / f"b{suffix}", pa.table({"id": ["k"], "text": ["x"], "payload": [{"n": 1}]}))
    assert Read(plain).documents == [("k", "x", {"n": 1})]
    beir = Read(write(tmp_path / f"c{suffix}", table.drop_columns(["vector"])))
    assert beir.documents == [("7", "T\nx", {"title": "T"})]
    assert "the fields of BEIR" in beir.said[0]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_wrong_row_costs_no_other(tmp_path: Path, suffix: str) -> None:
    """It is named by its number over all groups and batches of the file."""
    texts: list[str | None] = [f"text {n}" for n in range(2 * BATCH_MAX_ROWS + 10)]
    texts[BATCH_MAX_ROWS + 5] = None
    texts[3] = ""
    read = Read(write(tmp_path / f"a{suffix}", pa.table({"text": texts})))
    assert read.texts == [text for text in texts if text]
    assert read.rejected == [
        ({"row": 4}, "'text' is required"),
        ({"row": BATCH_MAX_ROWS + 6}, "'text' is required"),
    ]
    if suffix == ".parquet":
        groups = write(tmp_path / "groups.parquet", pa.table({"text": texts}), row_group_size=500)
        assert [where for where, _ in Read(groups).rejected] == [{"row": 4}, {"row": BATCH_MAX_ROWS + 6}]


@pytest.mark.parametrize("suffix", [".feather", ".arrows"])
def test_a_value_that_python_cannot_hold_costs_its_row(tmp_path: Path, suffix: str) -> None:
    """A year that no calendar of Python has is named with its column."""
    years = pa.table({"text": ["a", "b"], "year": pa.array([0, 2**60], pa.timestamp("s"))})
    read = Read(write(tmp_path / f"a{suffix}", years))
    assert read.texts == ["a"]
    assert read.rejected == [({"row": 2}, "'year' has a value that cannot be read; leave out the column")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"", "it is not valid Parquet, or damaged (ArrowInvalid)"),
        ("a.parquet", b'{"text": "a"}\n', "it is not valid Parquet, or damaged (ArrowInvalid)"),
        ("a.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "it is not valid Parquet, or damaged ("),
        ("a.feather", b"ARROW1\0\0" + b"\0" * 100, "it is not valid Arrow, or damaged (ArrowInvalid)"),
        ("a.arrow", b"text,id\n", "it is not valid Arrow, or damaged (ArrowInvalid)"),
        ("a.arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7f", "it is not valid Arrow, or damaged (ArrowInvalid)"),
    ],
)
def test_another_format_is_one_message(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """A file that is not what its name says."""
    path = tmp_path / name
    path.write_bytes(content)
    assert wrong(path).startswith(f"{name}: {said}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_without_the_column_is_one_message(tmp_path: Path, suffix: str) -> None:
    """With the columns that there are."""
    path = write(tmp_path / f"a{suffix}", pa.table({"body": ["a"] * 100, "n": range(100)}))
    assert wrong(path).startswith(f"a{suffix}: there is no column 'text'; its columns are 'body', 'n': name them with")
    numbers = write(tmp_path / f"b{suffix}", pa.table({"text": range(100)}))
    assert "none of the first 20 rows is a document; row 1: text must be a string, got an integer" in wrong(numbers)
    nested = write(tmp_path / f"c{suffix}", pa.table({"text": [{"x": "a"}] * 3}))
    assert "row 1: text must be a string, got an object" in wrong(nested)
    empty = write(tmp_path / f"d{suffix}", pa.table({"text": pa.array([], pa.string())}))
    assert Read(empty).lines == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_says_so(tmp_path: Path, suffix: str) -> None:
    """What comes before the damage may be read; the file never ends silently."""
    whole = write(tmp_path / f"a{suffix}", pa.table({"text": [f"text {n} " * 20 for n in range(5000)]})).read_bytes()
    path = tmp_path / f"b{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    assert "or damaged" in wrong(path)


def test_parquet_in_a_pipe_or_compressed_again_is_said(tmp_path: Path) -> None:
    """It is read from its end. A stream of Arrow may be compressed."""
    table = pa.table({"text": ["a"]})
    for suffix in SUFFIXES:
        path = tmp_path / f"a{suffix}.gz"
        path.write_bytes(gzip.compress(write(tmp_path / f"a{suffix}", table).read_bytes()))
        if suffix == ".arrows":
            assert Read(path).texts == ["a"]
        else:
            assert "is read from its end" in wrong(path)


def test_a_format_shows_in_the_first_bytes(tmp_path: Path) -> None:
    """A file without a suffix is read by them."""
    table = pa.table({"text": ["a"]})
    for suffix in (".parquet", ".feather"):
        assert Read(write(tmp_path / f"a{suffix}", table).rename(tmp_path / "plain")).texts == ["a"]
    stream = write(tmp_path / "a.arrows", table).rename(tmp_path / "stream")
    assert Read(stream, format="arrow").texts == ["a"]


def test_one_long_text_for_many_rows_is_no_bomb(tmp_path: Path) -> None:
    """A file of kilobytes whose rows are 2 GB together takes the memory of few rows."""
    table = pa.table({"text": pa.array(["x" * 1_000_000, None]).dictionary_encode().take(pa.array([0] * 2000))})
    path = write(tmp_path / "a.parquet", table)
    assert path.stat().st_size < 1_000_000
    tracemalloc.start()
    lines = Reader(ReadOptions(), print).lines(sources_of([str(path)], any_format=False, say=print))
    count = sum(1 for _ in lines)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000
    assert peak < 30_000_000


@pytest.mark.slow
def test_a_huge_cell_is_read_or_rejected(tmp_path: Path) -> None:
    """Up to 30 MB it is read, and beyond that rejected with its row."""
    table = pa.table({"text": ["a", "x" * 5_000_000, "y" * (LINE_MAX_BYTES + 1), "b"]})
    read = Read(write(tmp_path / "a.parquet", table))
    assert [len(text) for text in read.texts] == [1, 5_000_000, 1]
    assert read.rejected == [({"row": 3}, "the row must have at most 30000000 bytes, got 30000005")]


def test_without_the_extra_the_command_to_install_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear message, before anything is loaded."""
    path = write(tmp_path / "a.parquet", pa.table({"text": ["a"]}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert wrong(path) == "Parquet needs pyarrow, which is not installed: pip install '.[files]'"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_categories_that_are_numbers_are_read(tmp_path: Path, suffix: str) -> None:
    """As the numbers that they stand for."""
    table = pa.table({"text": ["a", "b", "c"], "year": pa.array([2020, 2021, 2020]).dictionary_encode()})
    assert [payload["year"] for _, _, payload in Read(write(tmp_path / f"a{suffix}", table)).documents] == [
        2020,
        2021,
        2020,
    ]


@pytest.mark.parametrize("suffix", [".feather", ".arrows"])
def test_offsets_beyond_their_buffer_are_an_error_of_the_file(tmp_path: Path, suffix: str) -> None:
    """They would lead pyarrow into other memory."""
    offsets = pa.py_buffer(np.array([0, 2**30, 3], np.int32))
    text = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"abc"))
    path = write(tmp_path / f"a{suffix}", pa.table({"text": text}))
    assert wrong(path) == f"a{suffix}: it is not valid Arrow, or damaged (ArrowInvalid)"


READ_DAMAGED = """
import sys
from pathlib import Path
from tests.service.test_bulk_columns import Read, InputError

path = Path(sys.argv[1])
raw = path.read_bytes()
size = int.from_bytes(raw[-8:-4], "little")
refused = 0
for position in range(len(raw) - 8 - size + 16, len(raw) - 8 - size + 40):
    for bit in range(8):
        damaged = bytearray(raw)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            Read(path)
        except InputError:
            refused += 1
print(refused > 0)
"""


@pytest.mark.slow
def test_a_damaged_footer_of_parquet_does_not_end_the_process(tmp_path: Path) -> None:
    """Whichever bit of what it says of a column is wrong, the file is refused or read."""
    table = pa.table({"text": [f"text {number}" for number in range(200)], "id": list(range(200))})
    path = write(tmp_path / "a.parquet", table, row_group_size=50, compression="none")
    ended = subprocess.run([sys.executable, "-c", READ_DAMAGED, str(path)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "True\n"), ended.stderr[-500:]
