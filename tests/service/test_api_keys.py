"""Several API keys at once: what `API_KEY` takes, which key a request has, and what the audit says of it."""

from __future__ import annotations

import logging

import pytest
from pydantic import SecretStr

from embedder import ConfigurationError
from service.api_keys import ApiKeys
from service.settings import Settings
from tests.service.client import ENVIRONMENT
from tests.service.conftest import Serve
from tests.service.served import Served

OLD, NEW = "0ld-0123456789", "n3w-0123456789"


@pytest.mark.parametrize(
    ("written", "keys"),
    [
        (OLD, {"API_KEY": OLD}),
        (f"{OLD},{NEW}", {"API_KEY-1": OLD, "API_KEY-2": NEW}),
        (f" {OLD} , {NEW}, ", {"API_KEY-1": OLD, "API_KEY-2": NEW}),
        (f'["{OLD}", "{NEW}"]', {"API_KEY-1": OLD, "API_KEY-2": NEW}),
        ('["a,b"]', {"API_KEY": "a,b"}),
        ("""'"a"'""", {"API_KEY": '"a"'}),
        ("""["'a'", "b c"]""", {"API_KEY-1": "'a'", "API_KEY-2": "b c"}),
        (f'{{"app": "{OLD}", "ci.2": "{NEW}"}}', {"app": OLD, "ci.2": NEW}),
    ],
)
def test_api_key_takes_one_key_or_several(written: str, keys: dict[str, str]) -> None:
    """Commas, a JSON list and a JSON object of names are understood; a key that has a comma stands in a JSON list."""
    settings = Settings.from_environment({"API_KEY": written})
    assert settings.api_key == ApiKeys({name: SecretStr(key) for name, key in keys.items()})
    for key in keys.values():
        assert key not in settings.model_dump_json() + repr(settings)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (" , ", "must not be blank"),
        ("[]", "must not be blank"),
        ("{}", "must not be blank"),
        (f'["{OLD}", " "]', "must not be blank"),
        (f"{OLD},{OLD}", "must not have a key twice"),
        (f'{{"a": "{OLD}", "a": "{NEW}"}}', "must not have a name twice"),
        (f'{{"a b": "{OLD}"}}', "must have names of 1 to 64 characters"),
        (f'{{"anyone": "{OLD}"}}', "other than anyone and queue"),
        (f'["{OLD}", 1]', "must be a string"),
        (f'["{OLD}"', "must be valid JSON where it begins with [ or {; several keys are a list with commas"),
        ("[" * 5000, "must be a key or several"),
        (f'["{OLD}\\n"]', "must be printable ASCII"),
        (f"{OLD}, \u00e9", "must be printable ASCII"),
        (f'"{OLD}","{NEW}"', "must have no quotes around the keys of a list with commas; several keys are"),
        (f"{NEW},'{OLD}'", "must have no quotes around the keys of a list with commas"),
        (f'["{OLD} "]', "must not begin or end with a blank"),
        (f'{{"app": " {OLD}"}}', "must not begin or end with a blank"),
    ],
)
def test_invalid_keys_refuse_to_start_and_are_not_shown(written: str, said: str) -> None:
    """The message names the rule and the variable, and quotes no key."""
    with pytest.raises(ConfigurationError) as refusal:
        Settings.from_environment({"API_KEY": written})
    assert str(refusal.value).startswith("API_KEY must")
    assert said in str(refusal.value)
    assert OLD not in str(refusal.value)


def test_every_key_is_accepted_and_the_audit_says_which(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """While keys rotate, the old and the new one work; a deletion is logged with the name of its key, not the key."""
    worker = serve(API_KEY=f'{{"old": "{OLD}", "new": "{NEW}"}}')
    worker.good({"texts": ["a"], "qdrant": {"collection": "notes", "ids": [1]}})
    with caplog.at_level(logging.INFO, logger="service.audit"), Served(worker.operations) as served:
        for key, status in ((OLD, 200), (NEW, 200), (OLD + NEW, 401), (f"{OLD},{NEW}", 401)):
            with served.client(Authorization=f"Bearer {key}") as client:
                deleted = client.post("/points/delete", json={"collection": "notes", "ids": [1]})
                assert deleted.status_code == status
    said = [record.getMessage() for record in caplog.records if record.name == "service.audit"]
    assert said == [f"{name} deletes by 1 id from 'notes': {count} deleted" for name, count in (("old", 1), ("new", 0))]
    assert OLD not in caplog.text
    assert NEW not in caplog.text


def test_keys_without_names_are_numbered_and_compared_whole() -> None:
    """A part of a key, or nothing, is not a key."""
    keys = Settings.from_environment({**ENVIRONMENT, "API_KEY": f"{OLD},{NEW}"}).api_key
    assert keys is not None
    assert [keys.name_of(sent.encode()) for sent in (OLD, NEW, OLD[:-1], "")] == ["API_KEY-1", "API_KEY-2", None, None]
