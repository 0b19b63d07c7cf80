"""The settings: variables, defaults, errors and warnings."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from embedder.errors import ConfigurationError
from qdrant_sink import ServerUrl
from service.api_keys import ApiKeys
from service.collection_config import CollectionConfig
from service.settings import Settings
from tests.service.conftest import Serve

SECRET = "s3cret-0123456789"  # noqa: S105 - a made-up one

DEFAULTS: dict[str, Any] = {
    "MODEL_ID": "BAAI/bge-m3",
    "MODEL_REVISION": None,
    "SERVED_MODEL_NAME": (),
    "ENGINE": "packed",
    "DTYPE": "auto",
    "GPU_DEVICE": None,
    "MAX_MODELS": 4,
    "MAX_CONCURRENCY": 4,
    "MIN_CONCURRENCY": 1,
    "SCALE_UP_THRESHOLD": 0.05,
    "SCALE_DOWN_THRESHOLD": 0.0,
    "TOKEN_BUDGET": None,
    "QUEUE_TOKENS": 2_000_000,
    "MAX_TEXTS": 10_000,
    "QUERY_MAX_LENGTH": 512,
    "PASSAGE_MAX_LENGTH": 8192,
    "RERANK_WEIGHTS": (1.0, 1.0, 1.0),
    "QDRANT_URL": None,
    "QDRANT_GRPC_PORT": None,
    "QDRANT_TRANSPORT": "auto",
    "QDRANT_TIMEOUT_S": 10.0,
    "QDRANT_API_KEY": None,
    "QDRANT_ALLOW_HTTP_KEY": False,
    "QDRANT_PATH": "./qdrant_data",
    "QDRANT_PATH_RESERVE_MB": 256.0,
    "QDRANT_COLLECTION": None,
    "QDRANT_COLLECTIONS": (),
    "QDRANT_COLLECTION_CONFIG": CollectionConfig(),
    "MEMORY_BUDGET_MB": None,
    "JSON_MAX_NODES": 2_000_000,
    "INFERENCE_MAX_REQUEST_MB": 64.0,
    "INFERENCE_MAX_RESPONSE_MB": 2500.0,
    "MAX_RESPONSE_MB": None,
    "OPENAI_STRICT": False,
    "OPENAI_TRUNCATE": False,
    "ALLOW_TOKEN_IDS": False,
    "ALLOW_LOADS": False,
    "LOG_LEVEL": "INFO",
    "LOG_FORMAT": "text",
    "HOST": None,
    "PORT": None,
    "ALLOWED_HOSTS": (),
    "HTTP_MAX_CONNECTIONS": None,
    "HTTP_MAX_CONNECTIONS_PER_PEER": None,
    "SHUTDOWN_GRACE_S": 30.0,
    "ROOT_PATH": None,
    "JOBS_MAX": 1000,
    "JOBS_MAX_MB": 256.0,
    "JOBS_KEEP_S": 3600,
    "COMPRESS_RESPONSES": True,
    "CORS_ORIGINS": (),
    "API_KEY": None,
}


def test_every_variable_of_the_contract_has_its_documented_default() -> None:
    """With an empty environment every setting has its documented default, and every setting is documented."""
    settings = Settings.from_environment({})
    assert {name.upper(): value for name, value in settings} == DEFAULTS


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("MODEL_ID", "mini", "mini"),
        ("MODEL_REVISION", "5617a9f", "5617a9f"),
        ("SERVED_MODEL_NAME", "BAAI/bge-m3", ("BAAI/bge-m3",)),
        ("SERVED_MODEL_NAME", "bge-m3, BAAI/bge-m3,*", ("bge-m3", "BAAI/bge-m3", "*")),
        ("SERVED_MODEL_NAME", '["bge-m3", "*"]', ("bge-m3", "*")),
        ("OPENAI_STRICT", "true", True),
        ("OPENAI_TRUNCATE", "true", True),
        ("ALLOW_LOADS", "true", True),
        ("ALLOW_TOKEN_IDS", "true", True),
        ("ENGINE", "flagembedding", "flagembedding"),
        ("DTYPE", "int8", "int8"),
        ("DTYPE", "float8", "float8"),
        ("GPU_DEVICE", "cuda:0,cuda:1", "cuda:0,cuda:1"),
        ("MAX_MODELS", "2", 2),
        ("MAX_CONCURRENCY", "64", 64),
        ("MIN_CONCURRENCY", "3", 3),
        ("SCALE_UP_THRESHOLD", "0.5", 0.5),
        ("SCALE_DOWN_THRESHOLD", "0.01", 0.01),
        ("TOKEN_BUDGET", "16384", 16_384),
        ("QUEUE_TOKENS", "1000", 1000),
        ("MAX_TEXTS", "5", 5),
        ("QUERY_MAX_LENGTH", "64", 64),
        ("PASSAGE_MAX_LENGTH", "3", 3),
        ("RERANK_WEIGHTS", "0.4, 0.2,0", (0.4, 0.2, 0.0)),
        ("RERANK_WEIGHTS", "[0, 0, 1]", (0.0, 0.0, 1.0)),
        ("QDRANT_URL", "https://example.org:6333", ServerUrl(https=True, host="example.org", port=6333)),
        ("QDRANT_GRPC_PORT", "7334", 7334),
        ("QDRANT_TRANSPORT", "rest", "rest"),
        ("QDRANT_TIMEOUT_S", "2.5", 2.5),
        ("QDRANT_ALLOW_HTTP_KEY", "true", True),
        ("QDRANT_PATH", "elsewhere", "elsewhere"),
        ("QDRANT_PATH_RESERVE_MB", "0", 0.0),
        ("QDRANT_COLLECTION", "notes", "notes"),
        ("MAX_RESPONSE_MB", "0.5", 0.5),
        ("INFERENCE_MAX_REQUEST_MB", "0.5", 0.5),
        ("MEMORY_BUDGET_MB", "200", 200.0),
        ("JSON_MAX_NODES", "1000", 1000),
        ("INFERENCE_MAX_RESPONSE_MB", "9000", 9000.0),
        ("LOG_LEVEL", "debug", "DEBUG"),
        ("LOG_FORMAT", "JSON", "json"),
        ("PORT", "8080", 8080),
        ("HOST", "127.0.0.1", "127.0.0.1"),
        ("HOST", "localhost", "127.0.0.1"),
        ("HOST", "[::1]", "::1"),
        ("ALLOWED_HOSTS", "Worker.example.org, localhost:8000", ("worker.example.org", "localhost:8000")),
        ("ALLOWED_HOSTS", '["[::1]:8000", "*"]', ("[::1]:8000", "*")),
        ("HTTP_MAX_CONNECTIONS", "50", 50),
        ("HTTP_MAX_CONNECTIONS_PER_PEER", "5", 5),
        ("SHUTDOWN_GRACE_S", "2.5", 2.5),
        ("ROOT_PATH", "/search/v2/", "/search/v2"),
        ("CORS_ORIGINS", "*", ("*",)),
        ("CORS_ORIGINS", "HTTPS://A.example:443/,http://[::1]:80", ("https://a.example", "http://[::1]")),
        ("CORS_ORIGINS", '["http://localhost:3000"]', ("http://localhost:3000",)),
    ],
)
def test_every_variable_is_read(variable: str, text: str, value: object) -> None:
    """A variable is read and converted to its type."""
    assert getattr(Settings.from_environment({variable: text}), variable.lower()) == value


def test_keys_are_secrets() -> None:
    """Keys are `SecretStr`, which must be unwrapped explicitly."""
    settings = Settings.from_environment(
        {"QDRANT_URL": "https://example.org", "QDRANT_API_KEY": SECRET, "API_KEY": SECRET + "2"}
    )
    assert settings.qdrant_api_key == SecretStr(SECRET)
    assert settings.api_key == ApiKeys({"API_KEY": SecretStr(SECRET + "2")})


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SERVED_MODEL_NAME", "two words"),
        ("SERVED_MODEL_NAME", "/mine"),
        ("SERVED_MODEL_NAME", "fine,*mine"),
        ("SERVED_MODEL_NAME", ","),
        ("SERVED_MODEL_NAME", "[]"),
        ("SERVED_MODEL_NAME", "[1]"),
        ("OPENAI_STRICT", "maybe"),
        ("ENGINE", "onnx"),
        ("DTYPE", "float64"),
        ("MAX_MODELS", "0"),
        ("MAX_MODELS", "many"),
        ("MAX_MODELS", "1.5"),
        ("MAX_CONCURRENCY", "0"),
        ("MIN_CONCURRENCY", "0"),
        ("MIN_CONCURRENCY", "-1"),
        ("SCALE_UP_THRESHOLD", "-0.1"),
        ("SCALE_UP_THRESHOLD", "nan"),
        ("SCALE_DOWN_THRESHOLD", "inf"),
        ("SCALE_DOWN_THRESHOLD", "often"),
        ("TOKEN_BUDGET", "0"),
        ("QUEUE_TOKENS", "0"),
        ("MAX_TEXTS", "0"),
        ("QUERY_MAX_LENGTH", "2"),
        ("PASSAGE_MAX_LENGTH", "2"),
        ("RERANK_WEIGHTS", "1,1"),
        ("RERANK_WEIGHTS", "0,0,0"),
        ("RERANK_WEIGHTS", "1,1,-1"),
        ("RERANK_WEIGHTS", "1,1,nan"),
        ("RERANK_WEIGHTS", "1,1,inf"),
        ("RERANK_WEIGHTS", "equal"),
        ("QDRANT_URL", "localhost:6333"),
        ("QDRANT_URL", "ftp://localhost"),
        ("QDRANT_URL", "http://"),
        ("QDRANT_URL", "http://host:99999"),
        ("QDRANT_URL", "http://host:port"),
        ("QDRANT_URL", "http://[::1"),
        ("QDRANT_COLLECTION", "a/b"),
        ("QDRANT_COLLECTIONS", "fine,a:b"),
        ("QDRANT_COLLECTION_CONFIG", "{"),
        ("QDRANT_COLLECTION_CONFIG", '{"shards": 0}'),
        ("MAX_RESPONSE_MB", "0"),
        ("INFERENCE_MAX_REQUEST_MB", "0"),
        ("MEMORY_BUDGET_MB", "199"),
        ("JSON_MAX_NODES", "999"),
        ("INFERENCE_MAX_RESPONSE_MB", "inf"),
        ("MAX_RESPONSE_MB", "nan"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "yaml"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("HOST", "worker.example.org"),
        ("HOST", "127.0.0.1:8000"),
        ("ALLOWED_HOSTS", "https://worker.example.org"),
        ("ALLOWED_HOSTS", "*.example.org"),
        ("ALLOWED_HOSTS", "worker.example.org/path"),
        ("ALLOWED_HOSTS", "::1"),
        ("ALLOWED_HOSTS", " , "),
        ("HTTP_MAX_CONNECTIONS", "0"),
        ("HTTP_MAX_CONNECTIONS_PER_PEER", "0"),
        ("SHUTDOWN_GRACE_S", "0.5"),
        ("SHUTDOWN_GRACE_S", "inf"),
        ("JOBS_MAX", "0"),
        ("JOBS_MAX_MB", "0"),
        ("JOBS_KEEP_S", "0"),
        ("COMPRESS_RESPONSES", "gzip"),
        ("CORS_ORIGINS", "app.example.org"),
        ("CORS_ORIGINS", "https://app.example.org/page"),
        ("CORS_ORIGINS", "https://*.example.org"),
        ("CORS_ORIGINS", '["null"]'),
        ("CORS_ORIGINS", "[1]"),
        ("CORS_ORIGINS", " , "),
        ("ROOT_PATH", "search"),
        ("ROOT_PATH", "/"),
        ("ROOT_PATH", "//search"),
        ("ROOT_PATH", "/a/../b"),
        ("ROOT_PATH", "https://example.org/search"),
    ],
)
def test_an_invalid_value_refuses_to_start_and_names_its_variable(variable: str, text: str) -> None:
    """The error names the variable."""
    with pytest.raises(ConfigurationError, match=rf"\b{variable}\b"):
        Settings.from_environment({variable: text})


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("MAX_MODELS", "0", "MAX_MODELS must be at least 1, got '0'"),
        ("MAX_MODELS", "many", "MAX_MODELS must be an integer, got 'many'"),
        ("MAX_MODELS", "9" * 5000, "must be an integer of fewer digits"),
        ("QUEUE_TOKENS", "9999999999", "QUEUE_TOKENS must be at most 1000000000, got '9999999999'"),
        ("SCALE_UP_THRESHOLD", "often", "SCALE_UP_THRESHOLD must be a number, got 'often'"),
        ("SCALE_UP_THRESHOLD", "nan", "SCALE_UP_THRESHOLD must be a finite number, got 'nan'"),
        ("MAX_RESPONSE_MB", "0", "MAX_RESPONSE_MB must be above 0, got '0'"),
        ("LOG_FORMAT", "YAML", "LOG_FORMAT must be 'text' or 'json', got 'YAML'"),
        ("LOG_LEVEL", "verbose", "got 'verbose'"),
        ("QDRANT_TRANSPORT", "http", "QDRANT_TRANSPORT must be 'auto', 'grpc' or 'rest', got 'http'"),
        ("QDRANT_ALLOW_HTTP_KEY", "maybe", "QDRANT_ALLOW_HTTP_KEY must be true or false, got 'maybe'"),
        ("QDRANT_GRPC_PORT", "grpc", "QDRANT_GRPC_PORT must be an integer, got 'grpc'"),
        ("QDRANT_GRPC_PORT", "tcp://10.0.0.1:6334", "Kubernetes sets it for a Service of this name"),
        ("QDRANT_URL", "localhost:6333", "QDRANT_URL must look like http://host:6333 or https://host:6333, got 'local"),
        ("QDRANT_URL", "ftp://localhost/a", "got 'ftp://localhost***'"),
        (
            "QDRANT_URL",
            "http://host:99999",
            "QDRANT_URL must have a port from 1 to 65535, or no port, got 'http://host:",
        ),
        ("QDRANT_URL", "http://host:6334", "QDRANT_URL must name the port of REST, got 6334"),
        ("QDRANT_URL", f"https://user:{SECRET}@host", "got 'https://***@host'; use QDRANT_API_KEY"),
        ("QDRANT_URL", SECRET, "got a string of 17 characters"),
        ("QDRANT_COLLECTIONS", "fine,a:b", "QDRANT_COLLECTIONS must have 1 to 255 characters other than < > : "),
        ("QDRANT_COLLECTIONS", "fine,a:b", ", got 'a:b'"),
        ("QDRANT_COLLECTIONS", '["a\\nb"]', r", got 'a\nb'"),
        ("QDRANT_COLLECTION", "..", 'and must not be "." or "..", got \'..\''),
        (
            "QDRANT_COLLECTION_CONFIG",
            "/absent.json",
            "QDRANT_COLLECTION_CONFIG='/absent.json': the file cannot be opened (No such",
        ),
        ("QDRANT_COLLECTION_CONFIG", "{", "QDRANT_COLLECTION_CONFIG: the config is not valid JSON"),
    ],
)
def test_an_error_names_the_rule_and_the_value(variable: str, text: str, said: str) -> None:
    """The error names the variable, the rule and the value as the operator wrote it."""
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        Settings.from_environment({variable: text})


def test_all_invalid_values_are_named_together() -> None:
    """The error names all invalid variables."""
    with pytest.raises(ConfigurationError, match=r"MAX_MODELS.*PORT"):
        Settings.from_environment({"MAX_MODELS": "0", "PORT": "no"})


QUOTED = ["{}", " {} ", "{}\n", "{}\r\n", '"{}"', "'{}'", '"{}"\n', " ' {} ' ", "\ufeff{}"]
"""Forms of a value in templates, shells and secret files."""

PLAIN = {
    "MODEL_ID": "mini", "MODEL_REVISION": "main", "SERVED_MODEL_NAME": "bge", "ENGINE": "flagembedding",
    "DTYPE": "int8", "GPU_DEVICE": "cuda:1", "MAX_MODELS": "2", "MAX_CONCURRENCY": "64", "MIN_CONCURRENCY": "3",
    "SCALE_UP_THRESHOLD": "0.5", "SCALE_DOWN_THRESHOLD": "0.01", "TOKEN_BUDGET": "16384", "QUEUE_TOKENS": "1000",
    "MAX_TEXTS": "5", "QUERY_MAX_LENGTH": "64", "PASSAGE_MAX_LENGTH": "32", "RERANK_WEIGHTS": "1,0,0", "QDRANT_URL": "https://example.org:7333",
    "QDRANT_GRPC_PORT": "7334", "QDRANT_TRANSPORT": "grpc", "QDRANT_API_KEY": SECRET, "QDRANT_ALLOW_HTTP_KEY": "true",
    "QDRANT_TIMEOUT_S": "20",
    "QDRANT_PATH": "else where", "QDRANT_PATH_RESERVE_MB": "10", "QDRANT_COLLECTION": "notes",
    "QDRANT_COLLECTIONS": "notes,papers", "QDRANT_COLLECTION_CONFIG": '{"shards": 2}',
    "MAX_RESPONSE_MB": "0.5", "OPENAI_STRICT": "true",
    "OPENAI_TRUNCATE": "true", "ALLOW_TOKEN_IDS": "true",
    "ALLOW_LOADS": "true", "LOG_LEVEL": "ERROR", "LOG_FORMAT": "json",
    "HOST": "127.0.0.1", "PORT": "8080", "ALLOWED_HOSTS": "localhost", "HTTP_MAX_CONNECTIONS": "50",
    "HTTP_MAX_CONNECTIONS_PER_PEER": "5", "SHUTDOWN_GRACE_S": "10",
    "ROOT_PATH": "/search/v2", "JOBS_MAX": "5", "JOBS_MAX_MB": "0.5", "JOBS_KEEP_S": "60",
    "COMPRESS_RESPONSES": "false", "CORS_ORIGINS": "*", "INFERENCE_MAX_REQUEST_MB": "1.5", "MEMORY_BUDGET_MB": "512",
    "JSON_MAX_NODES": "5000000",
    "INFERENCE_MAX_RESPONSE_MB": "20", "API_KEY": SECRET + "2",
}  # fmt: skip
"""A value of each setting."""


@pytest.mark.parametrize("form", QUOTED)
def test_every_setting_is_taken_in_quotes_and_with_blanks(form: str) -> None:
    """Blanks, a line break and one pair of quotes around a value make no difference, in every setting."""
    assert PLAIN.keys() == DEFAULTS.keys()
    written = {name: form.format(value) for name, value in PLAIN.items()}
    assert Settings.from_environment(written) == Settings.from_environment(PLAIN)
    assert Settings.from_environment(PLAIN).model_fields_set == set(Settings.model_fields)


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("'\"a b\"'", '"a b"'),
        ('"it\'s"', "it's"),
        ('"a', '"a'),
        ("'a\"", "'a\""),
        ('"', '"'),
        ('""a""', '"a"'),
    ],
)
def test_one_pair_of_matching_quotes_is_removed(written: str, key: str) -> None:
    """What a quoted key means is unambiguous: one matching pair goes, and everything else is part of the key."""
    assert Settings.from_environment({"API_KEY": written}).api_key == ApiKeys({"API_KEY": SecretStr(key)})


@pytest.mark.parametrize("blank", [" ", "\n", '""', "' '"])
def test_blank_settings_are_unset_and_blank_keys_are_errors(blank: str) -> None:
    """A blank value sets nothing. A blank key was meant to be one, and must not leave the port open."""
    blanks = {name: blank for name in DEFAULTS if not name.endswith("API_KEY")}
    assert not Settings.from_environment(blanks).model_fields_set
    for name in ("API_KEY", "QDRANT_API_KEY"):
        with pytest.raises(ConfigurationError, match=rf"^{name} must not be blank"):
            Settings.from_environment({name: blank})


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("LOG_LEVEL", "warn", "WARNING"),
        ("LOG_LEVEL", "Fatal", "CRITICAL"),
        ("LOG_FORMAT", "JSON", "json"),
        ("ENGINE", "Packed", "packed"),
        ("DTYPE", "FLOAT16", "float16"),
        ("GPU_DEVICE", "CUDA:0,Cuda:1", "cuda:0,cuda:1"),
        ("GPU_DEVICE", "CPU", "cpu"),
        ("QDRANT_TRANSPORT", "REST", "rest"),
        ("QDRANT_ALLOW_HTTP_KEY", "True", True),
        ("QDRANT_ALLOW_HTTP_KEY", "1", True),
        ("QDRANT_ALLOW_HTTP_KEY", "OFF", False),
        ("QDRANT_URL", "HTTP://127.0.0.1:6333", ServerUrl(https=False, host="127.0.0.1", port=6333)),
        ("QDRANT_URL", "Https://Example.ORG/", ServerUrl(https=True, host="example.org")),
        ("PORT", "+8000", 8000),
    ],
)
def test_an_unusual_but_clear_form_is_taken(variable: str, text: str, value: object) -> None:
    """The case of words makes no difference, and common abbreviations are understood."""
    assert getattr(Settings.from_environment({variable: text}), variable.lower()) == value


def test_an_empty_variable_counts_as_unset() -> None:
    """`QDRANT_API_KEY=` in a template sets no key, and `GPU_DEVICE=` sets no device."""
    settings = Settings.from_environment(dict.fromkeys(DEFAULTS, ""))
    assert settings == Settings.from_environment({})
    assert not settings.model_fields_set


def test_other_variables_are_ignored() -> None:
    """Variables of other programs are ignored."""
    assert Settings.from_environment({"PATH": "/bin", "MODEL": "x", "PORTAL": "y"}) == Settings.from_environment({})


def test_a_mapping_is_read_instead_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings from a mapping do not depend on the environment."""
    monkeypatch.setenv("MAX_MODELS", "9")
    assert Settings.from_environment({}).max_models == 4
    assert Settings.from_environment().max_models == 9


