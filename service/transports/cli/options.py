"""What the subcommands share: their form, lists with commas, `--json`, failures and logging."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import click

CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Settings of every command's context."""

KINDS: Final = ("dense", "sparse", "colbert")
"""Kinds of vectors: `embedder.KINDS`, whose import would make `--help` wait for numpy."""

_SHARED_SETTINGS: Final = ("LOG_LEVEL", "LOG_FORMAT")

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Failure(click.ClickException):
    """A command cannot do its work; the message says what is wrong, and the way out."""

    exit_code = 2


def renamed(error: Exception, names: Mapping[str, str]) -> Failure:
    """The error as a failure that names arguments of the command in place of settings.

    Args:
        error: its message names settings.
        names: of the settings, and of the arguments that stand for them.
    """
    message = str(error)
    for setting, argument in names.items():
        message = message.replace(setting, argument)
    return Failure(message)


class CommaList(click.ParamType[tuple[str, ...]]):
    """A list with commas, each of whose words is one of a few.

    Args:
        choices: the words that are allowed.
    """

    name = "list"

    def __init__(self, choices: Sequence[str]) -> None:
        self._choices = tuple(choices)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The words, in the order given."""
        if not isinstance(value, str):
            return tuple(value)
        words = tuple(word.strip() for word in value.split(",") if word.strip())
        for word in words or (value,):
            if word not in self._choices:
                self.fail(f"{word!r} is unknown; name some of {', '.join(self._choices)}, with commas", param, ctx)
        return words


def kinds_option(name: str, *, default: str, help: str) -> Callable[[_Function], _Function]:  # noqa: A002
    """An option that takes kinds of vectors, with commas or repeated: `--vectors dense,sparse --vectors colbert`.

    Args:
        name: of the option.
        default: description of the kinds that are taken without it. The value is empty then.
        help: what it does.
    """

    def merged(_ctx: click.Context, _param: click.Parameter, value: Sequence[Sequence[str]]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(word for words in value for word in words))

    return click.option(
        name,
        type=CommaList(KINDS),
        multiple=True,
        callback=merged,
        metavar="KIND,...",
        help=f"{help}: a list with commas of {', '.join(KINDS)}.  [default: {default}]",
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as one line of JSON.")


def examples(*lines: str, more: str = "") -> str:
    """The end of a help text: examples that click leaves as they are."""
    block = "\n".join(("\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines)))
    return f"{block}\n\n{more}" if more else block


def configure_logs(default_level: str = "WARNING") -> None:
    """Log as LOG_LEVEL and LOG_FORMAT say.

    Args:
        default_level: applies where LOG_LEVEL is unset.

    Raises:
        ConfigurationError: one of the two is invalid.
    """
    from service import logs
    from service.settings import Settings

    environment = {name: os.environ[name] for name in _SHARED_SETTINGS if name in os.environ}
    settings = Settings.from_environment(environment)
    level = settings.log_level if "log_level" in settings.model_fields_set else default_level
    logs.configure(level, settings.log_format)
