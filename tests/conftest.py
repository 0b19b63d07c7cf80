"""Settings and fixtures that all tests share."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import sys
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import settings

# Set before torch is imported, also for all programs that tests start: waiting OpenMP threads sleep.
# By default they spin, which makes a pass ten times as slow if several processes share two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Several processes share the cores: more threads each would take turns with those of the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Also for all processes that run tests and all programs that tests start: each would compile the project anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Set before Triton is imported: without a GPU its kernels run in its interpreter on the CPU.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Stores of tests are in memory where there is enough of it: a disk that synchronises took most of the time of a run.
_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - pytest creates a directory for this user alone
_STORES_MAX_BYTES = 6_000_000_000
if _IN_MEMORY.is_dir() and shutil.disk_usage(_IN_MEMORY).free > _STORES_MAX_BYTES:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_IN_MEMORY))

# No test depends on the clock: on a busy machine any example may take long.
settings.register_profile("full", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=20)


def pytest_configure(config: pytest.Config) -> None:
    """Draw 20 examples for a property in the default run, and hypothesis's own 100 with any other `-m`."""
    settings.load_profile("quick" if "not slow" in config.option.markexpr else "full")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Run one process more than there are cores: some tests wait, and a core would wait with them."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the modules of all tests without the garbage collector, and exempt what they define from it.

    They have a million objects: the collections took a quarter of the time of the imports, and afterwards each full
    one takes a third of a second.
    """
    from embedder.frozen_imports import frozen_imports

    with frozen_imports():
        return (yield)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip slow and timed tests unless `-m` names them."""
    for marker in ("slow", "timed"):
        if marker in config.option.markexpr.replace(f"not {marker}", ""):
            continue
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{marker}: run it with -m {marker}"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Direct converted checkpoints to a temporary cache instead of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _quick_clients() -> Iterator[None]:
    """Read the certificates of authorities and the request schemas of qdrant-client once, not for each client.

    Clients of httpx and of qdrant-client are made a thousand times, and each read took up to 30 ms.
    """
    from qdrant_client.embed import embed_inspector, schema_parser, type_inspector

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", cache(ssl.create_default_context))
        parser = cache(schema_parser.ModelSchemaParser)
        patch.setattr(type_inspector, "ModelSchemaParser", parser)
        patch.setattr(embed_inspector, "ModelSchemaParser", parser)
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_interrupt() -> Iterator[None]:
    """Handle SIGINT as Python does, so that `asyncio.run` sets no handler of its own.

    To set one, Python writes the `repr` of the task and so of its result: a tenth of the time of the service's tests.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, interrupt)
    yield
    signal.signal(signal.SIGINT, before)
