"""Requests as data: the steps of a scenario, and the scenarios of an area."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Engine = Literal["stub", "mini"]
StoreKind = Literal["edge", "server"]
State = Literal["ready", "loading", "draining", "lost"]
Fault = Literal["away", "busy", "defect", "denied", "device lost", "queue full", "refuses 7", "rejects"]
"""A failure during a step: see `faulty.py` for those of the store and `world.py` for the others."""


@dataclass(frozen=True)
class Job:
    """A job of the queue.

    Attributes:
        name: unique in its area.
        input: the job's input.
        settings: environment variables beside those of the scenario.
        fault: a failure meanwhile.
        reports: whether the last report of progress is recorded beside the answer.
    """

    name: str
    input: Any
    settings: Mapping[str, str] = field(default_factory=dict)
    fault: Fault | None = None
    reports: bool = False


@dataclass(frozen=True)
class Call:
    """A request over HTTP.

    Attributes:
        name: unique in its area.
        method: of HTTP.
        path: of the URL, with its query.
        json: the body as JSON, sent with its content type; None sends `content`.
        content: the body as it is; a list is sent in parts of unannounced length.
        headers: of the request.
        settings: environment variables beside those of the scenario.
        fault: a failure meanwhile.
        state: of the server.
        body_max_bytes: limit of the body; None is the server's own.
        stalls: whether the body stops coming after `content`.
    """

    name: str
    method: str
    path: str
    json: Any = None
    content: bytes | Sequence[bytes] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    fault: Fault | None = None
    state: State = "ready"
    body_max_bytes: int | None = None
    stalls: bool = False


@dataclass(frozen=True)
class Load:
    """A bulk load from the command line.

    Attributes:
        name: unique in its area.
        lines: of the file, as JSON values or as they are; None names a file that is missing.
        options: of the command line.
        settings: environment variables beside those of the scenario.
        fault: a failure meanwhile.
    """

    name: str
    lines: Sequence[Any] | None
    options: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    fault: Fault | None = None


Step = Job | Call | Load


@dataclass(frozen=True)
class Scenario:
    """Steps in their order, over a store that is empty at first.

    Attributes:
        name: for a reader.
        steps: each sees what those before it have stored.
        settings: environment variables of all steps.
        engines: that play it.
        stores: that it is played over.
        multivector_values: numbers that a ColBERT matrix holds; None is the limit of Qdrant.
    """

    name: str
    steps: Sequence[Step]
    settings: Mapping[str, str] = field(default_factory=dict)
    engines: Sequence[Engine] = ("stub",)
    stores: Sequence[StoreKind] = ("edge", "server")
    multivector_values: int | None = None


@dataclass(frozen=True)
class Area:
    """Scenarios about one part of the contract.

    Attributes:
        name: of the area, and of its records.
        scenarios: in any order.
    """

    name: str
    scenarios: Sequence[Scenario]

    def cases(self) -> Iterator[str]:
        """The name of every case, `area/step`."""
        for scenario in self.scenarios:
            for step in scenario.steps:
                yield f"{self.name}/{step.name}"