def test_a_minimum_above_the_maximum_refuses_to_start() -> None:
    """An empty range of concurrency is an error that names both limits."""
    with pytest.raises(ConfigurationError, match=r"MIN_CONCURRENCY must be at most MAX_CONCURRENCY \(4\), got 5"):
        Settings.from_environment({"MIN_CONCURRENCY": "5"})


@pytest.mark.parametrize(
    ("text", "collections"),
    [
        ("notes", ("notes",)),
        ("notes,papers", ("notes", "papers")),
        (" notes , papers ,", ("notes", "papers")),
        ("'notes', \"papers\" , old", ("notes", "papers", "old")),
        ('"notes","papers"', ("notes", "papers")),
        ("'notes', 'papers'\n", ("notes", "papers")),
        ('["notes", "papers"]', ("notes", "papers")),
        (' [\n"notes"]\n', ("notes",)),
        ("[notes]", None),
        ('["notes"', None),
        ('["notes", 3]', None),
        ("my notes, 日本語,mail@example", ("my notes", "日本語", "mail@example")),
        ('["a, b", " notes "]', ("a, b", " notes ")),
        ('["a:b"]', None),
        ("[]", None),
        ("[" * 100_000, None),
    ],
)
def test_collections_are_a_list(text: str, collections: tuple[str, ...] | None) -> None:
    """Names are a JSON list, or separated by commas and optional spaces; an invalid name is an error."""
    if collections is None:
        with pytest.raises(ConfigurationError, match="QDRANT_COLLECTIONS"):
            Settings.from_environment({"QDRANT_COLLECTIONS": text})
    else:
        assert Settings.from_environment({"QDRANT_COLLECTIONS": text}).qdrant_collections == collections


