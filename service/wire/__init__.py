"""Conversion between JSON and values. Field names, answer sizes, error codes and statuses are defined only here."""

from __future__ import annotations

from service.wire.codec import Codec, Progress, error_form
from service.wire.errors import CODES, error_answer
from service.wire.instrumentation import error_reply
from service.wire.outcome import Answer

__all__ = ["CODES", "Answer", "Codec", "Progress", "error_answer", "error_form", "error_reply"]
