"""The settings, read once at start from the environment into one frozen object.

Each field is the environment variable of the same name in upper case; docs/settings.md explains them. Settings that
cannot work raise a `ConfigurationError` that names every invalid variable. Settings that are odd but harmless log a
warning.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from embedder import DEFAULT_MODEL, ConfigurationError, ModelOptions
from qdrant_sink import COLLECTION_NAME, ServerAddress, ServerUrl, TransportChoice
from service.api_keys import ApiKeys, checked_key
from service.collection_config import CollectionConfig, parse_config
from service.memory_budget import BUDGET_SHARE, container_memory_bytes
from service.validation import characters, rule
from service.variables import misspelled, plain

log = logging.getLogger(__name__)

Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
PortNumber = Annotated[int, Field(ge=1, le=65_535)]

SECRETS: Final = ("api_key", "qdrant_api_key")
"""Fields whose values are never shown."""

JOBS_DIVISOR: Final = 8
"""Part of `MEMORY_BUDGET_MB` to which the default of `JOBS_MAX_MB` is lowered: one eighth."""

ANY_MODEL_NAME: Final = "*"
"""Item of `SERVED_MODEL_NAME` that accepts any name."""

_MODEL_NAME = r"^([A-Za-z0-9_][A-Za-z0-9_.:/@+-]{0,254}|\*)$"
"""Pattern of a model name, which is part of the path `/v1/models/NAME`, or `ANY_MODEL_NAME`."""


_AROUND_NAMES = " \t\r\n\"'"
"""Characters around the names of a list: of `"notes", "papers"` the first and the last quote are gone already."""


_USUAL_PORTS: Final = frozenset({("http", ":80"), ("https", ":443")})
"""Ports that browsers leave out of an origin."""


def _listed(value: object, example: str, remedy: str) -> object:
    """The names of a list with commas or of a JSON list.

    Args:
        value: the value of a variable.
        example: a list with commas, for the message of an error.
        remedy: what to do for no name at all.
    """
    if not isinstance(value, str):
        return value
    if value.startswith("["):
        try:
            names = json.loads(value)
        except (ValueError, RecursionError):
            as_json = json.dumps(example.split(","))
            raise ValueError(f"must be a list with commas or a JSON list, such as {example} or {as_json}") from None
    else:
        names = [name for part in value.split(",") if (name := part.strip(_AROUND_NAMES))]
    if not names:
        raise ValueError(remedy)
    return names


def _model_names(value: object) -> object:
    return _listed(value, "bge-m3,BAAI/bge-m3", "must have at least one name; leave it unset for the model's own name")


def _collection_names(value: object) -> object:
    return _listed(value, "notes,papers", "must name at least one collection; leave it unset to allow all")


def _origins(value: object) -> object:
    origins = _listed(value, "https://a.example,https://b.example", "must name an origin; leave it unset for none")
    return [_origin(origin) for origin in origins] if isinstance(origins, list) else origins


def _allowed_hosts(value: object) -> object:
    example = "worker.example.org,localhost:8000"
    hosts = _listed(value, example, "must name a host; leave it unset for the default")
    return [_allowed_host(host) for host in hosts] if isinstance(hosts, list) else hosts


def _allowed_host(value: object) -> str:
    """A host name or an address in lower case, with a port or without one, or `*`."""
    form = r"\*|([a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:\d{1,5})?"
    if not isinstance(value, str) or re.fullmatch(form, value.lower(), re.ASCII) is None:
        raise ValueError("must be host names with an optional port, such as worker.example.org or [::1]:8000, or *")
    return value.lower()


def _address(value: object) -> object:
    """The address of an interface, without the brackets of a URL."""
    if not isinstance(value, str):
        return value
    address = value.removeprefix("[").removesuffix("]").lower()
    try:
        return str(ipaddress.ip_address("127.0.0.1" if address == "localhost" else address))
    except ValueError:
        raise ValueError("must be the IP address of an interface, such as 127.0.0.1, 0.0.0.0 or ::") from None


def _origin(value: object) -> str:
    """The origin of a page as browsers send it: in lower case, without a path and without the usual port."""
    form = r"(\*)|([a-z][a-z0-9+.-]*)://([a-z0-9._~-]+|\[[0-9a-f:.]+\])(:\d{1,5})?/?"
    parts = re.fullmatch(form, value.lower(), re.ASCII) if isinstance(value, str) else None
    if parts is None:
        raise ValueError(
            "must be origins without a path, such as https://app.example.org or http://localhost:3000, or *"
        )
    anyone, scheme, host, port = parts.groups(default="")
    return anyone or f"{scheme}://{host}" + ("" if (scheme, port) in _USUAL_PORTS else port)


def _rerank_weights(value: object) -> object:
    if not isinstance(value, str):
        return value
    message = "must be 3 weights from 0 to 1000000 (dense,sparse,colbert) of which one is above 0, such as 1,1,1"
    try:
        weights = tuple(float(part) for part in value.strip("[]").split(","))
    except ValueError:
        raise ValueError(message) from None
    if len(weights) != 3 or not all(0 <= weight <= 1_000_000 for weight in weights) or not any(weights):
        raise ValueError(message)
    return weights


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _log_level(value: object) -> object:
    if not isinstance(value, str):
        return value
    return {"WARN": "WARNING", "FATAL": "CRITICAL"}.get(value.upper(), value.upper())


def _server_url(value: object) -> object:
    return ServerUrl.parse(value) if isinstance(value, str) else value


def _root_path(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", value) or re.search(r"/\.{1,2}(/|$)", value):
        raise ValueError("must look like /prefix or /a/prefix, with letters, digits and . _ ~ -")
    return value.removesuffix("/")


def _api_keys(value: object) -> object:
    return ApiKeys.parse(value) if isinstance(value, str) else value


def _parsed_config(value: object) -> object:
    return parse_config(value) if isinstance(value, str) else value


class Settings(BaseModel):
    """The operator's settings. A variable that is empty, or blank, counts as unset."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    model_id: str = DEFAULT_MODEL
    model_revision: str | None = None
    served_model_name: Annotated[
        tuple[Annotated[str, Field(pattern=_MODEL_NAME)], ...], BeforeValidator(_model_names)
    ] = ()
    engine: Annotated[Literal["packed", "flagembedding"], BeforeValidator(_lower)] = "packed"
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16", "int8", "float8"], BeforeValidator(_lower)] = (
        "auto"
    )
    gpu_device: Annotated[str, BeforeValidator(_lower)] | None = None
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
    rerank_weights: Annotated[tuple[float, float, float], BeforeValidator(_rerank_weights)] = (1.0, 1.0, 1.0)

    qdrant_url: Annotated[ServerUrl, BeforeValidator(_server_url), PlainSerializer(str, return_type=str)] | None = None
    qdrant_grpc_port: PortNumber | None = None
    qdrant_transport: Annotated[TransportChoice, BeforeValidator(_lower)] = "auto"
    qdrant_timeout_s: Annotated[float, Field(ge=1, le=3600, allow_inf_nan=False)] = 10.0
    qdrant_api_key: SecretStr | None = None
    qdrant_allow_http_key: bool = False
    qdrant_path: str | None = "./qdrant_data"
    qdrant_path_reserve_mb: Annotated[float, Field(ge=0, le=1_000_000_000, allow_inf_nan=False)] = 256.0
    qdrant_collection: Annotated[str, Field(pattern=COLLECTION_NAME)] | None = None
    qdrant_collections: Annotated[
        tuple[Annotated[str, Field(pattern=COLLECTION_NAME)], ...], BeforeValidator(_collection_names)
    ] = ()
    qdrant_collection_config: Annotated[CollectionConfig, BeforeValidator(_parsed_config)] = CollectionConfig()

    max_response_mb: Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)] | None = None
    memory_budget_mb: Annotated[float, Field(ge=200, le=10_000_000, allow_inf_nan=False)] | None = None
    json_max_nodes: Annotated[int, Field(ge=1000, le=1_000_000_000)] = 2_000_000
    inference_max_request_mb: Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)] = 64.0
    inference_max_response_mb: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)] = 2500.0
    openai_strict: bool = False
    openai_truncate: bool = False
    allow_token_ids: bool = False
    allow_loads: bool = False
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_log_level)] = "INFO"
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_lower)] = "text"
    host: Annotated[str, BeforeValidator(_address)] | None = None
    port: PortNumber | None = None
    allowed_hosts: Annotated[tuple[str, ...], BeforeValidator(_allowed_hosts)] = ()
    http_max_connections: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    http_max_connections_per_peer: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    shutdown_grace_s: Annotated[float, Field(ge=1, le=86_400, allow_inf_nan=False)] = 30.0
    root_path: Annotated[str, BeforeValidator(_root_path)] | None = None
    jobs_max: Annotated[int, Field(ge=1, le=100_000)] = 1000
    jobs_max_mb: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)] = 256.0
    jobs_keep_s: Annotated[int, Field(ge=1, le=604_800)] = 3600
    compress_responses: bool = True
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_origins)] = ()
    api_key: Annotated[ApiKeys, BeforeValidator(_api_keys)] | None = None

    @field_validator("qdrant_api_key")
    @classmethod
    def _is_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            checked_key(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _are_consistent(self) -> Settings:
        if self.min_concurrency > self.max_concurrency:
            raise ValueError(
                f"MIN_CONCURRENCY must be at most MAX_CONCURRENCY ({self.max_concurrency}), got {self.min_concurrency}"
            )
        url = self.qdrant_url
        if url is not None:
            try:
                ServerAddress.of(url, self.qdrant_transport, self.qdrant_grpc_port)
            except ValueError as error:
                raise ValueError(f"QDRANT_URL {error}") from None
            protected = url.https or url.is_local or self.qdrant_allow_http_key
            if self.qdrant_api_key is not None and not protected:
                raise ValueError(
                    "QDRANT_API_KEY must not be sent unencrypted to another host, and QDRANT_URL is plain http; use "
                    "https, or set QDRANT_ALLOW_HTTP_KEY=true where the network between the two is trusted"
                )
        if (
            self.qdrant_collection is not None
            and self.qdrant_collections
            and self.qdrant_collection not in self.qdrant_collections
        ):
            raise ValueError(
                f"QDRANT_COLLECTION must be in the allow-list QDRANT_COLLECTIONS, got {self.qdrant_collection!r}"
            )
        clustered = self.qdrant_collection_config.placement.server_only
        if clustered and url is None:
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
        settings_names = {name.upper() for name in cls.model_fields}
        for name, setting in misspelled({name.upper() for name in variables}, settings_names):
            log.warning("%s is not a setting and has no effect; did you mean %s?", name, setting)
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
        if self.qdrant_url is None:
            for name in (
                "qdrant_api_key",
                "qdrant_grpc_port",
                "qdrant_transport",
                "qdrant_allow_http_key",
                "qdrant_timeout_s",
            ):
                if getattr(self, name) != type(self).model_fields[name].default:
                    log.warning(
                        "%s is ignored without QDRANT_URL, since Qdrant Edge runs in this process", name.upper()
                    )
        elif self.qdrant_transport == "rest" and self.qdrant_grpc_port is not None:
            log.warning("QDRANT_GRPC_PORT is ignored because QDRANT_TRANSPORT is rest")
        if self.qdrant_url is not None and "qdrant_path" in self.model_fields_set:
            log.warning("QDRANT_PATH is ignored because QDRANT_URL is set")
        if "*" in self.cors_origins and self.api_key is None:
            log.warning(
                "CORS_ORIGINS=* without API_KEY: every page that is open in a browser which reaches this worker can "
                "read, write and delete points; set API_KEY, or name the origins"
            )

    @property
    def names_store(self) -> bool:
        """Whether the operator has chosen where points are stored: a server, or a directory for Qdrant Edge."""
        return self.qdrant_url is not None or (self.qdrant_path is not None and "qdrant_path" in self.model_fields_set)

    def without_default_store(self) -> Settings:
        """The settings for a process whose disk goes with it, where the default `QDRANT_PATH` would lose all points.

        `qdrant_path` is None unless the operator has chosen a store.
        """
        return self if self.names_store else self.model_copy(update={"qdrant_path": None})

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

    def max_response_bytes(self, default_mb: float) -> int:
        """`MAX_RESPONSE_MB` in bytes; a megabyte is 10^6 bytes.

        Args:
            default_mb: what the transport carries, for a setting that is unset.
        """
        return int((default_mb if self.max_response_mb is None else self.max_response_mb) * 1_000_000)

    @property
    def memory_budget_bytes(self) -> int:
        """`MEMORY_BUDGET_MB` in bytes, or half of the container's memory where it is unset."""
        if self.memory_budget_mb is None:
            return int(BUDGET_SHARE * container_memory_bytes())
        return int(self.memory_budget_mb * 1_000_000)

    @property
    def jobs_max_bytes(self) -> int:
        """`JOBS_MAX_MB` in bytes; its default is lowered to a share of the memory budget."""
        size = int(self.jobs_max_mb * 1_000_000)
        return size if "jobs_max_mb" in self.model_fields_set else min(size, self.memory_budget_bytes // JOBS_DIVISOR)

    @property
    def inference_max_request_bytes(self) -> int:
        """`INFERENCE_MAX_REQUEST_MB` in bytes."""
        return int(self.inference_max_request_mb * 1_000_000)

    @property
    def inference_max_response_bytes(self) -> int:
        """`INFERENCE_MAX_RESPONSE_MB` in bytes."""
        return int(self.inference_max_response_mb * 1_000_000)


def _by_field_name(environment: Mapping[str, str]) -> dict[str, str]:
    """The plain values of the variables that are set."""
    values = {}
    for key, text in environment.items():
        name, value = key.lower(), plain(text) if isinstance(text, str) else text
        if value != "" or (name in SECRETS and text != ""):  # a blank key is an error, since a key was meant
            values[name] = value
    return values


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
    if str(field) in SECRETS:
        return f"{name} {message}"
    requirement, separator, remedy = message.partition("; ")
    if name == "QDRANT_URL":
        shown = _shown_url(str(value), [str(variables.get(secret, "")) for secret in SECRETS])
    else:
        shown = repr(value)
    if name == "QDRANT_GRPC_PORT" and str(value).startswith("tcp://"):
        separator, remedy = "; ", "Kubernetes sets it for a Service of this name, unless enableServiceLinks is false"
    return f"{name} {requirement}, got {shown}{separator}{remedy}"


def _shown_url(text: str, secrets: list[str]) -> str:
    """A URL for a message, with `***` for each part that may hold a misplaced key."""
    if any(secret and secret in text for secret in secrets):
        return "***"
    if re.fullmatch(r"[\w.-]{1,63}:\d{1,5}", text, re.ASCII):  # a host and a port alone
        return repr(text)
    parts = re.fullmatch(
        r"(\w{1,8}://)([^@/?#]*@)?([\w.-]{1,63}|\[[\da-fA-F:.]*\])(:\d{0,5})?(.*)", text, re.ASCII | re.DOTALL
    )
    if parts is None:
        return characters(text)
    scheme, user, host, port, rest = parts.groups(default="")
    return repr(scheme + (user and "***@") + host + port + (rest and "***"))
