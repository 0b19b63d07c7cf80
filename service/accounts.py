"""What is counted and timed of every request, around its answer, whatever the operation and the door are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from pydantic import BaseModel, ConfigDict

from embedder.errors import Cancelled, InvalidRequest, ResponseTooLarge
from embedder.stages import Stages
from service.metrics import Metrics
from service.requests import request_type, validated
from service.responses import Json, check_size, error_answer


class _Timings(BaseModel):
    model_config = ConfigDict(strict=True)

    timings: bool


class Accounts:
    """Keeps the metrics, and adds timings to the answers that are asked for them.

    Args:
        metrics: what is counted.
        max_bytes: of an answer.
    """

    def __init__(self, metrics: Metrics, max_bytes: int) -> None:
        self._metrics = metrics
        self._max_bytes = max_bytes

    async def answered(self, raw: object, answer: Callable[[object], Awaitable[Json]]) -> Json:
        """What `answer` says of the request, which it gets without `timings`."""
        stages = Stages()
        started = time.perf_counter()
        operation = operation_name(raw)
        try:
            request, timed = split_timings(raw)
            with stages.current():
                told = await answer(request)
        except InvalidRequest as error:
            told, timed = error_answer(error), False
        except asyncio.CancelledError:
            cancelled = {"error_code": Cancelled.code}
            self._metrics.answered(operation, cancelled, stages.seconds, time.perf_counter() - started)
            raise
        seconds = time.perf_counter() - started
        self._metrics.answered(operation, told, stages.seconds, seconds)
        if timed and "error" not in told:
            return await asyncio.to_thread(self._timed, told, {**stages.seconds, "total": seconds})
        return told

    def _timed(self, answer: Json, seconds: Mapping[str, float]) -> Json:
        """The answer with its timings, unless these would make it too large: what was done stays done."""
        timed = {**answer, "timings": {name: round(spent, 6) for name, spent in seconds.items()}}
        try:
            return check_size(timed, self._max_bytes, remedy="")
        except ResponseTooLarge:
            return answer


def operation_name(raw: object) -> str:
    """The operation of a job's input as a word of a fixed set: `openai`, and `unknown` where there is none."""
    if not isinstance(raw, dict):
        return "unknown"
    if "openai_route" in raw:
        return "openai"
    operation = raw.get("operation", "embed")
    return operation if isinstance(operation, str) and request_type(operation) is not None else "unknown"


def split_timings(raw: object) -> tuple[object, bool]:
    """A job's input without `timings`, which every operation of ours takes, and whether it was true.

    Raises:
        InvalidRequest: it is no boolean.
    """
    if not isinstance(raw, dict) or "timings" not in raw or "openai_route" in raw:
        return raw, False
    wanted = validated(_Timings, {"timings": raw["timings"]}).timings
    return {key: value for key, value in raw.items() if key != "timings"}, wanted
