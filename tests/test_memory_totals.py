"""The memory that `docs/limits.md` promises follows from the limits, and adds up to the ceiling."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from embedder import Outputs
from embedder.scheduling.pool import STREAM_WINDOW_TOKENS
from service.memory_plan import MemoryPlan
from service.operations.ingest import SENDING_MAX_BYTES, window_max_bytes
from service.operations.memory_parts import operations_parts
from service.operations.rerank import RANKED_BYTES
from service.operations.vector_memory import ARRAYS_FACTOR, TEXT_BYTES, VectorMemory
from service.settings import Settings
from service.transports.http.body import BODY_MAX_BYTES
from service.transports.http.connections import ConnectionLimits
from service.transports.http.jobs import jobs_part
from service.transports.http.state import RESPONSE_MB
from service.wire.codec import PAIR_BYTES
from service.wire.json_limits import JsonLimits
from service.wire.qdrant_inference import INPUT_BYTES, INPUTS_MAX
from service.wire.rendered_memory import CHARACTER_JSON_MAX_BYTES, CHUNKS_BYTES, WEIGHT_JSON_MAX_BYTES
from service.wire.size import LIST_NUMBER_MIN_BYTES
from service.wire.streamed import NUMBER_MAX_BYTES

PAGE: Final = Path(__file__).parents[1] / "docs" / "limits.md"
CEILING_MB: Final = 4000
"""Half of a container of 8 GB."""

SETTINGS: Final = Settings.from_environment({"MEMORY_BUDGET_MB": str(CEILING_MB), "HTTP_MAX_CONNECTIONS": "1000"})
VECTORS: Final = VectorMemory(1024, 1024)
WINDOW: Final = max(STREAM_WINDOW_TOKENS, 4 * 16_384)


def plan() -> MemoryPlan:
    """The plan of a worker over HTTP."""
    parts = (*operations_parts(SETTINGS), ConnectionLimits.of(SETTINGS).part, jobs_part(SETTINGS))
    return MemoryPlan(SETTINGS.memory_budget_bytes, parts)


def largest_requests() -> Mapping[str, int]:
    """The most memory in bytes that one request of each kind can reserve, before the account bounds it."""
    texts, tokens = SETTINGS.max_texts, SETTINGS.queue_tokens
    values = JsonLimits.of(SETTINGS.json_max_nodes, BODY_MAX_BYTES).max_bytes
    echo = CHARACTER_JSON_MAX_BYTES * BODY_MAX_BYTES
    numbers = SETTINGS.max_response_bytes(RESPONSE_MB) // LIST_NUMBER_MIN_BYTES
    arrays = numbers * ARRAYS_FACTOR * 4
    sparse = tokens * (VECTORS.token_bytes(Outputs(dense=False, colbert=False)) + WEIGHT_JSON_MAX_BYTES)
    rendered = numbers * (NUMBER_MAX_BYTES + 1) + CHUNKS_BYTES
    window = VECTORS.max_bytes(min(2 * texts, WINDOW // 2), WINDOW, Outputs())
    inference = SETTINGS.inference_max_response_bytes // (NUMBER_MAX_BYTES + 1) * ARRAYS_FACTOR * 4
    inference_values = JsonLimits.of(SETTINGS.json_max_nodes, SETTINGS.inference_max_request_bytes).max_bytes
    return {
        "a body that is refused": BODY_MAX_BYTES + values,
        "`/embed`": values + texts * TEXT_BYTES + arrays + sparse + rendered + echo,
        "`/v1/embeddings`, and TEI's": values + texts * TEXT_BYTES + arrays + sparse + rendered,
        "`/qdrant/inference`": inference_values + INPUTS_MAX * (INPUT_BYTES + TEXT_BYTES) + inference + CHUNKS_BYTES,
        "`/score`": values + texts * (PAIR_BYTES + 2 * TEXT_BYTES) + window,
        "`/rerank`": values + texts * RANKED_BYTES + window + echo,
        "vectors of all ingests that wait to be stored": window_max_bytes(VECTORS, WINDOW),
        "points of all ingests that are sent": SENDING_MAX_BYTES,
        "`/search`, `/points` and jobs": SETTINGS.memory_budget_bytes,
    }


def megabytes(size: int) -> str:
    """A size as the page writes it."""
    return f"{round(size / 1e6)} MB"


def table(header: str) -> dict[str, str]:
    """The last cell of each row of a table by its first cell."""
    rows = PAGE.read_text(encoding="utf-8").partition(header)[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0]: row[-1] for row in cells}


def test_the_parts_add_up_to_the_ceiling() -> None:
    """The page has the parts of the plan, whose sum with the account is the ceiling that was configured."""
    expected = {part.name: megabytes(part.size_bytes) for part in plan().parts}
    expected |= {"requests (the account)": megabytes(plan().account_bytes), "**all together**": f"{CEILING_MB} MB"}
    shown = table("| part | most at a time | each | memory |")
    assert shown == expected
    *parts, total = (int(re.sub(r"\D", "", size)) for size in shown.values())
    assert abs(sum(parts) - total) <= len(parts)  # each is rounded


def test_one_request_is_bounded() -> None:
    """The page says what each kind of request can take, by the limits and never more than the account."""
    account = plan().account_bytes
    expected = {
        kind: megabytes(min(size, account)) + (" (the account)" if size >= account else "")
        for kind, size in largest_requests().items()
    }
    assert table("| request | at most |") == expected