def test_an_allow_list_without_a_name_refuses_to_start() -> None:
    """An allow-list without names is an error, since it would allow all collections."""
    with pytest.raises(ConfigurationError, match="QDRANT_COLLECTIONS"):
        Settings.from_environment({"QDRANT_COLLECTIONS": " , "})


def test_a_default_collection_must_be_allowed() -> None:
    """A default collection that is not in the allow-list is an error."""
    with pytest.raises(ConfigurationError, match=r"QDRANT_COLLECTION\b.*QDRANT_COLLECTIONS"):
        Settings.from_environment({"QDRANT_COLLECTION": "notes", "QDRANT_COLLECTIONS": "papers"})


@pytest.mark.parametrize(
    ("url", "starts"),
    [
        ("http://example.org:6333", False),
        ("http://10.0.0.7:6333", False),
        ("http://127.0.0.1.example.org", False),
        ("http://localhost.example.org", False),
        ("https://example.org:6333", True),
        ("http://localhost:6333", True),
        ("http://127.0.0.1:6333", True),
        ("http://[::1]:6333", True),
    ],
)
def test_a_key_never_travels_unencrypted(url: str, starts: bool) -> None:
    """A key requires https, except for connections to this machine."""
    variables = {"QDRANT_URL": url, "QDRANT_API_KEY": SECRET}
    if starts:
        assert str(Settings.from_environment(variables).qdrant_url) == url
    else:
        with pytest.raises(ConfigurationError, match=r"QDRANT_API_KEY.*QDRANT_URL.*https"):
            Settings.from_environment(variables)


