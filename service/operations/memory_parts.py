"""The parts of the memory that the operations take, however many requests there are."""

from __future__ import annotations

from typing import Final

from qdrant_sink import PORTION_MAX_BYTES
from service.memory_plan import Part
from service.operations.store_access import CALLS_MAX, INGESTS_MAX, SENDER_THREADS
from service.settings import Settings

WAITING_TOKEN_BYTES: Final = 8
"""Memory of a token that waits for the model in bytes: its id, and its part of the batch."""

WORKING_THREADS: Final = 16
"""Threads that parse, tokenize, plan, encode and compute, rounded up."""

WORKING_THREAD_BYTES: Final = 1_500_000
"""Memory of such a thread in bytes: its stack, and the tokens of a portion of texts."""

WAITING_THREAD_BYTES: Final = 65_536
"""Memory of the stack of a thread that waits for the store, in bytes."""


def operations_parts(settings: Settings) -> tuple[Part, ...]:
    """The parts that the operations take."""
    return (
        Part("tokens that wait for the model", settings.queue_tokens, WAITING_TOKEN_BYTES, "QUEUE_TOKENS"),
        Part("threads that work", WORKING_THREADS, WORKING_THREAD_BYTES),
        Part("threads of the store", 2 * CALLS_MAX + INGESTS_MAX + SENDER_THREADS, WAITING_THREAD_BYTES),
        Part("points that are being read", CALLS_MAX, PORTION_MAX_BYTES),
    )
