"""Secrets stay secret, and a job can only reach the collection that it names."""

from __future__ import annotations

import json
import logging
import traceback
from typing import Any

import pytest

from embedder.errors import ConfigurationError
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Client, Json

KEY = "k3y-0123456789"
SECRETS = {"QDRANT_API_KEY": KEY, "API_KEY": KEY, "QDRANT_URL": "https://secret-host.example:6333"}

JOBS: dict[str, Json] = {
    "embed": {"texts": ["a"]},
    "search": {"operation": "search", "collection": "notes", "queries": ["a"]},
    "count": {"operation": "count", "collection": "notes"},
    "delete": {"operation": "delete", "collection": "notes", "ids": [1]},
}
ELSEWHERE = [
    "url", "qdrantUrl", "host", "apiKey", "qdrantPath", "path", "model", "modelId", "engine", "device",
    "code", "callback", "webhook", "headers", "proxy",
]  # fmt: skip


@pytest.mark.parametrize(
    "shown",
    [
        repr,
        str,
        lambda settings: f"{settings}",
        lambda settings: str(settings.model_dump()),
        lambda settings: settings.model_dump_json(),
    ],
)
def test_settings_show_no_key(shown: Any) -> None:
    """However settings are printed, dumped or formatted, keys are masked."""
    text = shown(Settings.from_environment({**ENVIRONMENT, **SECRETS}))
    assert KEY not in text
    assert "**" in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"QDRANT_API_KEY": f"{KEY}\n{KEY}"},
        {"API_KEY": f"{KEY}é"},
        {"API_KEY": " ", "QDRANT_API_KEY": f"{KEY}é"},
        {"API_KEY": '""', "QDRANT_API_KEY": KEY},
        {"QDRANT_URL": f"https://user:{KEY}@host:6333"},
        {"QDRANT_URL": f"https://host:6333?key={KEY}"},
        {"QDRANT_URL": f"http://{KEY}:6333", "QDRANT_API_KEY": KEY},
        {"QDRANT_URL": f"https://host:{KEY}", "QDRANT_API_KEY": KEY},
        {"QDRANT_API_KEY": KEY, "MAX_MODELS": "0"},
    ],
)
def test_a_refusal_to_start_shows_no_key(wrong: dict[str, str]) -> None:
    """Neither the message nor the printed traceback contains a key."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_environment({**ENVIRONMENT, **wrong})
    printed = "".join(traceback.format_exception(caught.value))
    assert "ConfigurationError" in printed
    assert KEY not in printed


def test_warnings_show_no_key(caplog: pytest.LogCaptureFixture) -> None:
    """A warning names odd settings, but not their secrets."""
    with caplog.at_level(logging.WARNING):
        Settings.from_environment({**ENVIRONMENT, "QDRANT_API_KEY": KEY, "API_KEY": KEY})
    assert "QDRANT_API_KEY" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize("operation", JOBS)
@pytest.mark.parametrize("field", ELSEWHERE)
def test_a_job_names_no_server_path_model_or_code(worker: Client, operation: str, field: str) -> None:
    """A field for a server, path, model or code is an error that names it, also in the `qdrant` block."""
    raw = {**JOBS[operation], field: "http://169.254.169.254/"}
    assert field in worker.error(raw, "invalid_request")["error"]
    if operation == "embed":
        target = {"qdrant": {"collection": "notes", field: "/etc/passwd"}}
        assert field in worker.error({**JOBS["embed"], **target}, "invalid_request")["error"]


@pytest.mark.parametrize("operation", JOBS)
@pytest.mark.parametrize(
    "name", ["../notes", "a/b", "/etc", "..", ".", "a\x00b", "a\\b", "http://x", "a?b", "", "n" * 256, "é\n"]
)
def test_a_collection_is_a_name_and_not_a_path(worker: Client, operation: str, name: str) -> None:
    """A name that could leave the store's directory or its part of a URL is an error before the store is used."""
    raw = JOBS[operation]
    raw = {**raw, "qdrant": {"collection": name}} if operation == "embed" else {**raw, "collection": name}
    worker.error(raw, "invalid_request")


@pytest.mark.parametrize("depth", [200, 5_000])
@pytest.mark.parametrize(
    "place",
    [
        lambda deep: deep,
        lambda deep: {"texts": deep},
        lambda deep: {"texts": ["a"], "qdrant": deep},
        lambda deep: {"texts": ["a"], "qdrant": {"collection": "notes", "payloads": [{"a": deep}]}},
        lambda deep: {"operation": "count", "collection": "notes", "filter": {"must": [deep]}},
        lambda deep: {"operation": "delete", "collection": "notes", "filter": deep},
        lambda deep: {"operation": deep},
    ],
)
@pytest.mark.parametrize("kind", ["list", "object"])
def test_deep_nesting_is_an_error_of_that_job(worker: Client, place: Any, kind: str, depth: int) -> None:
    """Deeply nested input in any field neither crashes nor blocks the worker."""
    deep: Any = {}
    for _ in range(depth):
        deep = [deep] if kind == "list" else {"a": deep}
    answer = worker(place(deep))
    if "upsert" in answer:
        assert [point["code"] for point in answer["upsert"]["rejected"]] == ["invalid_payload"]
    else:
        assert answer["error_code"] == "invalid_request", json.dumps(answer)[:300]
