"""BGE-M3: texts to dense, sparse and ColBERT vectors, from one shared pool of models.

embedder    the public object
tokenizer   texts -> token ids
chunking    long documents -> chunks
blanks      long runs of blanks in a text
scheduling  who computes what, and when
engines     a batch of token ids -> vectors
model       BGE-M3 in torch
checkpoint  files of a model
vectors     the values that come out
errors      what can go wrong
cancellation  whether the caller of a request has gone
threads     the threads of blocking work, by kind
timings     where the time of a request goes
frozen_imports  imports without the garbage collector
openmp      how many threads multiply matrices, at most
product_descriptions  how many descriptions of products a CPU keeps
cpu_quota   the processors that the container allows

Importing this package imports neither torch nor a tokenizer; `Embedder.load` does. In a container with a CPU quota it
sets the number of OpenMP's threads (see `openmp`), unless torch, which reads it, was imported before. It bounds the
descriptions of products that a CPU keeps (see `product_descriptions`).
"""

import os as _os
import sys as _sys

from embedder.cancellation import Cancellation, check_cancelled
from embedder.checkpoint.find import DEFAULT_MODEL
from embedder.chunking import CHUNK_MIN_TOKENS, Chunk
from embedder.embedder import Embedder, ModelOptions, is_quick, most_tokens
from embedder.errors import (
    Cancelled,
    ConfigurationError,
    DeviceLost,
    FieldError,
    Internal,
    InvalidRequest,
    ModelFailure,
    NotFound,
    Overloaded,
    WorkerError,
    whereabouts,
)
from embedder.openmp import configure as _configure
from embedder.product_descriptions import bound_kept_descriptions as _bound_kept_descriptions
from embedder.scheduling.jobs import ResultObserver, ResultStream
from embedder.scheduling.pool import BatchReport
from embedder.scheduling.runner import Result
from embedder.scheduling.scheduler import Priority
from embedder.threads import (
    BODIES,
    PLANS,
    QUICK,
    QUICK_TEXT_MAX_CHARACTERS,
    Threads,
    in_own_thread,
    text_threads,
)
from embedder.timings import Timings, timed
from embedder.tokenizer import EncodedText, PlacedText, Vocabulary
from embedder.vectors import KINDS, ColbertType, Embedding, Kind, Outputs, SparseVector

__all__ = [
    "BODIES",
    "CHUNK_MIN_TOKENS",
    "DEFAULT_MODEL",
    "KINDS",
    "PLANS",
    "QUICK",
    "QUICK_TEXT_MAX_CHARACTERS",
    "BatchReport",
    "Cancellation",
    "Cancelled",
    "Chunk",
    "ColbertType",
    "ConfigurationError",
    "DeviceLost",
    "Embedder",
    "Embedding",
    "EncodedText",
    "FieldError",
    "Internal",
    "InvalidRequest",
    "Kind",
    "ModelFailure",
    "ModelOptions",
    "NotFound",
    "Outputs",
    "Overloaded",
    "PlacedText",
    "Priority",
    "Result",
    "ResultObserver",
    "ResultStream",
    "SparseVector",
    "Threads",
    "Timings",
    "Vocabulary",
    "WorkerError",
    "check_cancelled",
    "in_own_thread",
    "is_quick",
    "most_tokens",
    "text_threads",
    "timed",
    "whereabouts",
]

if "torch" not in _sys.modules:
    _configure(_os.environ)
_bound_kept_descriptions(_os.environ)
