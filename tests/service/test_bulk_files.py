"""Files as people have them are read line by line, and a wrong one is named with what is wrong and the way out."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from service.bulk.formats import FORMATS
from service.bulk.json_array import PART_BYTES
from service.bulk.line import InputError, Line
from service.bulk.raw_lines import LINE_MAX_BYTES
from service.bulk.reading import Reader, ReadOptions
from service.bulk.sources import sources_of
from service.transports.cli.commands.bulk import command
from tests.command_line import invoke
from tests.service.bulk_files import Read

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstd.compress,
}
LINES = b'{"text": "a"}\n{"text": "b", "id": 2, "payload": {"n": 1}}\n'
DOCUMENTS = [(None, "a", None), (2, "b", {"n": 1})]


def written(path: Path, content: bytes | str) -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def wrong(*files: Path, **options: Any) -> str:
    """What is said of a wrong file, without its folder."""
    with pytest.raises(InputError) as raised:
        Read(*files, **options)
    return str(raised.value).replace(f"{files[0].parent}/", "")


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_compressed_file_is_read_as_its_content(tmp_path: Path, suffix: str) -> None:
    """By its first bytes, whatever its name; and a name that promises a compression is held to it."""
    packed = COMPRESSIONS[suffix](LINES)
    assert Read(written(tmp_path / f"a.jsonl{suffix}", packed)).documents == DOCUMENTS
    assert Read(written(tmp_path / "b.jsonl", packed)).documents == DOCUMENTS
    assert Read(written(tmp_path / f"c.csv{suffix}", COMPRESSIONS[suffix](b"text\nx\n"))).texts == ["x"]
    said = wrong(written(tmp_path / f"d.jsonl{suffix}", LINES))
    assert said.startswith(f"d.jsonl{suffix}: it is not ")
    assert Read(written(tmp_path / f"e.jsonl{suffix}", b"")).lines == []


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_damaged_compressed_file_says_so(tmp_path: Path, suffix: str) -> None:
    """One that ends too early, or whose middle is overwritten, is wrong as a whole, and never silently short."""
    content = b"".join(json.dumps({"text": f"{random.Random(n).random()}"}).encode() + b"\n" for n in range(20_000))
    packed = COMPRESSIONS[suffix](content)
    said = wrong(written(tmp_path / f"cut.jsonl{suffix}", packed[: len(packed) // 2]))
    assert "data end too early; the file is incomplete" in said
    middle = len(packed) // 2
    broken = packed[:middle] + b"\x00\xff" * 500 + packed[middle + 1000 :]
    assert "the" in wrong(written(tmp_path / f"broken.jsonl{suffix}", broken))


def test_a_decompression_bomb_is_a_line_that_is_too_long(tmp_path: Path) -> None:
    """A line of 300 MB in a file of 300 kB is rejected for its size, and the line after it is read."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
        file.write(LINES)
        for _ in range(40):
            file.write(b" " * 1_000_000)
        file.write(b"\n" + LINES)
    read = Read(written(tmp_path / "bomb.jsonl.gz", packed.getvalue()))
    assert read.documents == DOCUMENTS * 2
    assert read.rejected == [
        ({"line": 3}, "the line must have at most 30000000 bytes, got 40000001; shorten text or payload")
    ]


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["plain", "mark"])
@pytest.mark.parametrize("first", [b"", b"\r\n"], ids=["", "blank first line"])
@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".jsonl", LINES),
        (".json", b'[{"text": "a"},\n{"text": "b", "id": 2, "payload": {"n": 1}}]'),
        (".csv", b"text,id\na,\nb,2\n"),
        (".tsv", b"text\tid\na\t\nb\t2\n"),
    ],
)
def test_marks_and_line_breaks_of_editors_change_nothing(
    tmp_path: Path, suffix: str, content: bytes, mark: bytes, first: bytes
) -> None:
    """A byte order mark, alone on its line too, and CRLF, in every format."""
    for name, raw in (("lf", content), ("crlf", content.replace(b"\n", b"\r\n"))):
        read = Read(written(tmp_path / f"{name}{suffix}", mark + first + raw))
        assert [(identity, text) for identity, text, _ in read.documents] == [(None, "a"), (2, "b")]
        assert read.rejected == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-8-sig"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    """`--encoding` holds for all text, and a byte order mark needs no word."""
    text = "é" * 70_000
    for suffix, content in (
        (".jsonl", json.dumps({"text": text}, ensure_ascii=False)),
        (".json", json.dumps([{"text": text}], ensure_ascii=False)),
        (".csv", f"text\n{text}\n"),
    ):
        path = written(tmp_path / f"a{suffix}", content.encode(encoding))
        assert Read(path, encoding=encoding).texts == [text]
        if encoding in ("utf-16", "utf-32", "utf-8-sig"):
            assert Read(path).texts == [text]


def test_a_wrong_encoding_is_said(tmp_path: Path) -> None:
    """Lines that are not UTF-8 are rejected; a file that is not in the encoding that was named is wrong as a whole."""
    path = written(tmp_path / "a.csv", b"text,id\nplain,1\nna\xefve,2\nplain,3\n")
    read = Read(path)
    assert read.texts == ["plain", "plain"]
    assert read.rejected == [
        ({"line": 3}, "the line is not valid UTF-8 (byte 2); name the file's encoding with --encoding")
    ]
    assert Read(path, encoding="latin-1").texts == ["plain", "naïve", "plain"]
    assert wrong(path, encoding="ascii") == (
        "a.csv: it is not valid ascii (byte 18); name its encoding with --encoding"
    )
    array = written(tmp_path / "a.json", b'[{"text": "na\xefve"}]')
    assert "it is not valid UTF-8" in wrong(array)
    ended = invoke("bulk", "--collection", "notes", "--encoding", "klingon", str(path))
    assert (ended.status, ended.out) == (2, "")
    assert "'klingon' is unknown; name an encoding of Python" in ended.err


def test_rows_of_a_table_are_documents(tmp_path: Path) -> None:
    """All other columns are the payload, an empty field is absent, and an id of digits is an integer."""
    path = written(tmp_path / "a.csv", 'id,text,url\n7,"a, ""b""\nc",http://x\n007,d,\n,e,u\n')
    assert Read(path).documents == [
        (7, 'a, "b"\nc', {"url": "http://x"}),
        ("007", "d", {}),
        (None, "e", {"url": "u"}),
    ]
    semicolons = Read(written(tmp_path / "b.csv", "text;id\na,b;1\n"))
    assert (semicolons.documents, len(semicolons.said)) == ([(1, "a,b", {})], 1)
    assert semicolons.said[0].endswith("b.csv: the fields are separated by semicolons")
    bare = written(tmp_path / "collection.tsv", "0\tfirst\n1\tsecond\n")
    assert Read(bare, columns=["id", "text"]).documents == [(0, "first", {}), (1, "second", {})]
    unnamed = Read(written(tmp_path / "c.csv", ",text\n0,a\n1,b\n"))
    assert unnamed.documents == [(None, "a", {}), (None, "b", {})]
    assert unnamed.said[0].endswith("c.csv: a column without a name is left out")


def test_a_wrong_row_costs_no_other(tmp_path: Path) -> None:
    """It is named by the line where it begins, also after fields with line breaks."""
    rows = ["text,id", "a,1", '"b\nb",2', "c", "d,4,x", '"e"e,5', "f,6", ",7", "h\rh,8", "i,9", '"open,10']
    read = Read(written(tmp_path / "a.csv", "\n".join(rows) + "\n"))
    assert read.texts == ["a", "b\nb", "f", "i"]
    assert read.rejected == [
        ({"line": 5}, "the row must have 2 fields, as the header has, got 1"),
        ({"line": 6}, "the row must have 2 fields, as the header has, got 3"),
        ({"line": 7}, "after a closing quote, a delimiter was expected; double the quotes inside a quoted field"),
        ({"line": 9}, "'text' is required"),
        ({"line": 10}, "a carriage return stands in a field without quotes"),
        ({"line": 12}, "a quote is not closed, so the lines up to 12 belong to the row; close it"),
    ]


def test_a_cell_that_is_too_large_is_named(tmp_path: Path) -> None:
    """A cell of 1 MB is read; a line over the limit is rejected, and a quote that is never closed is said."""
    huge = "x" * 1_000_000
    assert Read(written(tmp_path / "a.csv", f"text\n{huge}\n")).texts == [huge]
    over = "x" * (LINE_MAX_BYTES + 10)
    read = Read(written(tmp_path / "b.csv", f"text\na\n{over}\nb\n"))
    assert read.texts == ["a", "b"]
    assert read.rejected == [({"line": 3}, f"the line must have at most 30000000 bytes, got {len(over) + 1}")]
    open_quote = 'text\na\n"' + ("x" * 99 + "\n") * (LINE_MAX_BYTES // 100 + 10)
    assert wrong(written(tmp_path / "c.csv", open_quote)) == (
        "c.csv: the row of line 3 must have at most 30000000 bytes; is a quote not closed?"
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text,id,text\na,1,b\n", "two columns have the name 'text'; rename one"),
        ("a.csv", "title,body\na,b\n", "there is no column 'text'; its columns are 'title', 'body': name them with"),
        ("a.csv", "text,id\n" + "a\n" * 30, "none of the first 20 lines is a document; line 2: the row must have"),
        ("a.csv", LINES, "there is no column 'text'; its columns are"),
        ("a.jsonl", "text,id\na,1\nb,2\n", "none of the first 3 lines is a document; line 1: the line is not valid"),
        ("a.jsonl", '{"title": "a"}\n' * 9, "none of the first 9 lines is a document; line 1: text is required; unk"),
        ("a.jsonl", b"PAR1\0\0", "it is not text but Parquet; name its format with --format"),
        ("a.csv", b"PK\x03\x04 ", "it is not text but a zip archive or an Office file"),
        ("a.jsonl", b"{\0}", "it is not text (it has a zero byte)"),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "after an item, a comma or ] was expected (line 1)"),
        ("a.json", '[{"text": "a"},\n{"text": b}]', "it is not valid JSON (line 2)"),
        ("a.json", '[{"text": "a"},\n{"text": "b"}', "after an item, a comma or ] was expected (line 2)"),
        ("a.json", '[{"text": "a"},', "it is not valid JSON (line 1)"),
        ("a.json", '[{"text": "a"}] x', "there is more after the array (line 1)"),
        ("a.json", "[" * 100_000, "an item is nested too deeply (line 1)"),
        ("a.json", "[1, 2]", "none of the first 2 items is a document; item 1: the item must be an object, got an int"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_one_message(
    tmp_path: Path, name: str, content: bytes | str, said: str
) -> None:
    """Not one for each of a million lines: what is wrong with the file, and an option that may help."""
    told = wrong(written(tmp_path / name, content))
    assert told.startswith(f"{name}: ")
    assert said in told


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a", "a.jsonl.gz"])
@pytest.mark.parametrize("content", [b"", codecs.BOM_UTF8, b"\r\n\r\n"], ids=["empty", "mark", "blank"])
def test_an_empty_file_has_no_documents(tmp_path: Path, name: str, content: bytes) -> None:
    """An empty file, and one with nothing but what an editor writes, is not an error."""
    raw = gzip.compress(content) if name.endswith(".gz") else content
    assert Read(written(tmp_path / name, raw)).lines == []


def test_items_of_an_array_are_read_whatever_their_length(tmp_path: Path) -> None:
    """Items that are cut by the end of what is read at a time, and one that is longer than that, are whole."""
    texts = [f"{n} " + 'x\\"{[]}é\n' * (n % 40) for n in range(6000)] + ["y" * (3 * PART_BYTES), "last"]
    items = [{"text": text, "id": n, "payload": {"deep": [{"n": n}]}} for n, text in enumerate(texts)]
    for indent in (None, 2):
        read = Read(written(tmp_path / "a.json", json.dumps(items, indent=indent, ensure_ascii=False)))
        assert read.texts == texts
    mixed = Read(written(tmp_path / "b.json", '[{"text": "a"}, 7, {"text": null}, {"text": "b"}]'))
    assert mixed.texts == ["a", "b"]
    assert mixed.rejected == [
        ({"item": 2}, "the item must be an object, got an integer"),
        ({"item": 3}, "text is required"),
    ]
    over = "[" + '{"text": "' + "x" * (2 * LINE_MAX_BYTES) + '"}]'
    assert "an item must have at most 30000000 characters" in wrong(written(tmp_path / "c.json", over))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1), min_size=1))
def test_any_text_survives_a_table(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Quotes, delimiters, line breaks, and marks inside a quoted field are those of the text."""
    quoted = "".join('"{}"\n'.format(text.replace('"', '""')) for text in texts)
    path = written(tmp_path_factory.mktemp("table") / "a.csv", f"text\n{quoted}")
    assert Read(path, columns=()).texts == texts


