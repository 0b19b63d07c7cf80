"""The README and the pages under `docs/`: their snippets run as written, and nothing is missing, doubled or broken."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from service.settings import Settings
from service.wire.errors import CODES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINKING = [
    README,
    *PAGES,
    ROOT / "CHANGELOG.md",
    ROOT / "training" / "README.md",
    ROOT / "corpus" / "README.md",
    ROOT / "clients" / "python" / "README.md",
    ROOT / "examples" / "README.md",
]
SETTINGS = {name.upper() for name in Settings.model_fields}


def text_of(page: Path) -> str:
    """Return the text of a page."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the fenced blocks of a page as (language, text), in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.DOTALL | re.MULTILINE)


class Snippet(NamedTuple):
    """A command of the README and the answer shown below it (None: no answer is shown)."""

    command: str
    answer: Any


def snippets() -> Iterator[Snippet]:
    """Return the README's requests and the command-line question, in order."""
    in_order = blocks(README)
    for (language, text), (next_language, shown) in zip(in_order, [*in_order[1:], ("", "")], strict=True):
        if language == "sh" and not text.startswith("make "):
            yield Snippet(text, json.loads(shown) if next_language == "json" else None)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A linked copy of the project's directory whose `.venv` runs this interpreter."""
    left_out = {".git", ".venv", "build", "qdrant_data"}
    for entry in ROOT.iterdir():
        if entry.name not in left_out:
            (tmp_path / entry.name).symlink_to(entry)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    _script(programs / "python", f'exec {sys.executable} "$@"')
    _script(programs / "bge-m3-qdrant", 'exec .venv/bin/python -m service "$@"')
    for name in set(re.findall(r"\$\(VENV\)/(\.[\w-]+)", text_of(ROOT / "Makefile"))):
        (tmp_path / ".venv" / name).touch()  # marks of a completed `make setup`
    return tmp_path


