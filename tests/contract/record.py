"""Play all requests and compare the answers with the recorded ones.

    python -m tests.contract.record [--only PATTERN] [--world NAME ...] [--messages] [--write]

Without options every difference is printed, one a line: `search/plain.results[0].hits[2].score: 0.5 -> 0.25`. With
--write the answers are recorded instead.

Exit status: 0, or 1 if something differs.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.contract import configuration, openapi, records
from tests.contract.cases import AREAS
from tests.contract.compare import EXACT, MINI, STUB, Tolerance, differences
from tests.contract.masks import masked
from tests.contract.steps import Area
from tests.contract.world import WORLDS, World, opened

Json = dict[str, Any]
Chooser = Callable[[str], bool]


def tolerance_of(world: str) -> Tolerance:
    """Return the tolerance for numbers in this world."""
    return STUB if world.startswith("stub") else MINI


def played(world: World, area: Area, chosen: Chooser = lambda _case: True) -> tuple[Json, Json]:
    """Return the masked answers of an area by case, and their texts by case and path.

    Args:
        world: the entered world to play in.
        area: the area whose scenarios are played from their beginning.
        chosen: whether a scenario with this case is played, and the case is among the answers.
    """
    answers: Json = {}
    texts: Json = {}
    for scenario in area.scenarios:
        names = [f"{area.name}/{step.name}" for step in scenario.steps]
        if not world.plays(scenario) or not any(map(chosen, names)):
            continue
        with world.stage(scenario) as stage:
            for name, step in zip(names, scenario.steps, strict=True):
                answer, messages = masked(stage.play(step))
                if chosen(name):
                    answers[name] = answer
                    if messages:
                        texts[name] = messages
    return answers, texts


def expected(world: World, area: Area) -> tuple[Json, Json]:
    """Return the recorded answers of an area in a world, and their texts, in the form of `played`."""
    messages = records.read("messages")
    answers = records.read(f"{area.name}.{world.engine}")
    texts = messages.get(world.engine, {})
    if world.store == "server":
        answers |= records.read(f"{area.name}.{world.engine}-server")
        texts = texts | messages.get(f"{world.engine}-server", {})
    scenarios = [scenario for scenario in area.scenarios if world.plays(scenario)]
    names = {f"{area.name}/{step.name}" for scenario in scenarios for step in scenario.steps}
    return (
        {name: answer for name, answer in answers.items() if name in names},
        {name: text for name, text in texts.items() if name in names},
    )


def compared(world: World, area: Area, chosen: Chooser = lambda _case: True, *, messages: bool = False) -> list[str]:
    """Return the differences from the recorded answers of an area.

    Args:
        world: the entered world to play in.
        area: the area to play.
        chosen: selects the cases to compare.
        messages: whether texts for a person are compared as well.
    """
    answers, texts = played(world, area, chosen)
    wanted, wanted_texts = expected(world, area)
    lines = []
    for name in sorted(filter(chosen, answers.keys() | wanted.keys())):
        if name not in wanted:
            lines.append(f"{name}: not recorded")
        elif name not in answers:
            lines.append(f"{name}: recorded, and no longer a case")
        else:
            lines += differences(wanted[name], answers[name], name, tolerance_of(world.name))
    if messages:
        names = sorted(filter(chosen, texts.keys() | wanted_texts.keys()))
        lines += [
            line for name in names for line in differences(wanted_texts.get(name, {}), texts.get(name, {}), name, EXACT)
        ]
    return lines


def recorded(world: World, area: Area) -> None:
    """Record the answers of an area; over a server, only those that differ from Qdrant Edge.

    A recorded answer within the tolerance is not changed.
    """
    answers, texts = played(world, area)
    messages = records.read("messages")
    suite = world.engine if world.store == "edge" else f"{world.engine}-server"
    tolerance = tolerance_of(world.name)
    for name, answer in expected(world, area)[0].items():
        if name in answers and not differences(answer, answers[name], name, tolerance):
            answers[name] = answer
    others = {} if world.store == "edge" else records.read(f"{area.name}.{world.engine}")
    other_texts = {} if world.store == "edge" else messages.get(world.engine, {})
    records.write(
        f"{area.name}.{suite}",
        {
            name: answer
            for name, answer in answers.items()
            if name not in others or differences(others[name], answer, name, tolerance)
        },
    )
    suite_messages = {
        name: text for name, text in messages.get(suite, {}).items() if not name.startswith(f"{area.name}/")
    }
    suite_messages |= {name: text for name, text in texts.items() if text != other_texts.get(name)}
    records.write("messages", {**messages, suite: suite_messages})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.contract.record",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--write", action="store_true", help="record the answers; needs all cases of a world")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cases such as 'search/*'")
    parser.add_argument("--world", nargs="+", choices=list(WORLDS), default=list(WORLDS), help="all four by default")
    parser.add_argument("--messages", action="store_true", help="compare the texts of messages too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Play the requests, and compare or record the answers; return the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.write and arguments.only != "*":
        parser.error("--write records whole areas; leave out --only")
    logging.disable(logging.CRITICAL)  # the played faults would log errors

    def chosen(case: str) -> bool:
        return fnmatch.fnmatch(case, arguments.only)

    lines: list[str] = []
    # The record of a server holds only the differences from Qdrant Edge, which is recorded first.
    for name in sorted(arguments.world, key=list(WORLDS).index) if arguments.write else arguments.world:
        started, count = time.perf_counter(), 0
        with opened(name) as world:
            for area in AREAS:
                if arguments.write:
                    recorded(world, area)
                else:
                    lines += [f"{name}: {line}" for line in compared(world, area, chosen, messages=arguments.messages)]
                count += sum(len(scenario.steps) for scenario in area.scenarios if world.plays(scenario))
        print(f"{name}: {count} requests, {time.perf_counter() - started:.1f} s", file=sys.stderr)
    if arguments.write:
        openapi.recorded()
        configuration.recorded()
    elif arguments.only == "*":
        lines += openapi.compared() + configuration.compared()
    for line in lines:
        print(line)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