def test_fields_are_named(tmp_path: Path) -> None:
    """`--id-field`, `--text-field` (several are joined) and `--payload-fields`, or all others."""
    fields = {"key": "k", "title": "T", "body": "B", "lang": "en", "year": 7, "none": None}
    paths = [
        written(tmp_path / "a.jsonl", json.dumps(fields) + "\n" + json.dumps(fields | {"title": None}) + "\n"),
        written(tmp_path / "a.json", json.dumps([fields, fields | {"title": ""}])),
    ]
    for path in paths:
        read = Read(path, id_field="key", text_fields=["title", "body"])
        rest = {"lang": "en", "year": 7}
        assert read.documents == [("k", "T\nB", rest), ("k", "B", rest)]
        read = Read(path, text_fields=["body"], payload_fields=["lang", "title"])
        assert read.documents[0] == (None, "B", {"lang": "en", "title": "T"})
        assert "'nothing' is required" in wrong(path, text_fields=["nothing"])
    table = written(tmp_path / "a.csv", "key,title,body,lang\n1,T,B,en\n2,,,en\n")
    read = Read(table, id_field="key", text_fields=["title", "body"])
    assert read.documents == [(1, "T\nB", {"lang": "en"})]
    assert read.rejected == [({"line": 3}, "one of 'title', 'body' is required")]
    assert "there is no column 'nothing'" in wrong(table, text_fields=["body"], payload_fields=["nothing"])
    kept = written(tmp_path / "b.jsonl", json.dumps({"n": 1, "text": "a", "payload": {"m": 2}}))
    assert Read(kept, id_field="n").documents == [(1, "a", {"m": 2})]


