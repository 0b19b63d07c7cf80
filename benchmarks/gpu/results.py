"""Raw results of the GPU benchmark: one JSON file per section."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "not run", "failed"]
Row = dict[str, Any]
"""Figures by name: strings, numbers, booleans; times in seconds."""


@dataclass(slots=True)
class Section:
    """The results of one section.

    Attributes:
        name: key of `benchmarks.gpu.sections.SECTIONS`.
        status: `ok`, `not run` or `failed`; a failed section keeps the rows it had.
        reason: why it is not ok, or why it ended early.
        seconds: duration of the section.
        device_peak_bytes: most memory of the GPU that was allocated during the section; 0 on a CPU.
        rows: the figures.
    """

    name: str
    status: Status = "ok"
    reason: str = ""
    seconds: float = 0.0
    device_peak_bytes: int = 0
    rows: list[Row] = field(default_factory=list)

    def write(self, directory: Path) -> None:
        """Write `NAME.json`, replacing the file in one step."""
        path = directory / f"{self.name}.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        part.replace(path)


class Results:
    """The sections of a directory, by name.

    Args:
        sections: those that were measured.
    """

    def __init__(self, sections: Mapping[str, Section] | None = None) -> None:
        self.sections = dict(sections or {})

    @classmethod
    def read(cls, directory: Path | None) -> Results:
        """Read what `Section.write` wrote into a directory; empty results if the directory is missing."""
        found = sorted(directory.glob("*.json")) if directory else []
        sections = [Section(**json.loads(path.read_text(encoding="utf-8"))) for path in found]
        return cls({section.name: section for section in sections})

    def rows(self, name: str, **keys: object) -> list[Row]:
        """The rows of a section whose figures have these values."""
        rows = self.sections[name].rows if name in self.sections else []
        return [row for row in rows if all(row.get(key) == value for key, value in keys.items())]

    def value(self, name: str, figure: str, **keys: object) -> float | None:
        """One figure of the first row that has these values; None if it was not measured."""
        for row in self.rows(name, **keys):
            if row.get(figure) is not None:
                return float(row[figure])
        return None

    def fact(self, figure: str) -> str:
        """A property of the machine or of the run; empty if unknown."""
        return str(next((row["value"] for row in self.rows("machine", figure=figure)), ""))