@pytest.mark.parametrize("url", ["http://example.org:6333", "http://10.0.0.7:6333"])
def test_a_key_may_travel_unencrypted_where_that_is_allowed(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """`QDRANT_ALLOW_HTTP_KEY=true` sends the key over http, for instance inside a cluster; `false` does not."""
    variables = {"QDRANT_URL": url, "QDRANT_API_KEY": SECRET}
    settings = Settings.from_environment({**variables, "QDRANT_ALLOW_HTTP_KEY": "true"})
    assert settings.qdrant_api_key == SecretStr(SECRET)
    assert not caplog.records
    with pytest.raises(ConfigurationError, match=r"another host.*QDRANT_ALLOW_HTTP_KEY=true"):
        Settings.from_environment({**variables, "QDRANT_ALLOW_HTTP_KEY": "false"})


def test_a_server_without_a_key_may_be_plain() -> None:
    """A server without a key may use http."""
    assert str(Settings.from_environment({"QDRANT_URL": "http://qdrant:6333"}).qdrant_url) == "http://qdrant:6333"


@pytest.mark.parametrize("url", [f"https://user:{SECRET}@example.org", f"https://{SECRET}@example.org"])
def test_a_url_with_credentials_is_refused_without_showing_them(url: str) -> None:
    """Credentials in the URL are an error that names QDRANT_API_KEY and does not quote them."""
    with pytest.raises(ConfigurationError, match=r"QDRANT_URL.*QDRANT_API_KEY") as refusal:
        Settings.from_environment({"QDRANT_URL": url})
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    "variables",
    [
        {"QDRANT_URL": "http://example.org"},
        {"QDRANT_URL": "nonsense"},
        {"MAX_MODELS": "0"},
        {"MIN_CONCURRENCY": "9"},
        {"QDRANT_COLLECTION": "a", "QDRANT_COLLECTIONS": "b"},
    ],
)
def test_an_error_shows_no_secret(variables: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """No key is in the message, its causes or the log."""
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigurationError) as refusal:
        Settings.from_environment({**variables, "QDRANT_API_KEY": SECRET, "API_KEY": SECRET})
    assert SECRET not in str(refusal.value)
    assert SECRET not in repr(refusal.value)
    assert SECRET not in str(refusal.getrepr(chain=True, style="short"))
    assert SECRET not in caplog.text


