"""Masks for the parts of an answer that are not compared exactly: texts for a person, times, and random values.

| where | becomes | why |
|---|---|---|
| a text under `error`, `message` or `detail`, in an answer | `<text>` | recorded apart, in `messages.json` |
| numbers under `timings`, `seconds` | `<seconds>` | of a clock |
| `created` of a model | `<time>` | of a clock |
| the header `x-request-id`, 32 hexadecimal digits | `<id>` | drawn at random; one that the caller gave stays |
| `id` of an answer, 32 hexadecimal digits | `<id>` | the request id of a ranking |
| the header `content-length` | `<bytes>` | texts count, and the decimals of a model |
| hashes in `content-security-policy` | `sha256-<hash>` | of the page's text |
| the body of a page, `text/html` | `<page>` | not part of the wire |
| the OpenAPI document | `<openapi>` | recorded apart |
| `operation` of `bge_m3_store_...` | `<call>` | how an operation uses the store is its own affair |
| `/metrics` | names, types and label sets of `bge_m3_...` | values depend on the time, other metrics on the machine |
"""

from __future__ import annotations

import re
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

Json = dict[str, Any]

TEXT: Final = "<text>"
"""The mask of a text that is not empty."""

_TEXTS: Final = frozenset({"error", "message", "detail"})
_CLOCKS: Final = {"seconds": "<seconds>", "created": "<time>"}
_HASH: Final = re.compile(r"sha256-[A-Za-z0-9+/=_-]+")
_DRAWN_ID: Final = re.compile(r"[0-9a-f]{32}")


def masked(answer: Any) -> tuple[Any, dict[str, str]]:
    """Return the masked answer, and by path the texts that are recorded separately."""
    texts: dict[str, str] = {}
    return _masked(_response(answer), "", texts), texts


def _masked(value: Any, path: str, texts: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_masked(part, f"{path}[{index}]", texts) for index, part in enumerate(value)]
    if not isinstance(value, dict):
        return value
    result: Json = {}
    for key, part in value.items():
        inner = f"{path}.{key}"
        if key in _TEXTS and isinstance(part, str) and part:
            texts[inner.removeprefix(".")] = part
            result[key] = TEXT
        elif key in _CLOCKS and _is_number(part):
            result[key] = _CLOCKS[key]
        elif key == "id" and isinstance(part, str) and _DRAWN_ID.fullmatch(part):
            result[key] = "<id>"
        elif key == "timings" and isinstance(part, dict):
            result[key] = {stage: "<seconds>" if _is_number(spent) else spent for stage, spent in part.items()}
        elif key != "payload":
            result[key] = _masked(part, inner, texts)
        else:
            result[key] = part
    return result


def _response(answer: Any) -> Any:
    """Return an HTTP response with masked headers and body; return any other answer unchanged."""
    if not isinstance(answer, dict) or answer.keys() != {"status", "headers", "body"}:
        return answer
    headers, body = dict(answer["headers"]), answer["body"]
    if "content-length" in headers:
        headers["content-length"] = "<bytes>"
    if _DRAWN_ID.fullmatch(headers.get("x-request-id", "")):
        headers["x-request-id"] = "<id>"
    if "content-security-policy" in headers:
        headers["content-security-policy"] = _HASH.sub("sha256-<hash>", headers["content-security-policy"])
    kind = headers.get("content-type", "")
    if kind.startswith("text/html") and body:
        body = "<page>"
    elif isinstance(body, dict) and "openapi" in body:
        body = "<openapi>"
    elif kind.startswith("text/plain; version=") and body:
        body = _families(body)
    return {"status": answer["status"], "headers": headers, "body": body}


def _families(exposed: str) -> Json:
    """Return the type of every metric, the label sets of its samples, and the bounds of a histogram."""
    families: Json = {}
    for family in text_string_to_metric_families(exposed):
        if not family.name.startswith("bge_m3_"):
            continue
        samples: dict[str, set[str]] = {}
        bounds: dict[str, None] = {}
        for sample in family.samples:
            labels = dict(sample.labels)
            if sample.name.endswith("_bucket"):
                bounds[labels.pop("le")] = None
            if family.name.startswith("bge_m3_store_") and "operation" in labels:
                labels["operation"] = "<call>"
            text = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
            samples.setdefault(sample.name, set()).add(text)
        described: Json = {"type": family.type, "samples": {name: sorted(samples[name]) for name in sorted(samples)}}
        families[family.name] = {**described, "bounds": list(bounds)} if bounds else described
    return families


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
