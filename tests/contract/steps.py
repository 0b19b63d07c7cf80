"""Requests as data: the steps of a scenario, and the scenarios of an area."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Engine = Literal["stub", "mini"]
StoreKind = Literal["edge", "server"]
State = Literal["ready", "loading", "draining", "lost"]
Fault = Literal[
    "away", "busy", "defect", "denied", "device lost", "queue full", "refuses 7", "rejects", "another writer"
]
"""A failure during a step: see `faulty.py` for those of the store and `world.py` for the others."""


@dataclass(frozen=True)
class Job:
    """A job of the queue.

    Attributes:
        name: the name of the case, unique in its area.
        input: the job's input.
        settings: environment variables in addition to those of the scenario.
        fault: the failure during this step.
        reports: whether the last progress report is recorded with the answer.
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
        name: the name of the case, unique in its area.
        method: the HTTP method.
        path: the URL path with its query.
        json: the body as JSON, sent with its content type; None sends `content`.
        content: the raw body; a list is sent in chunks without a content length.
        headers: the request headers.
        settings: environment variables in addition to those of the scenario.
        fault: the failure during this step.
        state: the state of the server.
        body_max_bytes: the server's body limit; None keeps its default.
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
        name: the name of the case, unique in its area.
        lines: the lines of the file, as JSON values or raw text; None means that the file is missing.
        options: the command-line options.
        settings: environment variables in addition to those of the scenario.
        fault: the failure during this step.
    """

    name: str
    lines: Sequence[Any] | None
    options: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    fault: Fault | None = None


Step = Job | Call | Load


@dataclass(frozen=True)
class Scenario:
    """A sequence of steps over a store that is empty at first.

    Attributes:
        name: a description for readers.
        steps: the steps in order; each sees the points that earlier steps stored.
        settings: environment variables for all steps.
        engines: the engines that play the scenario.
        stores: the stores over which the scenario is played.
        multivector_values: maximum number of values in a ColBERT matrix; None is Qdrant's limit.
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
        name: the name of the area and of its records.
        scenarios: the scenarios, in any order.
    """

    name: str
    scenarios: Sequence[Scenario]

    def cases(self) -> Iterator[str]:
        """Return the name of every case, `area/step`."""
        for scenario in self.scenarios:
            for step in scenario.steps:
                yield f"{self.name}/{step.name}"
