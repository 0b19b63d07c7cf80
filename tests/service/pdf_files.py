"""PDF files, written byte by byte."""

from __future__ import annotations

from collections.abc import Sequence


def pdf(pages: Sequence[str], *, trailer: bytes = b"") -> bytes:
    """A PDF with a line of ASCII text on each page.

    Args:
        pages: the texts, without brackets and backslashes; an empty one is a page without text.
        trailer: further entries of the trailer.
    """
    count = len(pages)
    kids = b" ".join(b"%d 0 R" % (4 + 2 * index) for index in range(count))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [" + kids + b"] /Count %d >>" % count,
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for index, text in enumerate(pages):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 5000 200] /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % (5 + 2 * index)
        )
        shown = b"BT /F1 12 Tf 10 100 Td (" + text.encode() + b") Tj ET" if text else b""
        objects.append(b"<< /Length %d >>\nstream\n" % len(shown) + shown + b"\nendstream")
    content = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(content))
        content += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    start = len(content)
    content += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    content += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = b"<< /Size %d /Root 1 0 R " % (len(objects) + 1)
    return content + b"trailer\n" + size + trailer + b" >>\nstartxref\n%d\n%%%%EOF\n" % start
