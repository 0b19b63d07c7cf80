"""The search page: one file without external assets, and the policy that lets it run nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Page:
    """What is sent.

    Attributes:
        body: HTML, UTF-8.
        policy: its Content-Security-Policy.
    """

    body: bytes
    policy: str

    @classmethod
    @cache
    def load(cls) -> Page:
        """The page as it ships; read once."""
        body = (Path(__file__).parent / "page.html").read_bytes()
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
    """What may run, by the hash of its content: nothing that is injected has it."""
    blocks = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), body, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(block).digest()).decode()}'" for block in blocks)
