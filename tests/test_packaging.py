"""The installation, the image, the compose file and the hub's files, tested without Docker."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from service.settings import Settings
from service.wire.qdrant_inference import INFERENCE

ROOT = Path(__file__).parents[1]
FIELDS = {name.upper() for name in Settings.model_fields}
CLIENT = "clients/python/src/bge_m3_qdrant_client"
HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text(encoding="utf-8"))
INDEX_HOSTS = r"pypi[.]org|pythonhosted[.]org|download[.]pytorch[.]org|(index-url|find-links)[= ]+https?://"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile as (instruction, arguments), with continuation lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    joined = re.sub(r"\\\n\s*", "", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def of(instruction: str) -> list[str]:
    """Return the arguments of each instruction of this name."""
    return [rest for name, rest in instructions() if name == instruction]


def program(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python as the image does, without the caller's settings."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("QDRANT_", "MODEL_", "RUNPOD_", "HF_"))
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The content of the image's /app: the files that the Dockerfile copies, without ignored ones."""
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!").rstrip("/") for rule in rules if rule.startswith("!")}
    app = tmp_path / "app"
    app.mkdir()
    for rest in of("COPY"):
        source, target = (word.rstrip("/") for word in rest.split())
        assert source in allowed, f".dockerignore keeps {source} out of the build"
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, app / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, app)
    return app