def test_a_validation_error_shows_no_secret() -> None:
    """An error of pydantic itself does not quote the input."""
    with pytest.raises(ValidationError) as refusal:
        Settings.model_validate({"qdrant_url": "http://example.org", "qdrant_api_key": SECRET})
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("variable", ["QDRANT_API_KEY", "API_KEY"])
def test_an_error_about_a_secret_does_not_show_it(variable: str) -> None:
    """An invalid key is named and not quoted."""
    not_a_text: Any = [SECRET]
    with pytest.raises(ConfigurationError, match=variable) as refusal:
        Settings.from_environment({variable: not_a_text})
    assert SECRET not in str(refusal.value)


def test_settings_show_no_secret() -> None:
    """Every form of the settings masks the keys."""
    settings = Settings.from_environment(
        {"QDRANT_URL": "https://example.org", "QDRANT_API_KEY": SECRET, "API_KEY": SECRET}
    )
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert SECRET not in shown


def test_settings_do_not_change() -> None:
    """Settings are frozen."""
    with pytest.raises(ValidationError):
        Settings.from_environment({}).max_models = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"QDRANT_API_KEY": SECRET}, "QDRANT_API_KEY is ignored without QDRANT_URL"),
        ({"QDRANT_GRPC_PORT": "6334"}, "QDRANT_GRPC_PORT is ignored without QDRANT_URL"),
        ({"QDRANT_TRANSPORT": "rest"}, "QDRANT_TRANSPORT is ignored without QDRANT_URL"),
        ({"QDRANT_ALLOW_HTTP_KEY": "yes"}, "QDRANT_ALLOW_HTTP_KEY is ignored without QDRANT_URL"),
        (
            {"QDRANT_URL": "http://localhost:6333", "QDRANT_TRANSPORT": "rest", "QDRANT_GRPC_PORT": "6334"},
            "QDRANT_GRPC_PORT is ignored because QDRANT_TRANSPORT is rest",
        ),
        ({"QDRANT_URL": "http://localhost:6333", "QDRANT_PATH": "x"}, "QDRANT_PATH is ignored"),
        ({"CORS_ORIGINS": "*"}, "CORS_ORIGINS=* without API_KEY: every page"),
        ({"SCALE_DOWN_THRESHOLD": "2", "SCALE_UP_THRESHOLD": "1"}, "SCALE_DOWN_THRESHOLD=2"),
    ],
)
def test_odd_but_harmless_settings_warn(variables: dict[str, str], says: str, caplog: pytest.LogCaptureFixture) -> None:
    """The worker starts with a warning."""
    Settings.from_environment(variables)
    assert says in caplog.text
    assert SECRET not in caplog.text


