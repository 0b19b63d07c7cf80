"""Text, Markdown, HTML and PDF become documents that say where they come from, and a wrong file costs no other."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bulk.html_text import check_nesting, text_of
from service.bulk.line import InputError
from service.bulk.markdown import sections
from service.bulk.whole_file import PDF_MAX_BYTES, TEXT_FILE_MAX_BYTES
from tests.service.bulk_files import Read
from tests.service.pdf_files import pdf

GUIDE = """---
title: front matter
---
Before the first heading.

# Guide

## Install

Run `make`.

```sh
# not a heading
```

Upgrade
-------

Run it again.

### Old versions ###
# Closing
"""


def written(path: Path, content: bytes | str) -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_markdown_is_cut_along_its_headings(tmp_path: Path) -> None:
    """With the path of headings and the line in the payload; fenced code and front matter have none."""
    written(tmp_path / "docs" / "guide.md", GUIDE)
    documents = Read(tmp_path).documents
    assert [(payload["headings"], payload["line"]) for _, _, payload in documents] == [
        ([], 1),
        (["Guide", "Install"], 8),
        (["Guide", "Upgrade"], 16),
        (["Guide", "Upgrade", "Old versions"], 21),
        (["Closing"], 22),
    ]
    assert [text for _, text, _ in documents] == [
        "Before the first heading.",
        "## Install\n\nRun `make`.\n\n```sh\n# not a heading\n```",
        "Upgrade\n-------\n\nRun it again.",
        "### Old versions ###",
        "# Closing",
    ]
    assert {payload["file"] for _, _, payload in documents} == {"docs/guide.md"}
    assert [identity for identity, _, _ in documents] == [f"docs/guide.md#{n}" for n in range(1, 6)]


@given(st.text("#ab -=`~>\n\t", max_size=200))
def test_no_word_of_markdown_is_lost(text: str) -> None:
    """Every letter is in one section or, of a heading above others, in its path."""
    found = list(sections(text))
    for letter in "ab":
        assert (letter in text) <= any(letter in part.text or letter in "".join(part.headings) for part in found)
    assert sum(part.text.count("a") for part in found) <= text.count("a")


@pytest.mark.parametrize("text", ["[" * 50_000, "> " * 20_000 + "x", "*a_ " * 20_000, "- " * 20_000, "`" * 50_000])
def test_hostile_markdown_is_a_section(text: str) -> None:
    """However deep its brackets, quotes and lists are."""
    (section,) = sections(f"# Title\n\n{text}\n")
    assert section.headings == ("Title",)
    assert text.strip() in section.text


def test_equal_passages_of_two_files_are_two_points(tmp_path: Path) -> None:
    """The id has the file and the number of the passage, so neither hides the other."""
    for name in ("a.md", "b.md"):
        written(tmp_path / name, "# Licence\n\nMIT\n")
    assert [identity for identity, _, _ in Read(tmp_path).documents] == ["a.md#1", "b.md#1"]


def test_text_is_one_document(tmp_path: Path) -> None:
    """Of each file, without its mark and carriage returns; a blank file has none."""
    written(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n")
    written(tmp_path / "b.txt", " \n")
    written(tmp_path / "c.txt.gz", gzip.compress("drei".encode("utf-16")))
    written(tmp_path / "d.txt", b"")
    read = Read(tmp_path)
    assert read.documents == [
        ("a.txt", "one\ntwo\n", {"file": "a.txt"}),
        ("c.txt.gz", "drei", {"file": "c.txt.gz"}),
    ]
    assert read.rejected == []


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html"])
def test_text_that_is_none_costs_its_file(tmp_path: Path, name: str) -> None:
    """One in another encoding, a binary one and one over the limit are rejected with the way out; others are read."""
    written(tmp_path / "latin" / name, b"na\xefve")
    written(tmp_path / "binary" / name, b"%PDF-1.4 \0")
    written(tmp_path / "huge" / name, b"x" * (TEXT_FILE_MAX_BYTES + 1))
    written(tmp_path / "sound" / name, b"sound")
    read = Read(tmp_path)
    assert read.texts == ["sound"]
    assert read.rejected == [
        ({}, "it is not text but PDF; name its format with --format, or unpack it"),
        ({}, f"the file must have at most {TEXT_FILE_MAX_BYTES} bytes; split it"),
        ({}, "the file is not valid UTF-8 (byte 2); name its encoding with --encoding"),
    ]
    assert Read(tmp_path / "latin", encoding="latin-1").texts == ["naïve"]
    assert "it is not valid ascii (byte 2)" in Read(tmp_path / "latin", encoding="ascii").rejected[0][1]


def test_html_is_the_text_that_a_reader_sees(tmp_path: Path) -> None:
    """A line for each block, words of inline elements together, and the title in the payload."""
    page = """<!doctype html><html><head><title> A
     page </title><style>p {color: red}</style></head><body><script>let secret</script>
    <h1>Head&nbsp;line</h1><p>One <b>b</b>old
    word.<p>Two<br>lines &amp; more<ul><li>x<li>y</ul><table><tr><td>1<td>2</table><noscript>no</noscript></body>"""
    read = Read(written(tmp_path / "a.html", page), written(tmp_path / "b.htm", "<p></p>"))
    text = "Head line\nOne bold word.\nTwo\nlines & more\nx\ny\n1\n2"
    name = str(tmp_path / "a.html")
    assert read.documents == [(name, text, {"file": name, "title": "A page"})]


def test_html_names_its_encoding(tmp_path: Path) -> None:
    """In a `meta` element, which `--encoding` overrides."""
    for index, meta in enumerate(
        ('<meta charset="iso-8859-1">', "<META http-equiv=Content-Type content='text/html; charset=windows-1252'>")
    ):
        path = written(tmp_path / f"{index}.html", f"<head>{meta}</head><p>naïve".encode("latin-1"))
        assert Read(path).texts == ["naïve"]
        assert Read(path, encoding="cp1251").texts == ["naпve"]
    unknown = written(tmp_path / "unknown.html", '<meta charset="klingon"><p>naïve')
    assert Read(unknown).texts == ["naïve"]


@pytest.mark.parametrize("html", ["<div>" * 5_000 + "x", "<p" * 10_000, "\0x", "<a " + "b" * 100_000, "</p>" * 10_000])
def test_broken_html_is_text_at_most(html: str) -> None:
    """However broken it is."""
    check_nesting(html)
    text, _ = text_of(html)
    assert len(text) <= len(html)


@pytest.mark.parametrize("tags", ["<div>", "<DIV class=x>", "<b></i>", "<ul><li>"])
def test_html_that_is_nested_without_end_is_refused(tmp_path: Path, tags: str) -> None:
    """A parser goes through all open elements at each tag, so a small file could take hours."""
    read = Read(written(tmp_path / "a.html", tags * 200_000 + "x"), written(tmp_path / "b.html", "<p>sound" * 9))
    assert read.texts == ["\n".join(["sound"] * 9)]
    ((_, said),) = read.rejected
    assert said.startswith("elements are nested too deeply (up to ")


def test_pages_of_a_pdf_are_documents(tmp_path: Path) -> None:
    """With their number; a page without text is none, also from a compressed file."""
    content = pdf(["First page", "", "Third page"])
    for name, raw in (("a.pdf", content), ("b.pdf.gz", gzip.compress(content)), ("plain", content)):
        path = written(tmp_path / name, raw)
        read = Read(path)
        assert read.documents == [
            (f"{path}#1", "First page", {"file": str(path), "page": 1}),
            (f"{path}#3", "Third page", {"file": str(path), "page": 3}),
        ]


def test_a_pdf_that_cannot_be_read_costs_no_other(tmp_path: Path) -> None:
    """It is rejected with what is wrong with it, and what to do."""
    encrypted = b"/Encrypt << /Filter /Standard /V 1 /R 2 /O <" + b"00" * 32 + b"> /U <" + b"00" * 32 + b"> /P -1 >> "
    identity = b"/ID [<00112233445566778899aabbccddeeff> <00112233445566778899aabbccddeeff>]"
    written(tmp_path / "1.pdf", b"%PDF-1.4\n" + b"x" * 2000)
    written(tmp_path / "2.pdf", b"plain text")
    written(tmp_path / "3.pdf", b"")
    written(tmp_path / "4.pdf", pdf(["", ""]))
    written(tmp_path / "5.pdf", pdf(["secret"], trailer=encrypted + identity))
    written(tmp_path / "6.pdf", b"%PDF-" + b"x" * PDF_MAX_BYTES)
    written(tmp_path / "7.pdf", pdf(["sound"]))
    read = Read(tmp_path)
    assert read.texts == ["sound"]
    assert [message for _, message in read.rejected] == [
        "the file is not a PDF, or damaged",
        "the file is not a PDF, or damaged",
        "the file is not a PDF, or damaged",
        "the PDF has no text on its 2 pages; recognise the text of scanned pages first (OCR)",
        "the PDF needs a password; save it without one",
        "the file must have at most 100000000 bytes; split it",
    ]
    assert [str(line.origin.file) for line in read.lines] == [f"{n}.pdf" for n in range(1, 8)]


@pytest.mark.parametrize(
    ("name", "module", "said"),
    [
        ("a.pdf", "pypdfium2", "PDF needs pypdfium2"),
        ("a.html", "selectolax.lexbor", "HTML needs selectolax"),
        ("a.md", "markdown_it", "Markdown needs markdown_it"),
    ],
)
def test_without_the_extra_the_command_to_install_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, said: str
) -> None:
    """One clear message, before anything is loaded, and not one for each file."""
    path = written(tmp_path / name, pdf(["x"]) if name == "a.pdf" else "x")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"^{said}, which is not installed: pip install '\.\[files\]'$"):
        Read(path)


def test_fields_mean_nothing_to_documents(tmp_path: Path) -> None:
    """A folder of tables and texts takes the names of fields for its tables."""
    written(tmp_path / "a.csv", "body\nx\n")
    written(tmp_path / "b.txt", "y")
    assert Read(tmp_path, text_fields=["body"]).texts == ["x", "y"]
