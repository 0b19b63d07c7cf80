"""A caller of the operations: a job's input in, the answer out, as it would read it from the wire."""

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
"""Settings of every worker under test; with a given budget nothing is measured at start."""

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
        "cancelled",
        "internal",
    }
)
"""All values of `error_code`, as docs/errors.md lists them."""

PATIENCE: Final = 30.0
"""Seconds after which a test that hangs fails. Nothing is measured by it."""

Json = dict[str, Any]


class Client:
    """Sends inputs to operations and reads the answers back from strict JSON."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        self._codec = Codec(operations)

    def __call__(self, raw: object, progress: Progress | None = None) -> Json:
        """The answer to one input, from an event loop of its own."""
        return asyncio.run(self.answer(raw, progress))

    async def answer(self, raw: object, progress: Progress | None = None) -> Json:
        """The answer to one input, in the event loop of the caller."""
        return read((await self._codec.answer(raw, progress)).body)

    async def job(self, raw: object) -> Any:
        """The answer to one input in the form of the queue."""
        return await self._codec.job(raw)

    def good(self, raw: object) -> Json:
        """As a call, where the answer must not be an error."""
        answer = self(raw)
        assert "error" not in answer, answer
        return answer

    def error(self, raw: object, code: str) -> Json:
        """As a call, where the answer must be the error of this code; its shape is checked."""
        answer = self(raw)
        assert_error(answer)
        assert answer["error_code"] == code, answer
        return answer

    def together(self, inputs: Sequence[object]) -> list[Json]:
        """The answers to inputs that are sent at the same time."""

        async def all_at_once() -> list[Json]:
            return await asyncio.gather(*map(self.answer, inputs))

        return asyncio.run(all_at_once())


def read(body: bytes) -> Json:
    """What a client reads; raises ValueError for what strict JSON has no form for."""
    answer: Json = json.loads(body.decode("utf-8"), parse_constant=_refuse)
    return answer


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def unpacked(block: Mapping[str, Any]) -> NDArray[Any]:
    """The array of a `{"shape", "dtype", "data"}` block, read as docs/requests.md says: little-endian, row by row."""
    little_endian = {"float32": "<f4", "float16": "<f2"}[block["dtype"]]
    return np.frombuffer(base64.b64decode(block["data"]), dtype=little_endian).reshape(block["shape"])


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other threads bring about; a test that hangs fails."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - no thread of the code under test would set an event of ours
            await asyncio.sleep(0.001)


def assert_error(answer: Json) -> None:
    """The answer has the four keys of an error, each of its type."""
    assert set(answer) == {"error", "error_code", "retryable", "details"}, answer
    assert isinstance(answer["error"], str)
    assert answer["error"]
    assert answer["error_code"] in CODES
    assert isinstance(answer["retryable"], bool)
    assert isinstance(answer["details"], dict)