def test_the_usual_settings_warn_of_nothing(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Usual settings log no warning, also if a default exceeds the model's limit."""
    Settings.from_environment({})
    Settings.from_environment({"QDRANT_URL": "https://example.org", "QDRANT_API_KEY": SECRET})
    serve()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_megabyte_is_a_million_bytes() -> None:
    """`MAX_RESPONSE_MB` counts megabytes of a million bytes, as the platform does."""
    assert Settings.from_environment({"MAX_RESPONSE_MB": "0.25"}).max_response_bytes(10) == 250_000
    assert Settings.from_environment({}).max_response_bytes(10) == 10_000_000


@pytest.mark.parametrize("variable", ["QUERY_MAX_LENGTH", "PASSAGE_MAX_LENGTH"])
def test_a_length_beyond_the_model_is_clamped_with_a_warning(
    variable: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """A length that exceeds the model's limit is reduced to it, with a warning."""
    worker = serve(**{variable: "700"})
    assert f"{variable}=700" in caplog.text
    assert "512" in caplog.text
    answer = worker.good({"texts": ["word " * 900], "isPassage": variable.startswith("PASSAGE"), "vectors": ["sparse"]})
    assert answer["results"][0]["tokens"] == 512
    assert answer["results"][0]["truncated"] is True


def test_the_lengths_of_the_settings_apply_by_kind(serve: Serve) -> None:
    """Queries and passages have their own limits, which a job's `maxLength` overrides."""
    worker = serve(QUERY_MAX_LENGTH="8", PASSAGE_MAX_LENGTH="16")
    job = {"texts": ["word " * 50], "vectors": ["sparse"], "includeText": False}
    lengths = [
        worker.good({**job, **more})["results"][0]["tokens"]
        for more in ({}, {"isPassage": True}, {"maxLength": 32}, {"isPassage": True, "maxLength": 5})
    ]
    assert lengths == [8, 16, 32, 5]