def _script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def run(command: str, project: Path) -> str:
    """Run a command in a fresh shell in the project's directory without settings; return its stdout."""
    prefixes = ("QDRANT_", "MODEL_", "RUNPOD_", "HF_", "LOG_")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(prefixes) and name not in SETTINGS
    }
    done = subprocess.run(
        ["/bin/sh", "-e", "-c", command],
        cwd=project,
        env={**environment, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_shows(shown: Any, actual: Any, path: str = "answer") -> None:
    """Assert that an answer has the structure and texts that the README shows, and nearly the same numbers.

    A list that is cut short ends with "… N in all".
    """
    if isinstance(shown, dict):
        assert isinstance(actual, dict), path
        assert list(shown) == list(actual), path
        for key, value in shown.items():
            assert_shows(value, actual[key], f"{path}.{key}")
    elif isinstance(shown, list):
        assert isinstance(actual, list), path
        total = len(shown)
        if shown and isinstance(shown[-1], str) and (cut := re.fullmatch(r"… (\d+) in all", shown[-1])):
            shown, total = shown[:-1], int(cut[1])
        assert len(actual) == total, path
        for index, (value, actual_value) in enumerate(zip(shown, actual, strict=False)):
            assert_shows(value, actual_value, f"{path}[{index}]")
    elif isinstance(shown, float):
        assert actual == pytest.approx(shown, rel=1e-3, abs=1e-5), path
    else:
        assert (type(actual), actual) == (type(shown), shown), path


@pytest.mark.slow
def test_the_requests_have_the_answers_that_the_readme_shows(project: Path) -> None:
    """Embed, ingest and search run as written, in one shell, without a network or a server."""
    requests = list(snippets())
    assert [snippet.answer is not None for snippet in requests] == [True, True, True, False]
    output = run("\n".join(snippet.command for snippet in requests), project)
    answers, _, hits = output.partition("\n? ")
    for snippet, line in zip(requests, answers.splitlines(), strict=False):
        assert_shows(snippet.answer, json.loads(line))
    assert re.search(r"1  3\.8\d* +rsync\n", hits)
    assert "ColBERT, 3.8" in hits


@pytest.mark.slow
def test_each_request_needs_no_other_but_what_it_searches(project: Path) -> None:
    """The first request is optional but for its settings, and the second can be repeated."""
    first, ingest, search, _ = (snippet.command for snippet in snippets())
    setup = first.partition("\n\n")[0]
    *_, ingested, searched = map(json.loads, run(f"{setup}\n{ingest}{ingest}{search}", project).splitlines())
    assert ingested["upsert"]["stored"] == len(searched["results"][0]["hits"]) == 2


@pytest.mark.slow
def test_make_demo_shows_what_the_readme_shows(project: Path) -> None:
    """`make demo` runs without a network and prints the README's lines in order."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    commands = next(text for language, text in blocks(README) if language == "sh").splitlines()
    assert [command.partition("#")[0].split() for command in commands] == [["make", "demo"], ["make", "test"]]
    output = iter(_without_numbers(run(commands[0], project)))
    (shown,) = (text for language, text in blocks(README) if language == "text")
    for line in _without_numbers(shown):
        assert line in output, line


def _without_numbers(text: str) -> list[str]:
    """Return the lines without numbers, types and indentation, which depend on the machine or terminal."""
    lines = (re.sub(r"\bb?float\d+\b", "TYPE", line) for line in text.splitlines())
    lines = (" ".join(re.sub(r"\d+(\.\d+)?", "N", line).split()) for line in lines)
    return [line for line in lines if line not in ("", "...")]


def test_make_test_runs_the_tests() -> None:
    """`make test` runs pytest (checked without running it within itself)."""
    assert re.search(r"^test:.*\n\t.*pytest", text_of(ROOT / "Makefile"), re.MULTILINE)


def test_the_readme_is_read_in_five_minutes() -> None:
    """The README has at most 200 lines."""
    assert len(text_of(README).splitlines()) <= 200


def test_the_settings_page_explains_every_setting_exactly_once() -> None:
    """Each variable has one row on the settings page."""
    rows = re.findall(r"^\| `([A-Z_]+)` \|", text_of(ROOT / "docs" / "settings.md"), re.MULTILINE)
    assert Counter(rows) == Counter(SETTINGS)


def test_the_readme_names_ten_settings_that_exist() -> None:
    """The README's table names ten settings of the settings page, without their defaults."""
    rows = re.findall(r"^\| `([A-Z_]+)` \|", text_of(README), re.MULTILINE)
    assert len(set(rows)) == len(rows) == 10
    assert set(rows) <= SETTINGS


def test_the_errors_page_explains_every_code_exactly_once() -> None:
    """Each code has one row in the first table of the errors page."""
    table = text_of(ROOT / "docs" / "errors.md").partition("\n## ")[0]
    assert Counter(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == Counter([*CODES, "error_code"])


def test_the_readme_links_every_page() -> None:
    """The README links each page under docs/; the development page links the benchmarks."""
    development = re.findall(r"\]\(([\w-]+\.md)", text_of(ROOT / "docs" / "development.md"))
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", text_of(README))) | set(development)
    assert linked == {page.name for page in PAGES}


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings as GitHub generates them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """Every linked file and heading exists."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_no_page_names_the_host_of_a_package_index(page: Path) -> None:
    """No page changes pip's default index."""
    assert not re.search(r"pypi\.|pythonhosted|download\.pytorch", text_of(page))


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_every_command_is_written_as_the_one_command(page: Path) -> None:
    """No page names a program that `bge-m3-qdrant` replaces."""
    assert not re.search(r"-m (service\.(ask|bulk|demo|healthcheck|http)|embedder\.bake)\b", text_of(page))


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_every_target_of_make_exists(page: Path) -> None:
    """Every `make TARGET` in the documentation can be run."""
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", text_of(page), re.MULTILINE))
    assert named <= set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))


def _commands() -> dict[str, set[str]]:
    """Return the subcommands that the pages name, each with its options there."""
    options: dict[str, set[str]] = {}
    for page in (README, *PAGES):
        for subcommand, rest in re.findall(r"bge-m3-qdrant ([a-z]+)([^`\n]*)", text_of(page)):
            options.setdefault(subcommand, set()).update(re.findall(r"--[a-z][a-z-]*", rest))
    return options


@pytest.mark.parametrize("subcommand", sorted(_commands()))
def test_every_option_is_one_of_its_subcommand(subcommand: str, project: Path) -> None:
    """`--help` lists each option that a page gives a subcommand."""
    help_text = run(f".venv/bin/bge-m3-qdrant {subcommand} --help", project)
    assert not {option for option in _commands()[subcommand] if option not in help_text}
