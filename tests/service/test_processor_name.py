"""The processor's name is queried before the import of the SDK, which needs it."""

from __future__ import annotations

import subprocess
import sys
import threading

import cpuinfo
import pytest

from service.transports.queue.processor_name import ask_ahead

_IMPORT = """
import subprocess
import cpuinfo
from service.transports.queue.processor_name import ask_ahead

ask_ahead()
print(cpuinfo.get_cpu_info().get("brand_raw", "Unable to get processor info."))

def refuse(*_, **__):
    raise AssertionError("a process was started")

subprocess.Popen = refuse
from runpod.serverless.utils import rp_debugger

print(rp_debugger.PROCESSOR)
"""


@pytest.mark.slow
def test_the_sdk_starts_no_process_of_its_own_and_reads_the_same_name() -> None:
    """The import of the SDK starts no process of its own for the name of the processor."""
    run = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    asked_ahead, read_by_the_sdk = run.stdout.splitlines()
    assert read_by_the_sdk == asked_ahead


def test_the_name_is_queried_once_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """The query does not block, and all callers get its result."""
    answered = threading.Event()
    calls: list[None] = []

    def slow() -> dict[str, str]:
        calls.append(None)
        assert answered.wait(10)
        return {"brand_raw": "a processor"}

    monkeypatch.setattr(cpuinfo, "get_cpu_info", slow)
    ask_ahead()  # returns before the query has finished
    answered.set()
    assert [cpuinfo.get_cpu_info() for _ in range(2)] == [{"brand_raw": "a processor"}] * 2
    assert len(calls) == 1


def test_a_failure_is_raised_in_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of the query is raised in the caller, not in the background thread."""

    def fail() -> dict[str, str]:
        raise KeyError("arch")

    monkeypatch.setattr(cpuinfo, "get_cpu_info", fail)
    ask_ahead()
    with pytest.raises(KeyError, match="arch"):
        cpuinfo.get_cpu_info()


def test_a_machine_without_the_package_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker starts without the package."""
    monkeypatch.setitem(sys.modules, "cpuinfo", None)
    ask_ahead()
