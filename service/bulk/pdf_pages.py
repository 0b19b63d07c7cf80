"""Extraction of the text of PDF, page by page."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from service.bulk.extras import library
from service.bulk.line import BadLine, BadLineError, Line, Origin
from service.bulk.raw_lines import LINE_MAX_BYTES
from service.bulk.whole_file import PDF_MAX_BYTES, document, read_whole
from service.validation import counted

_PASSWORD_ERROR = 4
"""PDFium's error for a file that needs a password."""


def read_pdf(file: io.BufferedIOBase, origin: Origin) -> Iterator[Line | BadLine]:
    """Read the text of each page as a document; a page without text is none.

    Raises:
        BadLineError: the file is too large, not a PDF, encrypted, or has no text.
        InputError: pypdfium2 is not installed.
    """
    pdfium = library("pypdfium2", "PDF")
    origin = replace(origin, unit="page")
    raw = read_whole(file, PDF_MAX_BYTES)
    try:
        opened = pdfium.PdfDocument(raw)
    except pdfium.PdfiumError as error:
        if getattr(error, "err_code", None) == _PASSWORD_ERROR:
            raise BadLineError("the PDF needs a password; save it without one") from None
        raise BadLineError("the file is not a PDF, or damaged") from None
    try:
        has_text = False
        for number in range(1, len(opened) + 1):
            try:
                text = _text(opened, number - 1)
            except (pdfium.PdfiumError, BadLineError) as error:
                has_text = True
                reason = str(error) if isinstance(error, BadLineError) else "the page is damaged"
                yield BadLine(number, reason, None, origin)
                continue
            if text.strip():
                has_text = True
                yield document(origin, text, {"page": number}, number=number)
        if not has_text:
            pages = counted(len(opened), "page")
            raise BadLineError(f"the PDF has no text on its {pages}; recognise the text of scanned pages first (OCR)")
    finally:
        opened.close()


def _text(opened: Any, index: int) -> str:
    page = opened[index]
    try:
        part = page.get_textpage()
        try:
            if part.count_chars() > LINE_MAX_BYTES:
                raise BadLineError(f"a page must have at most {LINE_MAX_BYTES} characters, got {part.count_chars()}")
            text = part.get_text_bounded(errors="replace")
        finally:
            part.close()
    finally:
        page.close()
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufffe", "").replace("\0", "")  # type: ignore[no-any-return]
