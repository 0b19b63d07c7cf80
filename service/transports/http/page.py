"""The pages for people: one file each without external assets, and the policy that allows only its script and style."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_RERANK: Final = b'id="rerank" type="checkbox" checked'
"""The box for reranking in the page."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page.

    Attributes:
        body: the HTML in UTF-8.
        policy: the Content-Security-Policy.
    """

    body: bytes
    policy: str

    @classmethod
    @cache
    def search(cls, *, reranks: bool = True) -> Page:
        """The search page, which is read once per process.

        Args:
            reranks: whether collections have ColBERT rows; otherwise the box for reranking is off and disabled.
        """
        body = (Path(__file__).parent / "page.html").read_bytes()
        return cls._of(body if reranks else body.replace(_RERANK, _RERANK.replace(b"checked", b"disabled")))

    @classmethod
    @cache
    def docs(cls) -> Page:
        """The page that shows the OpenAPI document, which is read once per process."""
        return cls._of((Path(__file__).parent / "docs.html").read_bytes())

    @classmethod
    def _of(cls, body: bytes) -> Page:
        policy = {
            "default-src": "'none'",
            "script-src": _hashes(body, b"script"),
            "style-src": _hashes(body, b"style"),
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        return cls(body, "; ".join(f"{name} {value}" for name, value in policy.items()))


def _hashes(body: bytes, tag: bytes) -> str:
    """The hashes of the page's own blocks of a tag, which injected content does not have."""
    blocks = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), body, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(block).digest()).decode()}'" for block in blocks)
