"""Every limit stands in `docs/limits.md` as the code has it, and no limit is left out."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from service.settings import Settings
from tests.limit_rows import INTERNAL, ROWS

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "limits.md"
PACKAGES: Final = ("embedder", "qdrant_sink", "service")

_LIMIT: Final = re.compile(r"_?(.*_)?(MAX|LIMIT|LIMITS|TIMEOUT|RESERVE)(_.*)?")
"""Names of constants that are limits."""


@dataclass(frozen=True)
class Value:
    """A value of a limit, which is written as the documentation writes it."""

    value: Any

    def __format__(self, form: str) -> str:
        """Write the value as a number, seconds, megabytes, mebibytes or a part."""
        number = self.value
        match form:
            case "n":
                return f"{number:,.0f}".replace(",", " ") if number >= 10_000 else f"{number:g}"
            case "s":
                return f"{number:g} second{'' if number == 1 else 's'}"
            case "mb":
                return f"{number / 10**6:g} MB"
            case "mib":
                return f"{number / 2**20:g} MiB"
            case "log2mib":
                return f"{2**number / 2**20:g} MiB"
            case "part":
                return {0.5: "half", 6: "sixth", 8: "eighth"}[number]
        raise ValueError(form)


def value_of(name: str) -> Any:
    """The value of a limit in the code."""
    kind, _, rest = name.partition(":")
    if kind == "setting":
        return Settings.model_fields[rest].default
    if kind != "field":
        return getattr(importlib.import_module(kind), rest)
    module, _, path = rest.partition(":")
    model, field = path.split(".")
    metadata = getattr(importlib.import_module(module), model).model_fields[field].metadata
    return next(rule.le for rule in metadata if hasattr(rule, "le"))


def table_rows() -> Iterator[list[str]]:
    """The cells of each row of the tables of limits."""
    page = PAGE.read_text(encoding="utf-8").partition("## Memory")[0]
    for line in page.splitlines():
        if line.startswith("| ") and not line.startswith("| what "):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def constants() -> Iterator[str]:
    """The constants of the code that are limits by their names."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                for target in targets:
                    if isinstance(target, ast.Name) and target.id.isupper() and _LIMIT.fullmatch(target.id):
                        yield f"{module}:{target.id}"


@pytest.mark.parametrize("row", ROWS)
def test_the_page_has_the_limit_of_the_code(row: str) -> None:
    """Whoever plans by the page gets what it says: each default is that of the code, and the setting is its own."""
    template, names = ROWS[row]
    cells = {cells[0]: cells for cells in table_rows()}[row]
    assert cells[1] == template.format(*(Value(value_of(name)) for name in names))
    settings = {name.removeprefix("setting:").upper() for name in names if name.startswith("setting:")}
    assert settings <= set(re.findall(r"`([A-Z_]+)`", cells[2]))
    assert settings or cells[2] == "fixed" or cells[2].startswith("`")


def test_the_page_has_no_other_rows() -> None:
    """Each row of the page is compared with the code."""
    rows = [cells[0] for cells in table_rows()]
    assert rows == list(ROWS)


def test_no_limit_is_forgotten() -> None:
    """A new limit is either in the table, or among those that no client meets, with the reason."""
    listed = {name for _, names in ROWS.values() for name in names}
    internal = {name for names in INTERNAL.values() for name in names}
    found = set(constants())
    assert found - listed - internal == set()
    assert internal - found == set()
    assert listed & internal == set()
