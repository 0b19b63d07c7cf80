"""The bundled corpus: short passages about software and computing, and questions with their right answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Passage", "Question", "passages", "questions"]

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Passage:
    """One text to find.

    Attributes:
        id: stable and unique.
        topic: one of about seventeen.
        language: ISO 639-1 code.
        title: a few words, for people; not part of what is embedded.
        text: two to four sentences.
    """

    id: str
    topic: str
    language: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to look for.

    Attributes:
        id: stable and unique.
        query: what a person would type.
        language: ISO 639-1 code.
        answers: ids of the passages that answer it.
        kind: `keyword`, `paraphrase`, `no-overlap` (shares no word with its answers) or `multilingual`.
    """

    id: str
    query: str
    language: str
    answers: list[str]
    kind: str


def passages() -> list[Passage]:
    """All passages, in the order of the file."""
    return [Passage(**json.loads(line)) for line in _lines("passages.jsonl")]


def questions() -> list[Question]:
    """All questions, in the order of the file."""
    return [Question(**json.loads(line)) for line in _lines("questions.jsonl")]


def _lines(name: str) -> list[str]:
    return (_HERE / name).read_text(encoding="utf-8").splitlines()
