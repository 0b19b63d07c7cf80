"""All that clients cause stays within one ceiling of memory, by a plan that is made at the start."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from embedder import ConfigurationError, Embedder
from qdrant_sink.edge.store import EdgeStore
from service.memory_plan import ACCOUNT_MIN_BYTES, MemoryPlan, Part
from service.operations import Operations
from service.operations.memory_parts import operations_parts
from service.settings import Settings
from service.transports.http.connections import ConnectionLimits
from service.transports.http.jobs import jobs_part
from service.transports.queue.worker import held_inputs_max_bytes
from tests.service.client import ENVIRONMENT


def http_plan(budget_mb: float, **settings: str) -> MemoryPlan:
    """The plan of a worker over HTTP with a ceiling."""
    chosen = Settings.from_environment({"MEMORY_BUDGET_MB": str(budget_mb), **settings})
    parts = (*operations_parts(chosen), ConnectionLimits.of(chosen).part, jobs_part(chosen))
    return MemoryPlan(chosen.memory_budget_bytes, parts)


def test_parts_and_account_add_up_to_the_ceiling() -> None:
    """Nothing is counted twice or left out: the parts and the account are the ceiling."""
    plan = MemoryPlan(100_000_000, [Part("a", 3, 1_000_000)]).extended([Part("b", 1, 7_000_000)])
    assert plan.account_bytes == 90_000_000
    assert str(plan) == "90 MB = 100 MB - 3 MB (a) - 7 MB (b)"
    plan.check()


@pytest.mark.parametrize("budget_mb", [200, 268, 537, 1074, 2147, 4295, 100_000])
def test_default_settings_work_with_any_memory(budget_mb: float) -> None:
    """A container of any size from 400 MB on starts with the default settings, and the account is the largest part."""
    plan = http_plan(budget_mb)
    plan.check()
    assert plan.account_bytes >= ACCOUNT_MIN_BYTES
    assert sum(part.size_bytes for part in plan.parts) + plan.account_bytes == plan.ceiling_bytes
    assert plan.account_bytes > 0.5 * plan.ceiling_bytes or budget_mb < 500


def test_settings_that_leave_too_little_end_the_start() -> None:
    """The error names what takes the memory, and each setting that helps."""
    plan = http_plan(200, HTTP_MAX_CONNECTIONS="1000")
    with pytest.raises(ConfigurationError) as refusal:
        plan.check()
    message = str(refusal.value)
    assert message.startswith("MEMORY_BUDGET_MB must leave at least 32 MB for requests, got -")
    assert "- 533 MB (connections)" in message
    assert message.endswith("raise it, or lower QUEUE_TOKENS or HTTP_MAX_CONNECTIONS or JOBS_MAX_MB")


def test_shares_are_defaults_alone() -> None:
    """Connections and jobs are lowered where memory is small, unless the operator has set them."""
    small = {"MEMORY_BUDGET_MB": "400"}
    assert Settings.from_environment(small).jobs_max_bytes == 50_000_000
    assert Settings.from_environment({**small, "JOBS_MAX_MB": "100"}).jobs_max_bytes == 100_000_000
    assert ConnectionLimits.of(Settings.from_environment(small)).connections == 127
    chosen = Settings.from_environment({**small, "HTTP_MAX_CONNECTIONS": "300"})
    assert ConnectionLimits.of(chosen).connections == 300
    assert held_inputs_max_bytes(Settings.from_environment(small)) == 50_000_000


def test_a_transport_takes_its_memory_from_the_account(
    embedder: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests may reserve what is left, and the log says how the memory is divided, in one line."""
    settings = Settings.from_environment({**ENVIRONMENT, "MEMORY_BUDGET_MB": "400"})
    operations = Operations(settings, embedder, EdgeStore(tmp_path))
    before = operations.memory.total_bytes
    with caplog.at_level(logging.INFO):
        operations.set_aside([Part("connections", 100, 524_288)])
    assert operations.memory.total_bytes == before - 52_428_800 == operations.memory_plan.account_bytes
    assert "memory of requests: " in caplog.text
    assert "400 MB" in caplog.text
    with pytest.raises(ConfigurationError, match="MEMORY_BUDGET_MB"):
        operations.set_aside([Part("jobs", 1, before)])
    assert operations.memory.total_bytes == before - 52_428_800
