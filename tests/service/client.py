"""A client of the operations, which sends a job's input and reads the answer from strict JSON."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from service.operations import Operations
from service.wire import Codec, Progress

ENVIRONMENT: Final = {"MODEL_ID": "mini", "GPU_DEVICE": "cpu", "DTYPE": "float32", "TOKEN_BUDGET": "4096"}
"""Settings of every worker under test. With a fixed token budget, the start needs no calibration."""

CODES: Final = frozenset(
    {
        "invalid_request",
        "not_found",
        "overloaded",
        "response_too_large",
        "model_failure",
        "store_unavailable",
        "store_rejected",
        "schema_mismatch",
        "duplicate_id",
        "superseded",
        "cancelled",
        "internal",
    }
)
"""All values of `error_code`, as docs/errors.md lists them."""

PATIENCE: Final = 30.0
"""Timeout in seconds of tests that hang."""

Json = dict[str, Any]


class Client:
    """Sends inputs to operations and reads the answers back from strict JSON."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        self._codec = Codec(operations)

    def __call__(self, raw: object, progress: Progress | None = None) -> Json:
        """Answer one input in a new event loop."""
        return asyncio.run(self.answer(raw, progress))

    async def answer(self, raw: object, progress: Progress | None = None) -> Json:
        """Answer one input in the event loop of the caller."""
        return read((await self._codec.answer(raw, progress)).body)

    async def job(self, raw: object) -> Any:
        """Answer one input in the form of the queue."""
        return await self._codec.job(raw)

    def good(self, raw: object) -> Json:
        """Answer one input, and check that the answer is not an error."""
        answer = self(raw)
        assert "error" not in answer, answer
        return answer

    def error(self, raw: object, code: str) -> Json:
        """Answer one input, and check that the answer is a valid error with this code."""
        answer = self(raw)
        assert_error(answer)
        assert answer["error_code"] == code, answer
        return answer

    def together(self, inputs: Sequence[object]) -> list[Json]:
        """Answer several inputs concurrently."""

        async def gathered() -> list[Json]:
            return await asyncio.gather(*map(self.answer, inputs))

        return asyncio.run(gathered())


def read(body: bytes) -> Json:
    """Parse strict JSON; raises ValueError for NaN and Infinity."""
    answer: Json = json.loads(body.decode("utf-8"), parse_constant=_refuse)
    return answer


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def unpacked(block: Mapping[str, Any]) -> NDArray[Any]:
    """The array of a `{"shape", "dtype", "data"}` block, read as docs/requests.md says: little-endian, row by row."""
    little_endian = {"float32": "<f4", "float16": "<f2"}[block["dtype"]]
    return np.frombuffer(base64.b64decode(block["data"]), dtype=little_endian).reshape(block["shape"])


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that other threads fulfil, with a timeout."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - no thread of the code under test would set an event of ours
            await asyncio.sleep(0.001)


def assert_error(answer: Json) -> None:
    """Check that an answer has the four keys of an error with values of the right types."""
    assert set(answer) == {"error", "error_code", "retryable", "details"}, answer
    assert isinstance(answer["error"], str)
    assert answer["error"]
    assert answer["error_code"] in CODES
    assert isinstance(answer["retryable"], bool)
    assert isinstance(answer["details"], dict)