@pytest.mark.parametrize(
    ("fields", "document", "whose"),
    [
        ({"_id": "1", "title": "T", "text": "x", "metadata": {"u": 1}}, ("1", "T\nx", {"title": "T", "u": 1}), "BEIR"),
        ({"_id": "1", "title": "", "text": "x"}, ("1", "x", {"title": ""}), "BEIR"),
        (
            {"id": None, "page_content": "x", "metadata": {"source": "s"}, "type": "Document"},
            (None, "x", {"source": "s"}),
            "LangChain",
        ),
        (
            {"id": "h", "content": "x", "meta": {"m": 1}, "score": None, "embedding": [1.0], "blob": None},
            ("h", "x", {"m": 1}),
            "Haystack",
        ),
    ],
)
def test_layouts_of_other_programs_are_recognised(
    tmp_path: Path, fields: dict[str, Any], document: tuple[Any, str, Any], whose: str
) -> None:
    """And said once, with what is taken for what."""
    lines = written(tmp_path / "a.jsonl", (json.dumps(fields) + "\n") * 2)
    array = written(tmp_path / "b.json", json.dumps([fields, fields]))
    read = Read(lines, array)
    assert read.documents == [document] * 4
    (said,) = read.said
    assert said.startswith(f"{lines}: the fields of {whose}: id is ")