def test_hadolint_finds_nothing() -> None:
    """The Dockerfile passes its linter."""
    linter = Path(sys.executable).parent / "hadolint"
    if not linter.exists():
        pytest.skip("hadolint has no build for this machine")
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_compose_file_is_valid() -> None:
    """The compose file is valid by the schema of the compose specification."""
    done = program("-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml", cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_the_image_runs_as_nobody_special_and_python_is_its_first_process() -> None:
    """The user is numeric and not root, and signals reach Python without a shell in between."""
    (user,) = of("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    (command,) = of("CMD")
    assert json.loads(command) == ["python", "handler.py"]
    assert not of("ENTRYPOINT")


PIN = r"[A-Za-z0-9_.\-]+==[0-9][0-9a-z.]*"
"""Pattern of an exact version."""


def pins(name: str) -> list[str]:
    """Return the exact versions of a file of requirements, without hashes."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line.rstrip(" \\") for line in lines if re.match("[A-Za-z]", line)]


def test_every_version_in_the_image_is_pinned() -> None:
    """The base image has a patch release with a supported Python, and every package is pinned exactly."""
    (base,) = of("FROM")
    version = re.fullmatch(r"python:3\.(\d+)\.\d+-slim-\w+", base)
    assert version
    assert int(version[1]) in {11, 12}
    assert all(re.fullmatch(PIN, pin) for pin in pins("requirements.txt"))
    [torch] = pins("requirements-torch.txt")
    assert re.fullmatch(r"torch==[0-9][0-9.]*", torch)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-bench.txt"])
def test_every_package_but_torch_is_pinned_by_hash(name: str) -> None:
    """A file that is not one of the pinned version's files as they were when the pin was made is not installed."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.split(r"(?<!\\)\n", text.strip())
    hashed = [block for block in blocks if not block.startswith(("#", "-r "))]
    assert len(hashed) > 5
    for block in hashed:
        pin, *hashes = (part.strip() for part in block.split("\\\n"))
        assert re.fullmatch(PIN + r"( ; .+)?", pin), pin
        assert hashes, f"{pin} has no hash; run make requirements"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), pin
        assert not pin.startswith("torch==")


def test_the_image_checks_hashes_and_installs_nothing_else() -> None:
    """Every package of the image but torch and what its build needs comes from a file whose hash is pinned."""
    (line,) = (rest for rest in of("RUN") if "requirements.txt" in rest)
    assert line == "pip install --require-hashes --no-deps --force-reinstall -r requirements.txt && pip check"


@pytest.mark.slow
def test_the_files_of_the_image_are_enough_to_serve(image: Path) -> None:
    """With the copied files alone, the program answers a job, and the health check runs."""
    job = json.dumps({"input": {"texts": ["hello"], "vectors": ["dense"]}})
    done = program("handler.py", "--test_input", job, cwd=image, MODEL_ID="mini", GPU_DEVICE="cpu")
    assert done.returncode == 0, done.stderr
    assert "'text': 'hello'" in done.stdout + done.stderr
    assert program("-m", "service", "healthcheck", cwd=image).returncode == 0


def shell(command: str, variables: dict[str, str], *, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command as a RUN line does, with only these variables and programs."""
    search = f"{path or Path(sys.executable).parent}:/usr/bin:/bin"
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=ROOT,
        env={"PATH": search, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_an_installation_has_every_package_and_every_file_beside_its_code() -> None:
    """The search page, the miniature model and the corpus are installed."""
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    roots = {package for package in installed["packages"] if "." not in package}
    others = {"requirements.txt", "requirements-torch.txt", "handler.py", CLIENT}
    assert roots == {rest.split()[0].rstrip("/") for rest in of("COPY")} - others
    for root in roots:
        for file in (ROOT / root).rglob("*"):
            package = ".".join(file.parent.relative_to(ROOT).parts)
            if file.suffix == ".py":
                assert package in installed["packages"], file
            elif file.is_file() and file.suffix != ".pyc" and file.name != "README.md":
                assert any(_is_within(file, *entry) for entry in installed["package-data"].items()), file


def _is_within(file: Path, package: str, patterns: list[str]) -> bool:
    """Return whether these package-data patterns select this file."""
    root = ROOT / package.replace(".", "/")
    return file.is_relative_to(root) and any(fnmatch(str(file.relative_to(root)), pattern) for pattern in patterns)


COMMANDING = ["README.md", "docs/design.md", "docs/development.md", "training/README.md"]
COMMANDING += ["Makefile", "Dockerfile", "docker-compose.yml"]


@pytest.mark.parametrize("name", COMMANDING)
def test_every_command_names_a_module_that_exists(name: str) -> None:
    """Every `python -m MODULE` in the documentation can be run."""
    text = (ROOT / name).read_text(encoding="utf-8")
    modules = set(re.findall(r'python"?,? "?-m"?,? "?([a-z_.]+)', text)) - {"pip", "venv"}
    assert all(find_spec(module) for module in modules), modules


@pytest.mark.parametrize(("index", "options"), [("", ""), ("https://example.org/cu126", "--extra-index-url {} ")])
def test_torch_is_installed_alone_and_another_index_is_an_extra_one(tmp_path: Path, index: str, options: str) -> None:
    """The Dockerfile installs torch first; the index of the build argument comes on top of pip's default index."""
    (line,) = (rest for rest in of("RUN") if "requirements-torch.txt" in rest)
    pip = tmp_path / "pip"
    pip.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    pip.chmod(0o755)
    done = shell(line, {"TORCH_INDEX": index}, path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "called").read_text() == f"install {options.format(index)}-r requirements-torch.txt\n"


def test_no_package_index_is_named_in_the_tree() -> None:
    """Packages come from the user's pip configuration or from an index that the user names."""
    done = subprocess.run(
        ["git", "grep", "-n", "-I", "-i", "-E", INDEX_HOSTS, "--", ":!*.svg"],  # noqa: S607 - the git on the path
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode > 1:
        pytest.skip("not a git checkout")
    assert done.stdout == ""


@pytest.mark.slow
def test_the_prefetch_command_of_the_image_downloads_the_named_model(image: Path) -> None:
    """The Dockerfile's prefetch works with and without a model, and a wrong one fails the build."""
    (line,) = (rest for rest in of("RUN") if "BAKE_MODEL" in rest)
    inside = f"cd {shlex.quote(str(image))}; {line}"
    assert shell(inside, {"BAKE_MODEL": "mini"}).returncode == 0
    assert shell(inside, {"BAKE_MODEL": ""}).returncode == 0
    refused = shell(inside, {"BAKE_MODEL": "no such model"})
    assert refused.returncode == 2
    assert "MODEL: must be `mini`" in refused.stderr
    named = {"BAKE_MODEL": "a/b c", "BAKE_REVISION": "d e"}
    printed = shell(line.replace("python -m service", "printf '%s,'"), named)
    assert printed.stdout == "prefetch,--revision,d e,--,a/b c,"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"BAKE_MODEL": "", "BAKE_REVISION": ""}, ["BAAI/bge-m3", "", ""]),
        ({"BAKE_MODEL": "BAAI/bge-m3", "BAKE_REVISION": ""}, ["BAAI/bge-m3", "", "1"]),
        ({"BAKE_MODEL": "me/mine", "BAKE_REVISION": "abc"}, ["me/mine", "abc", "1"]),
    ],
)
def test_an_image_loads_its_prefetched_model_without_the_hub(arguments: dict[str, str], wanted: list[str]) -> None:
    """Build arguments set the model and its commit without hub access; an empty variable counts as unset."""
    (line,) = (rest for rest in of("ENV") if "MODEL_ID" in rest)
    words = [word.partition("=")[2] for word in line.split()]
    assert [word.partition("=")[0] for word in line.split()] == ["MODEL_ID", "MODEL_REVISION", "HF_HUB_OFFLINE"]
    assert shell("; ".join(f'echo "{word}"' for word in words), arguments).stdout.splitlines() == wanted


