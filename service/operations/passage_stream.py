"""A stream of passages that are embedded for stored points, as soon as the queue of the model has room for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event
from typing import Final

from embedder import Embedder, EncodedText, Kind, Outputs, Overloaded, Priority, ResultStream
from qdrant_sink import CollectionSchema

OVERLOADED_PAUSE_S: Final = 0.5
"""Pause before texts are embedded for which the queue of the model was full."""


def passage_stream(
    embedder: Embedder,
    texts: Sequence[EncodedText],
    kinds: Sequence[Kind],
    schema: CollectionSchema,
    *,
    stopping: Event,
    check_running: Callable[[], None],
) -> ResultStream:
    """Queue texts, and wait while the queue of the model is full.

    Args:
        embedder: the loaded model.
        texts: tokens of the texts, at most as many as `embedder.window`.
        kinds: kinds of vectors to compute.
        schema: schema of the collection that gets the vectors.
        stopping: event that ends the wait.
        check_running: callback after each wait, which raises to end it.
    """
    colbert = schema.colbert
    outputs = Outputs.of(tuple(kinds), "float32" if colbert is None else colbert.datatype)
    while True:
        try:
            return embedder.stream(texts, outputs, priority=Priority.PASSAGE)
        except Overloaded:
            stopping.wait(OVERLOADED_PAUSE_S)
            check_running()
