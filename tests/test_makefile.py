"""The Makefile as `make --dry-run` prints it; nothing is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUNTIME, DEVELOPMENT, BENCHMARKS = "requirements.txt", "requirements-dev.txt", "requirements-bench.txt"
TORCH = "requirements-torch.txt"
PROJECT = "."

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> str:
    """Return the output of make without the caller's variables."""
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    done = subprocess.run(
        ["make", *arguments],  # noqa: S607 - the make on the path
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(plan: str) -> list[str]:
    """Return the commands of a dry run that install something, in order."""
    return [line for line in plan.replace("\\\n", " ").splitlines() if re.search(r"-m pip .*\binstall\b", line)]


def installs(plan: str) -> list[str]:
    """Return what a dry run installs, in order: requirement files, and `.` for the project."""
    return [line.split()[-1] for line in commands(plan)]


def test_make_alone_lists_every_target_with_a_line_on_each() -> None:
    """`make` without a target prints a line per target and does nothing else."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text.replace("\\\n", ""), re.MULTILINE)
    listed = re.findall(r"^  ([a-z-]+) +\S.*$", make(), re.MULTILINE)
    assert sorted(listed) == sorted(set(phony.split()) - {"server-named"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("setup", [RUNTIME, PROJECT, TORCH]),
        ("demo", [RUNTIME, PROJECT, TORCH]),
        ("serve", [RUNTIME, PROJECT, TORCH]),
        ("test", [RUNTIME, PROJECT, TORCH, DEVELOPMENT]),
        ("check", [RUNTIME, PROJECT, TORCH, DEVELOPMENT]),
        ("bench", [RUNTIME, PROJECT, TORCH, BENCHMARKS]),
    ],
)
def test_a_target_installs_what_it_needs_in_layers(tmp_path: Path, target: str, files: list[str]) -> None:
    """The demo installs runtime packages only, torch last; tests add theirs on top."""
    store = tmp_path / "store"
    store.mkdir()
    (store / ".demo-ready").touch()  # without it `serve` starts another make
    assert installs(make("--dry-run", target, f"VENV={tmp_path}/venv", f"QDRANT_PATH={store}")) == files


def test_what_the_tests_need_is_added_without_installing_torch_again(tmp_path: Path) -> None:
    """After `make demo`, `make test` adds its own packages only, and only once."""
    venv = f"VENV={tmp_path}"
    (tmp_path / ".ready").touch()
    assert installs(make("--dry-run", "demo", venv)) == []
    assert installs(make("--dry-run", "test", venv)) == [DEVELOPMENT]
    assert "pip --disable-pip-version-check check" in make("--dry-run", "test", venv)
    (tmp_path / ".dev-ready").touch()
    assert installs(make("--dry-run", "test", venv)) == []


def test_setup_installs_the_client_that_the_mcp_server_needs(tmp_path: Path) -> None:
    """The project and its client are installed together, so that `bge-m3-qdrant mcp` runs after `make setup`."""
    plan = make("--dry-run", "setup", f"VENV={tmp_path}/venv")
    assert "--no-deps --no-build-isolation --editable clients/python --editable ." in plan


@pytest.mark.slow
@pytest.mark.parametrize("target", ["test", "bench"])
def test_everything_but_torch_is_checked_by_hash(tmp_path: Path, target: str) -> None:
    """No target installs a file whose hash is not pinned or that is not listed, torch and its own needs excepted."""
    for command in commands(make("--dry-run", target, f"VENV={tmp_path}/venv")):
        checked = "--require-hashes --no-deps" in command
        assert checked is (command.split()[-1] not in (TORCH, PROJECT)), command
        assert "--no-deps" in command or command.split()[-1] == TORCH


def test_another_index_for_torch_is_an_extra_one(tmp_path: Path) -> None:
    """`TORCH_INDEX` adds an index for torch alone, and pip's default index stays."""
    plan = make("--dry-run", "setup", f"VENV={tmp_path}/venv", "TORCH_INDEX=https://example.org/cpu")
    (line,) = (line for line in plan.replace("\\\n", " ").splitlines() if "--extra-index-url" in line)
    assert '--extra-index-url "https://example.org/cpu"' in line
    assert line.split()[-1] == TORCH


def test_setup_ends_with_what_to_type_next(tmp_path: Path) -> None:
    """After the installation, or if nothing is missing, the next commands are printed last."""
    (tmp_path / ".ready").touch()
    printed = make("setup", f"VENV={tmp_path}")
    assert "make demo" in printed
    assert "make serve" in printed


def test_serve_ingests_once_and_prints_where_to_look(tmp_path: Path) -> None:
    """`make serve` runs the demo if its collection is missing and prints the page, the API and one query."""
    (tmp_path / ".ready").touch()
    arguments = ("--dry-run", "serve", f"VENV={tmp_path}", f"QDRANT_PATH={tmp_path}/store", "PORT=8123")
    first = make(*arguments)
    assert f'touch "{tmp_path}/store/.demo-ready"' in first
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".demo-ready").touch()
    second = make(*arguments)
    assert "touch" not in second
    for address in (
        'http://127.0.0.1:8123/"',
        "http://127.0.0.1:8123/openapi.json",
        "curl http://127.0.0.1:8123/search",
    ):
        assert address in second