def test_every_health_check_is_the_one_that_is_there() -> None:
    """The image and the compose file run the same health check without a shell."""
    (rest,) = of("HEALTHCHECK")
    command = ["python", "-m", "service", "healthcheck"]
    assert json.loads(rest.partition("CMD ")[2]) == command
    assert COMPOSE["services"]["worker"]["healthcheck"]["test"] == ["CMD", *command]


@pytest.mark.slow
def test_the_pinned_packages_can_be_installed_together(tmp_path: Path) -> None:
    """The Dockerfile's pinned packages resolve without a conflict (asks the package index)."""
    versions = tmp_path / "versions.txt"
    versions.write_text("\n".join(pins("requirements.txt") + pins("requirements-torch.txt")))
    done = program("-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "-r", str(versions), cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_compose_settings_are_settings() -> None:
    """The compose file uses known variables with valid defaults, and the server calls the worker with its key."""
    worker = COMPOSE["services"]["worker"]
    set_there = worker["environment"]
    assert set(set_there) <= FIELDS
    defaults = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in set_there.items()}
    settings = Settings.from_environment(defaults)
    assert str(settings.qdrant_url) == "http://qdrant:6333"
    assert worker["ports"] == [f"127.0.0.1:{settings.port}:{settings.port}"]
    assert "healthcheck" in COMPOSE["services"]["qdrant"]
    inference = COMPOSE["services"]["qdrant"]["environment"]
    assert inference["QDRANT__INFERENCE__ADDRESS"] == f"http://worker:{settings.port}{INFERENCE}"
    assert inference["QDRANT__INFERENCE__TOKEN"] == set_there["API_KEY"]
    assert worker["depends_on"] == {"qdrant": {"condition": "service_healthy"}}


def test_the_hub_offers_settings_that_exist_with_their_own_defaults() -> None:
    """Every variable of hub.json is a setting of the worker with the same default."""
    defaults = Settings.from_environment({})
    for variable in HUB["config"]["env"]:
        key, default = variable["key"], variable["input"]["default"]
        if key == "HF_TOKEN":
            continue
        assert key in FIELDS
        own = getattr(defaults, key.lower())
        assert default == own or (default == "" and not own), key
        options = [option["value"] for option in variable["input"].get("options", [])]
        for value in options:
            Settings.from_environment({key: value})
    for preset in HUB["config"]["presets"]:
        Settings.from_environment(preset["defaults"])
    assert HUB["config"]["runsOn"] == "GPU"
    assert {"title", "description", "type", "category"} <= set(HUB)


def test_the_hub_reaches_any_server_and_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The hub offers the settings that say which server is meant, and its defaults, which it always sets, are quiet."""
    offered = {variable["key"]: variable["input"]["default"] for variable in HUB["config"]["env"]}
    assert {"QDRANT_URL", "QDRANT_GRPC_PORT", "QDRANT_API_KEY", "QDRANT_ALLOW_HTTP_KEY"} <= offered.keys()
    Settings.from_environment({key: str(default) for key, default in offered.items()})
    assert not caplog.records
