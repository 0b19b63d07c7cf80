"""The public names of the package and the cost of importing it. pyproject.toml holds the import contracts."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import embedder

ROOT = Path(embedder.__file__).parents[1]
PACKAGES = {
    "embedder.checkpoint": {
        "DEFAULT_MODEL",
        "DEFAULT_REVISION",
        "MINI",
        "VectorSizes",
        "EncoderConfig",
        "find_checkpoint",
        "find_tokenizer",
        "revision_of",
        "vector_sizes",
    },
    "embedder.engines": {
        *("BlockingEngine", "EncodedBatch", "Engine", "PendingBatch", "ReadyBatch", "SparseBatch", "TokenBatch"),
        *("YieldPoint", "offsets_of"),
    },
    "embedder.model": {"Model", "Packing", "PieceSizes", "load_model"},
    "embedder.scheduling": {"BatchReport", "ModelPool", "Observer", "Priority", "Result", "ResultStream"},
}
PUBLIC = {
    *("Embedder", "ModelOptions", "ResultStream", "Result", "Priority", "BatchReport"),
    *("Embedding", "SparseVector", "Outputs", "Kind", "KINDS", "ColbertType"),
    *("EncodedText", "PlacedText", "Vocabulary", "Chunk", "CHUNK_MIN_TOKENS", "DEFAULT_MODEL", "Timings", "timed"),
    *("WorkerError", "FieldError", "InvalidRequest", "NotFound", "Overloaded", "ModelFailure", "DeviceLost"),
    *("Cancelled", "Internal", "ConfigurationError", "whereabouts"),
    *("Cancellation", "ResultObserver", "check_cancelled", "is_quick", "most_tokens"),
    *("Threads", "QUICK", "PLANS", "BODIES", "QUICK_TEXT_MAX_CHARACTERS"),
    *("text_threads", "in_own_thread"),
}
HEAVY = {"torch", "transformers", "FlagEmbedding", "huggingface_hub", "safetensors", "tokenizers"}
OUTSIDERS = {"qdrant_sink", "service", "qdrant_client", "qdrant_edge", "runpod"}


def loaded_after(code: str) -> set[str]:
    """Return the top-level modules in `sys.modules` of a fresh process that has run the code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_the_public_names_are_a_promise() -> None:
    """The names that `from embedder import ...` offers exist and do not change."""
    assert set(embedder.__all__) == PUBLIC
    assert len(embedder.__all__) == len(PUBLIC)
    for name in PUBLIC:
        assert getattr(embedder, name) is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_names_what_it_offers(package: str) -> None:
    """Each package lists its public names."""
    module = __import__(package, fromlist=["__all__"])
    assert set(module.__all__) == PACKAGES[package]
    assert all(hasattr(module, name) for name in PACKAGES[package])


def test_no_package_is_forgotten() -> None:
    """Every package is listed in this test with its public names."""
    packages = {info.name for info in pkgutil.iter_modules(embedder.__path__, "embedder.") if info.ispkg}
    assert packages == PACKAGES.keys()


def test_importing_is_cheap() -> None:
    """A worker can read its settings and refuse them before it has paid for torch, and so can every other tool.

    Torch, the tokenizers and the hub's client are imported where a model is loaded, not where a module is named.
    """
    names = "embedder, embedder.checkpoint, embedder.engines, embedder.scheduling, embedder.vectors"
    assert not loaded_after(f"import {names}") & (HEAVY | OUTSIDERS)


@pytest.mark.slow
def test_the_packed_engine_never_pays_for_flagembedding() -> None:
    """Embedding on a CPU imports neither FlagEmbedding (seconds), nor transformers, torch's compiler (one), Triton."""
    code = """
import asyncio
from embedder import Embedder, ModelOptions, Outputs, Priority
embedder = Embedder.load(ModelOptions("mini", device="cpu", token_budget=512))
asyncio.run(embedder.embed(["one text"], Outputs(), max_length=16, priority=Priority.QUERY))
embedder.close()
import sys
assert "torch._dynamo" not in sys.modules
"""
    loaded = loaded_after(code)
    assert "torch" in loaded
    assert not loaded & {"FlagEmbedding", "transformers", "sentence_transformers", "datasets", "peft", "triton"}
    assert not loaded & OUTSIDERS
