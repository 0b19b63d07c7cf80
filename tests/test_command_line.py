"""`bge-m3-qdrant`: the promises that every subcommand keeps."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Final

import click
import pytest

from embedder import KINDS
from qdrant_sink.edge import EdgeStore
from service import __version__
from service.operations import Operations
from service.settings import Settings
from service.transports.cli import main as program
from service.transports.cli import options
from tests.command_line import PROGRAM, ask_options, bulk_options, invoke
from tests.loopback import Worker, free_port

ROOT: Final = Path(__file__).parents[1]
SETTINGS: Final = {"MODEL_ID": "mini", "GPU_DEVICE": "cpu", "DTYPE": "float32", "TOKEN_BUDGET": "512"}
WAIT_MAX_S: Final = 60.0
"""Timeout in seconds for a hanging process. No measurement depends on it."""

HELP_MODULES: Final = """
import json, sys
sys.argv = ["bge-m3-qdrant", *json.loads(sys.argv[1])]
from service.transports.cli.main import main
try:
    main()
except SystemExit as end:
    print(json.dumps([end.code, sorted({name.partition(".")[0] for name in sys.modules})]), file=sys.stderr)
"""


def run(*arguments: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a fresh process without the caller's settings."""
    names = ("QDRANT_", "MODEL_", "LOG_", "RUNPOD_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    return subprocess.run(
        [*PROGRAM, *arguments],
        cwd=cwd,
        env={**clean, **SETTINGS, "PYTHONPATH": str(ROOT), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_MAX_S,
        check=False,
    )


def command(name: str) -> click.Command:
    """Return the subcommand of this name."""
    return import_module(f"service.transports.cli.commands.{name}").command  # type: ignore[no-any-return]


def example_lines(text: str) -> list[list[str]]:
    """Return the arguments of each example in a help text."""
    examples = [line.strip() for line in text.partition("Example")[2].splitlines() if line.startswith("    ")]
    return [shlex.split(line)[shlex.split(line).index("bge-m3-qdrant") + 1 :] for line in examples]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in program.COMMANDS)])
