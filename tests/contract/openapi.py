"""The OpenAPI document as a record in two parts: requests and answers.

Paths, parameters and the schemas of requests are one part; answers, and the schemas that only they name, the other,
so that a change of one shows apart from the other.
"""

from __future__ import annotations

import copy
import re
from typing import Any, Final

from tests.contract import records
from tests.contract.compare import differences
from tests.contract.steps import Call, Scenario
from tests.contract.world import opened

Json = dict[str, Any]

_REFERENCE: Final = re.compile(r"#/components/schemas/(\w+)")


def document() -> Json:
    """Return the document that the service serves."""
    call = Call("openapi", "GET", "/openapi.json")
    with opened("stub-edge") as world, world.stage(Scenario("openapi", [call])) as stage:
        described: Json = stage.play(call)["body"]
    return described


def split(described: Json) -> tuple[Json, Json]:
    """Return the document without its answers, and the answers."""
    requests = copy.deepcopy(described)
    answered: Json = {"paths": {}}
    for path, methods in requests["paths"].items():
        for method, operation in methods.items():
            answered["paths"][f"{method.upper()} {path}"] = operation.pop("responses")
    schemas = requests["components"]["schemas"]
    named = _named(str(requests["paths"]), schemas)
    answered["schemas"] = {name: schemas.pop(name) for name in sorted(schemas.keys() - named)}
    return requests, answered


def compared() -> list[str]:
    """Return the differences from the recorded document."""
    requests, answered = split(document())
    return differences(records.read("openapi"), requests, "openapi") + differences(
        records.read("openapi-answers"), answered, "openapi-answers"
    )


def recorded() -> None:
    """Record the document."""
    requests, answered = split(document())
    records.write("openapi", requests)
    records.write("openapi-answers", answered)


def _named(text: str, schemas: Json) -> set[str]:
    """Return the schemas that a text names, and those that they name in turn."""
    names: set[str] = set()
    waiting = set(_REFERENCE.findall(text))
    while waiting:
        names |= waiting
        waiting = {inner for name in waiting for inner in _REFERENCE.findall(str(schemas.get(name, "")))} - names
    return names