def test_a_field_of_a_wrong_type_is_named(tmp_path: Path) -> None:
    """In mapped lines as in plain ones."""
    lines = [
        {"page_content": "a", "metadata": {}},
        {"page_content": 1},
        {"page_content": "\ud800"},
        {"page_content": "b", "metadata": [1]},
    ]
    read = Read(written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines))))
    assert [message for _, message in read.rejected] == [
        "page_content must be a string, got an integer",
        "page_content is not valid Unicode (a lone surrogate)",
        "metadata must be an object, got a list",
    ]


def test_folders_and_patterns_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Files of unknown formats are left out and said, hidden ones without a word; `--format` takes them all."""
    for name, content in (
        ("b/2.jsonl", '{"text": "third"}'),
        ("b/1.csv", "text\nsecond"),
        ("a.json", '[{"text": "first"}]'),
        ("picture.png", b"\x89PNG"),
        ("README", "read me"),
        (".hidden.jsonl", "nonsense"),
        (".git/x.jsonl", "nonsense"),
    ):
        written(tmp_path / name, content)
    read = Read(tmp_path)
    assert read.texts == ["first", "second", "third"]
    assert read.said == [f"{tmp_path}: files of unknown formats are left out (.png: 1, without a suffix: 1)"]
    assert {str(line.origin.file) for line in read.lines} == {"a.json", "b/1.csv", "b/2.jsonl"}
    assert Read(f"{tmp_path}/**/*.jsonl").texts == ["third"]
    assert Read(f"{tmp_path}/b/*").texts == ["second", "third"]
    odd = written(tmp_path / "odd[1].jsonl", LINES)
    assert Read(odd).documents == DOCUMENTS
    with pytest.raises(InputError, match=r"no file has a name of this pattern"):
        Read(f"{tmp_path}/*.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"the folder has no file of a known format"):
        Read(tmp_path / "empty")
    with pytest.raises(InputError, match=r"absent.jsonl: there is no such file"):
        Read(tmp_path / "absent.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    """With the reason of the system."""
    path = written(tmp_path / "a.jsonl", LINES)
    path.chmod(0)
    assert wrong(path) == "a.jsonl: it cannot be read (Permission denied)"


@pytest.mark.parametrize(
    "content",
    [LINES, codecs.BOM_UTF8 + LINES, gzip.compress(LINES), b" [" + LINES.strip().replace(b"\n", b",") + b"]"],
    ids=["lines", "mark", "gzip", "array"],
)
def test_a_pipe_is_read_like_a_file(tmp_path: Path, content: bytes) -> None:
    """Its format and compression show in its first bytes."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            for index in range(0, len(content), 3):
                file.write(content[index : index + 3])

    reader = Reader(ReadOptions(), print)
    thread = Thread(target=write)
    thread.start()

    lines = list(reader.lines(sources_of([str(pipe)], any_format=False, say=print)))
    thread.join()
    assert [(line.id, line.text, line.payload) for line in lines if isinstance(line, Line)] == DOCUMENTS


def test_every_format_can_be_named() -> None:
    """The option has the formats that there are."""
    (option,) = (option for option in command.params if option.name == "format")
    assert tuple(option.type.choices) == FORMATS  # type: ignore[attr-defined]