def test_help_does_not_wait_for_libraries(arguments: list[str]) -> None:
    """The help of the command and of every subcommand imports no model, store, server or SDK."""
    done = subprocess.run(
        [sys.executable, "-c", HELP_MODULES, json.dumps(arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_MAX_S,
        check=True,
    )
    status, modules = json.loads(done.stderr)
    assert status == 0
    assert done.stdout.startswith("Usage: bge-m3-qdrant ")
    heavy = {"torch", "tokenizers", "qdrant_client", "qdrant_edge", "grpc", "runpod", "fastapi", "uvicorn", "pydantic"}
    assert not heavy & set(modules)
    if arguments[0] != "precision":  # its help imports the thresholds of the comparison
        assert "numpy" not in modules


def test_the_command_starts_quickly() -> None:
    """The health check, which a container starts every few seconds, takes little more than an interpreter."""

    def cpu_s(start: Callable[[], object]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    bare = min(cpu_s(lambda: subprocess.run([sys.executable, "-c", "import json"], check=True)) for _ in range(3))
    own = min(cpu_s(lambda: run("healthcheck").check_returncode()) for _ in range(3))
    assert own < 10 * bare  # three times as long; the HTTP server's libraries alone take sixteen times as long


@pytest.mark.parametrize("name", program.COMMANDS)
def test_every_subcommand_has_help_with_examples_that_parse(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The help says what the command does, its exit statuses, and shows at least one example that it accepts."""
    (tmp_path / "passages.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    ended = invoke(name, "--help")
    assert ended.status == 0
    assert "Exit status: 0" in ended.out
    examples = example_lines(ended.out)
    assert examples
    for subcommand, *arguments in examples:
        assert subcommand == name
        assert command(name).make_context(name, arguments)
    assert command(name).name == name


def test_the_help_of_the_program_lists_every_subcommand() -> None:
    """Each subcommand has a summary, examples are accepted, and without arguments the help is shown."""
    shown = invoke("--help").out
    for name, summary in program.COMMANDS.items():
        assert f"  {name} " in shown
        assert summary in shown
    for name, *arguments in example_lines(shown):
        assert command(name).make_context(name, arguments)
    bare = invoke()
    assert (bare.status, bare.out, bare.err) == (2, "", shown)


def test_the_console_script_is_the_program() -> None:
    """An installation has the command under its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entry = EntryPoint(name="bge-m3-qdrant", value=project["scripts"]["bge-m3-qdrant"], group="console_scripts")
    assert entry.load() is program.main
    assert invoke("--version").out == f"bge-m3-qdrant, version {__version__}\n"


def test_options_stand_before_or_after_and_lists_have_commas() -> None:
    """Options may precede or follow other arguments; lists use commas or repeated options."""
    wanted = bulk_options("--collection", "notes", "-", "--vectors", "dense,sparse")
    assert wanted.vectors == ("dense", "sparse")
    assert bulk_options("-", "--vectors", "dense", "--collection", "notes", "--vectors", "sparse,dense") == wanted
    assert ask_options("a", "--limit", "3", "b") == ask_options("--limit", "3", "a", "b")
    assert options.KINDS == KINDS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["load"], "bge-m3-qdrant: No such command 'load'. See `bge-m3-qdrant --help`"),
        (["--quick"], "bge-m3-qdrant: No such option '--quick'. See `bge-m3-qdrant --help`"),
        (["ask"], "bge-m3-qdrant ask: Missing argument 'QUESTION...'. See `bge-m3-qdrant ask --help`"),
        (
            ["ask", "a", "--using", "dense,lexical"],
            (
                "bge-m3-qdrant ask: Invalid value for '--using': 'lexical' is unknown; "
                "name some of dense, sparse, colbert, with commas. See `bge-m3-qdrant ask --help`"
            ),
        ),
        (
            ["ask", "a", "--filter", '{"must"'],
            (
                "bge-m3-qdrant ask: Invalid value for '--filter': must be valid JSON (column 8). "
                "See `bge-m3-qdrant ask --help`"
            ),
        ),
        (["demo", "--limit"], "bge-m3-qdrant demo: No such option '--limit'. See `bge-m3-qdrant demo --help`"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(arguments: list[str], message: str) -> None:
    """The error line names the command, the mistake and the help; the status is 2."""
    ended = invoke(*arguments)
    assert (ended.status, ended.out, ended.err) == (2, "", f"{message}\n")


def test_a_defect_is_one_line_without_the_text_that_caused_it() -> None:
    """Only the type and location of a defect are printed, as its message may quote a text."""

    def build(_settings: Settings) -> Operations:
        raise ValueError("secret")

    ended = invoke("ask", "secret", build=build)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("bge-m3-qdrant ask: internal error: ValueError in build (tests/test_command_line.py:")
    assert ended.err.count("\n") == 1
    assert "secret" not in ended.err


def test_a_package_that_is_not_installed_is_named() -> None:
    """Where the program was installed without its dependencies, a command says which one it lacks."""

    def build(_settings: Settings) -> Operations:
        raise ModuleNotFoundError(name="absent.module")

    ended = invoke("ask", "files", build=build)
    says = "absent is not installed; install bge-m3-qdrant with its dependencies"
    assert (ended.status, ended.out, ended.err) == (2, "", f"bge-m3-qdrant ask: {says}\n")


def test_an_interruption_ends_a_command_without_output() -> None:
    """Ctrl-C while a command waits for a response exits with status 130 and prints nothing."""
    script = """
from service.transports.cli.main import cli

def interrupt(_settings):
    raise KeyboardInterrupt

cli.main(["ask", "a question"], obj=interrupt)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ask", "bulk", "complete", "demo", "precision", "prefetch"])
def test_the_log_settings_hold_in_every_command(name: str, tmp_path: Path) -> None:
    """LOG_FORMAT=json makes every log line an object, LOG_LEVEL filters them, and invalid values are named."""
    arguments = {
        "ask": ["a question", "--collection", "notes", "--json"],
        "bulk": ["--collection", "notes", "--json"],
        "complete": ["notes", "--kinds", "sparse", "--json"],
        "demo": ["--json"],
        "precision": ["--model", "mini", "--dtype", "float16", "--device", "cpu", "--max-length", "16", "--json"],
        "prefetch": ["mini", "--json"],
    }[name]
    EdgeStore(tmp_path / "store").close()
    done = run(name, *arguments, LOG_FORMAT="json", LOG_LEVEL="INFO", QDRANT_PATH=str(tmp_path / "store"))
    lines = [line for line in done.stderr.splitlines() if line.startswith("{")]
    assert all({"time", "level", "logger", "message"} <= json.loads(line).keys() for line in lines)
    if name != "prefetch":
        assert lines
    refused = run(name, *arguments, LOG_LEVEL="LOUD")
    assert refused.returncode == (1 if name == "demo" else 2)
    assert refused.stderr.startswith(f"bge-m3-qdrant {name}: LOG_LEVEL must be ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_reports_are_json_where_it_is_asked_for(tmp_path: Path) -> None:
    """With --json the standard output is one line of JSON."""

    def report(*arguments: str, api_key: str = "") -> Any:
        done = run(*arguments, "--json", QDRANT_PATH=str(tmp_path / "store"), API_KEY=api_key)
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        return json.loads(line)

    demo = report("demo")
    assert demo["collection"] == "demo"
    assert demo["right_answers"]["top_1"] <= demo["right_answers"]["top_10"] <= demo["questions"]
    assert set(demo["seconds"]) == {"load the model", "ingest 179 passages", f"answer {demo['questions']} questions"}
    answer = report("ask", "copy only the changed parts", "--collection", "demo")
    assert len(answer["results"][0]["hits"]) == 5
    assert report("version")["bge-m3-qdrant"] == __version__
    assert report("healthcheck") == {"healthy": True, "reason": "PORT is unset, so no server is asked"}
    settings = report("settings", api_key="secret")
    assert settings["MODEL_ID"] == {"value": "mini", "set": True}
    assert settings["API_KEY"] == {"value": "***", "set": True}
    assert settings["QUEUE_TOKENS"] == {"value": 2_000_000, "set": False}


def test_settings_are_shown_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting is one line without secrets, values of the environment are marked, invalid ones are named."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("API_KEY", "secret")
    shown = invoke("settings").out
    lines = [line.split() for line in shown.splitlines()]
    assert ["*", "API_KEY", "***"] in lines
    assert ["QDRANT_URL", "(unset)"] in lines
    assert "secret" not in shown
    assert len(lines) == len(Settings.model_fields)
    monkeypatch.setenv("PORT", "0")
    ended = invoke("settings")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("bge-m3-qdrant settings: PORT must be at least 1, got '0'")


def test_a_health_check_says_why() -> None:
    """A port without a server and an invalid port exit with status 1 and one line."""
    port = free_port()
    done = run("healthcheck", PORT=str(port))
    message = f"not healthy: port {port} gives no answer (ConnectionRefusedError)\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, message, "")
    done = run("healthcheck", PORT="http")
    assert (done.returncode, done.stdout) == (1, "not healthy: PORT must be an integer from 1 to 65535, got 'http'\n")


@pytest.mark.slow
def test_the_queue_hands_its_arguments_to_the_sdk(tmp_path: Path) -> None:
    """`queue -- --test_input JOB` runs one job, like `python handler.py --test_input JOB`."""
    job = json.dumps({"input": {"texts": ["hello"], "vectors": ["dense"]}})
    done = run("queue", "--", "--test_input", job, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'text': 'hello'" in done.stdout + done.stderr
    refused = run("queue", "--test_input", "{", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "refusing to start: --test_input is not valid JSON (column 2)\n"
    refused = run("queue", "--test_input", cwd=tmp_path)
    assert refused.stderr == "refusing to start: argument --test_input: expected one argument\n"
    refused = run("queue", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("refusing to start: RUNPOD_WEBHOOK_GET_JOB names no queue")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 0)])
def test_a_signal_ends_the_server(number: signal.Signals, status: int, tmp_path: Path) -> None:
    """From its first log line on, `serve` exits with status 0 on a signal, loading or serving."""
    environment = {**SETTINGS, "PORT": str(free_port()), "QDRANT_PATH": str(tmp_path / "store")}
    with Worker(None, cwd=ROOT, script="-m", args=["service", "serve"], env=environment) as worker:
        deadline = time.monotonic() + WAIT_MAX_S
        while "API_KEY is not set" not in worker.output and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.1)
        os.kill(worker.pid, number)
        assert worker.wait(WAIT_MAX_S) == status
        assert "Traceback" not in worker.output
