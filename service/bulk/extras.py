"""Libraries that only some formats need: the extra `files`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Final

from service.bulk.line import InputError

INSTALL: Final = "pip install '.[files]'"
"""Installs the libraries from the folder of the project."""


def library(module: str, purpose: str) -> ModuleType:
    """Import a library.

    Args:
        module: name of its module.
        purpose: what needs it.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise InputError(f"{purpose} needs {name}, which is not installed: {INSTALL}") from None
