"""JSON to values and back: the only place that knows field names, sizes of answers, codes and statuses."""

from __future__ import annotations

from service.wire.codec import Codec, Progress
from service.wire.errors import CODES, error_answer
from service.wire.instrumentation import error_reply
from service.wire.openai import openai_error
from service.wire.outcome import Answer

__all__ = ["CODES", "Answer", "Codec", "Progress", "error_answer", "error_reply", "openai_error"]
