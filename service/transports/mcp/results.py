"""Results of the tools as compact JSON of bounded length, for a reader that pays by the word."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from bge_m3_qdrant_client.answers import (
    CollectionAnswer,
    ExplainAnswer,
    HitAnswer,
    ReadPointsAnswer,
    RejectedAnswer,
    SearchAnswer,
)
from bge_m3_qdrant_client.report import IngestReport

from qdrant_sink.payload_layouts import text_key_of, text_of
from qdrant_sink.schema import Layout

Json = dict[str, Any]

RESULT_MIN_CHARACTERS: Final = 1000
"""Minimum of the limit on a result in characters, below which not even its frame would fit."""

MESSAGE_MAX_CHARACTERS: Final = 2000
"""Maximum length of a message in a result, in characters."""

_STRING_MIN_CHARACTERS: Final = 40
"""Length in characters to which strings are cut before whole payloads are left out."""

_MATCHES_MAX: Final = 10
"""Maximum matches of each kind in the explanation of a hit."""

_REJECTED_MAX: Final = 20
"""Maximum rejected points that a result names."""

_BARE_TOKENS: Final = frozenset({"<s>", "</s>", "▁"})
"""Tokens without characters of a text: its beginning, its end, and the beginning of a word."""

_DIGITS: Final = 6
"""Decimal places of scores."""


def search_result(collection: CollectionAnswer, answer: SearchAnswer) -> Json:
    """The hits of one query, best first, each with `id`, `score`, `text`, `payload` and perhaps `explain`.

    Args:
        collection: the description of the collection, which says where a payload has its text.
        answer: the answer of the worker.
    """
    found = answer.results[0]
    result: Json = {"collection": collection.name, "hits": [_hit(collection, hit) for hit in found.hits]}
    if found.unranked:
        result["unranked"] = found.unranked
    if answer.warnings:
        result["warnings"] = [warning.message[:MESSAGE_MAX_CHARACTERS] for warning in answer.warnings]
    return result


def points_result(collection: CollectionAnswer, answer: ReadPointsAnswer) -> Json:
    """The points that were asked for by id, and the ids without a point."""
    points = [{"id": point.id, **_content(collection, point.payload)} for point in answer.points]
    return {"collection": collection.name, "points": points, "missing": answer.missing or []}


def stored_result(report: IngestReport) -> Json:
    """What became of the texts of a `store`."""
    result: Json = {"collection": report.collection, "stored": report.stored, "rejected": len(report.rejected)}
    if report.rejected:
        result["reasons"] = [_rejection(point) for point in report.rejected[:_REJECTED_MAX]]
    return result


def error_result(message: str, *, code: str, retryable: bool, retry_after_s: float | None = None) -> Json:
    """An error that a language model can act on."""
    result: Json = {"error": _cut(message, MESSAGE_MAX_CHARACTERS), "error_code": code, "retryable": retryable}
    if retry_after_s is not None:
        result["retry_after_s"] = retry_after_s
    return result


def bounded(result: Json, max_characters: int) -> str:
    """The result as JSON of at most `max_characters` characters, with marks where something was cut or left out.

    Long strings are cut first, the longest most; then payloads are left out, and at last whole items from the end.

    Args:
        result: the result, whose lists may have many items.
        max_characters: the limit, at least `RESULT_MIN_CHARACTERS`.
    """
    text = _json(result)
    longest = max_characters
    while len(text) > max_characters and longest > _STRING_MIN_CHARACTERS:
        longest = max(longest // 2, _STRING_MIN_CHARACTERS)
        text = _json(_shortened(result, longest))
    if len(text) <= max_characters:
        return text
    lists = {name: [_bare(item) for item in value] for name, value in result.items() if isinstance(value, list)}
    lists = {name: _shortened(items, longest) for name, items in lists.items()}
    frame = {name: _shortened(value, longest) for name, value in result.items() if name not in lists}
    sizes = {name: len(items) for name, items in lists.items()}
    while True:
        fewer = [f"{sizes[name] - len(items)} of {sizes[name]} {name}" for name, items in lists.items() if sizes[name]]
        text = _json({**frame, **lists, "left_out": f"payloads, {', '.join(fewer)}; ask for fewer"})
        if len(text) <= max_characters or not any(lists.values()):
            return text
        largest = max(lists, key=lambda name: len(_json(lists[name])))
        kept = len(lists[largest])
        lists[largest] = lists[largest][: min(kept - 1, kept * max_characters // len(text))]


def _hit(collection: CollectionAnswer, hit: HitAnswer) -> Json:
    score = None if hit.score is None else round(hit.score, _DIGITS)
    result: Json = {"id": hit.id, "score": score, **_content(collection, hit.payload)}
    if hit.explain is not None:
        result["explain"] = _explanation(hit.explain)
    return result


def _content(collection: CollectionAnswer, payload: Mapping[str, Any] | None) -> Json:
    """The text of a point, and the rest of its payload without null, which Haystack stores with each document."""
    payload = {key: value for key, value in (payload or {}).items() if value is not None}
    if collection.text_key is None:
        return {"text": None, "payload": payload}
    layout = cast("Layout", collection.layout.name)
    text = text_of(layout, payload, collection.text_key)
    if text is None:
        return {"text": None, "payload": payload}
    return {"text": text, "payload": _without(payload, {text_key_of(layout, collection.text_key)})}


def _explanation(explain: ExplainAnswer) -> Json:
    """The ranks of a hit in the branches, and the words that matched, those that count most first."""
    branches = {kind: None if branch is None else branch.rank for kind, branch in explain.branches.items()}
    result: Json = {"ranks": branches}
    shared = [match for match in explain.sparse or () if match.token not in _BARE_TOKENS]
    if shared:
        matches = sorted(shared, key=lambda match: -(match.contribution or match.query * match.passage))
        result["shared_tokens"] = [match.token for match in matches[:_MATCHES_MAX]]
    aligned = [match for match in explain.colbert or () if not {match.query, match.token} & _BARE_TOKENS]
    if aligned:
        alignments = sorted(aligned, key=lambda match: -match.score)[:_MATCHES_MAX]
        result["alignments"] = [[match.query, match.token, round(match.score, 3)] for match in alignments]
    return result


def _rejection(point: RejectedAnswer) -> Json:
    return {"index": point.index, "code": point.code, "message": _cut(point.message, MESSAGE_MAX_CHARACTERS)}


def _bare(item: Any) -> Any:
    """An item without what is left out first."""
    return _without(item, {"payload", "explain"}) if isinstance(item, dict) else item


def _without(value: Mapping[str, Any], names: set[str]) -> Json:
    return {name: item for name, item in value.items() if name not in names}


def _shortened(value: Any, max_characters: int) -> Any:
    if isinstance(value, str):
        return _cut(value, max_characters)
    if isinstance(value, Mapping):
        return {name: _shortened(item, max_characters) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [_shortened(item, max_characters) for item in value]
    return value


def _cut(text: str, max_characters: int) -> str:
    """The text, or its beginning with a mark that says how much is missing."""
    if len(text) <= max_characters:
        return text
    return f"{text[:max_characters]}… [cut: {max_characters} of {len(text)} characters]"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
