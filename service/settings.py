"""The settings, read once at start from the environment into one frozen object.

Each field is the environment variable of the same name in upper case; docs/settings.md explains them. Settings that
cannot work raise a `ConfigurationError` that names every invalid variable. Settings that are odd but harmless log a
warning.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from embedder import DEFAULT_MODEL, ConfigurationError, ModelOptions
from qdrant_sink import COLLECTION_NAME
from service.collection_config import CollectionConfig, parse_config
from service.validation import rule

log = logging.getLogger(__name__)

Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]


_MODEL_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.:/@+-]{0,254}$"
"""Pattern of a model name, which is part of the path `/v1/models/NAME`."""


def _collection_names(value: object) -> object:
    if not isinstance(value, str):
        return value
    names = [part.strip() for part in value.split(",") if part.strip()]
    if not names:
        raise ValueError("must name at least one collection; leave it unset to allow all")
    return names


def _parsed_config(value: object) -> object:
    return parse_config(value) if isinstance(value, str) else value


class Settings(BaseModel):
    """The operator's settings. An empty variable counts as unset."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    model_id: str = DEFAULT_MODEL
    model_revision: str | None = None
    served_model_name: Annotated[str, Field(pattern=_MODEL_NAME)] | None = None
    engine: Literal["packed", "flagembedding"] = "packed"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "float8"] = "auto"
    gpu_device: str | None = None
    max_models: Annotated[int, Field(ge=1, le=64)] = 4

    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] = 4
    min_concurrency: Annotated[int, Field(ge=1, le=10_000)] = 1
    scale_up_threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
    scale_down_threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    token_budget: Positive | None = None
    queue_tokens: Positive = 2_000_000
    max_texts: Positive = 10_000
    query_max_length: Annotated[int, Field(ge=3)] = 512
    passage_max_length: Annotated[int, Field(ge=3)] = 8192

    qdrant_url: str | None = None
    qdrant_api_key: SecretStr | None = None
    qdrant_path: str = "./qdrant_data"
    qdrant_collection: Annotated[str, Field(pattern=COLLECTION_NAME)] | None = None
    qdrant_collections: Annotated[
        tuple[Annotated[str, Field(pattern=COLLECTION_NAME)], ...], BeforeValidator(_collection_names)
    ] = ()
    qdrant_collection_config: Annotated[CollectionConfig, BeforeValidator(_parsed_config)] = CollectionConfig()

    max_response_mb: Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)] = 10.0
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    log_format: Literal["text", "json"] = "text"
    port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    api_key: SecretStr | None = None

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("qdrant_api_key", "api_key")
    @classmethod
    def _is_header(cls, value: SecretStr | None) -> SecretStr | None:
        secret = "" if value is None else value.get_secret_value()
        if not (secret.isascii() and all(character.isprintable() for character in secret)):
            raise ValueError("must be printable ASCII without line breaks, since it is sent in an HTTP header")
        if secret != secret.strip():
            raise ValueError("must not begin or end with a space, since an HTTP header would drop it")
        return value

    @field_validator("qdrant_url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("must look like http://host:6333 or https://host:6333")
            if parts.username or parts.password:
                raise ValueError("must not contain a user name or a password; use QDRANT_API_KEY")
            if parts.query or parts.fragment:
                raise ValueError("must not contain a query or a fragment; use QDRANT_API_KEY for a key")
            _check_port(parts)
        return value

    @model_validator(mode="after")
    def _are_consistent(self) -> Settings:
        if self.min_concurrency > self.max_concurrency:
            raise ValueError(
                f"MIN_CONCURRENCY must be at most MAX_CONCURRENCY ({self.max_concurrency}), got {self.min_concurrency}"
            )
        if self.qdrant_api_key is not None and self.qdrant_url is not None and not _protects_key(self.qdrant_url):
            raise ValueError("QDRANT_API_KEY must not be sent unencrypted, and QDRANT_URL is plain http; use https")
        if (
            self.qdrant_collection is not None
            and self.qdrant_collections
            and self.qdrant_collection not in self.qdrant_collections
        ):
            raise ValueError(
                f"QDRANT_COLLECTION must be in the allow-list QDRANT_COLLECTIONS, got {self.qdrant_collection!r}"
            )
        clustered = self.qdrant_collection_config.placement.server_only
        if clustered and self.qdrant_url is None:
            raise ValueError(
                f"QDRANT_COLLECTION_CONFIG: {clustered} needs a Qdrant server; set QDRANT_URL or leave these fields out"
            )
        return self

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read and validate all settings.

        Args:
            environment: the variables to read; None reads those of the process.

        Raises:
            ConfigurationError: a setting is invalid. The message names each such setting, its value unless it is a
                secret, and the fix.
        """
        variables = _by_field_name(os.environ if environment is None else environment)
        try:
            settings = cls.model_validate(variables)
        except ValidationError as error:
            messages = (_message(details, variables) for details in error.errors(include_url=False))
            raise ConfigurationError("; ".join(messages)) from None
        settings.warn()
        return settings

    def warn(self) -> None:
        """Log a warning for each setting that is odd but harmless."""
        if self.scale_down_threshold > self.scale_up_threshold:
            log.warning(
                "SCALE_DOWN_THRESHOLD=%g is above SCALE_UP_THRESHOLD=%g: between the two, concurrency only decreases",
                self.scale_down_threshold,
                self.scale_up_threshold,
            )
        if self.qdrant_api_key is not None and self.qdrant_url is None:
            log.warning("QDRANT_API_KEY is ignored without QDRANT_URL, since the embedded store needs no key")
        if self.qdrant_url is not None and "qdrant_path" in self.model_fields_set:
            log.warning("QDRANT_PATH is ignored because QDRANT_URL is set")

    @property
    def model_options(self) -> ModelOptions:
        """The settings of the embedder."""
        return ModelOptions(
            model_id=self.model_id,
            revision=self.model_revision,
            engine=self.engine,
            dtype=self.dtype,
            device=self.gpu_device,
            batches_per_gpu=self.max_models,
            token_budget=self.token_budget,
            queue_tokens=self.queue_tokens,
        )

    @property
    def max_response_bytes(self) -> int:
        """`MAX_RESPONSE_MB` in bytes; a megabyte is 10^6 bytes."""
        return int(self.max_response_mb * 1_000_000)


def _by_field_name(environment: Mapping[str, str]) -> dict[str, str]:
    return {key.lower(): value for key, value in environment.items() if value != ""}


def _check_port(parts: SplitResult) -> None:
    try:
        _ = parts.port
    except ValueError:  # its message quotes the port, which may be a misplaced key
        raise ValueError("must have a port from 0 to 65535, or no port") from None


def _protects_key(url: str) -> bool:
    """Whether a key sent to this URL is encrypted in transit or stays on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _message(error: ErrorDetails, variables: Mapping[str, str]) -> str:
    """The message for an invalid setting, with the value as the operator wrote it unless it is a secret."""
    message = rule(error)
    if not error["loc"]:
        return message
    field, *items = error["loc"]
    name = str(field).upper()
    value = error["input"] if items else variables.get(str(field))
    if name == "QDRANT_COLLECTION_CONFIG":  # the config's own messages, after the path of its file
        return f"{name}: {message}" if str(value).lstrip().startswith("{") else f"{name}={value!r}: {message}"
    if name in ("QDRANT_API_KEY", "API_KEY", "QDRANT_URL"):
        return f"{name} {message}"
    requirement, separator, remedy = message.partition("; ")
    return f"{name} {requirement}, got {value!r}{separator}{remedy}"
