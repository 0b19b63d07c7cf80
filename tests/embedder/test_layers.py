"""Who may import whom, and what a start must not cost."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import embedder

PACKAGE = Path(embedder.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")

MAY_IMPORT = {
    "errors": set(),
    "vectors": set(),
    "batching": set(),
    "linear": {"errors"},
    "flash": set(),
    "transformer": {"engine", "flash", "linear"},
    "heads": {"linear"},
    "engine": {"vectors"},
    "checkpoint": {"errors"},
    "tensorfile": {"checkpoint", "errors"},
    "conversion": {"checkpoint", "tensorfile"},
    "weights": {"checkpoint", "conversion", "errors", "tensorfile"},
    "devices": {"calibration", "errors", "linear"},
    "tokenizer": {"checkpoint", "errors"},
    "chunking": {"errors", "tokenizer"},
    "calibration": {"engine", "linear", "vectors"},
    "encoder": {
        "checkpoint",
        "devices",
        "engine",
        "errors",
        "flash",
        "heads",
        "linear",
        "transformer",
        "vectors",
        "weights",
    },
    "reference": {"checkpoint", "devices", "engine", "errors", "vectors"},
    "stages": set(),
    "forward": {"engine", "errors", "tokenizer", "vectors"},
    "pool": {"batching", "engine", "errors", "forward", "tokenizer", "vectors"},
    "embedder": set(MODULES) - {"embedder", "bake"},
    "bake": {"checkpoint", "conversion", "errors"},
}
"""Within the package. Scheduling and values know nothing; the pool knows the seam, not the engines."""

OUTSIDERS = {
    "qdrant_sink",
    "service",
    "handler",
    "training",
    "corpus",
    "precision",
    "benchmarks",
    "qdrant_client",
    "qdrant_edge",
    "runpod",
}
HEAVY = {"torch", "transformers", "FlagEmbedding", "huggingface_hub", "safetensors"}
IMPORT_HEAVY_AT_ONCE = {
    "conversion",
    "devices",
    "encoder",
    "flash",
    "heads",
    "linear",
    "tensorfile",
    "transformer",
    "weights",
}
"""The modules that are the model itself."""


def imported(module: str, *, at_once: bool) -> set[str]:
    """Dotted names that a module imports: all of them, or those that importing the module imports at once."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    nodes = tree.body if at_once else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.update(
                f"embedder.{alias.name}" if node.module == "embedder" else str(node.module) for alias in node.names
            )
    return names


def loaded_after(code: str) -> set[str]:
    """Top-level modules in `sys.modules` of a fresh process that ran the code."""
    found = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return {name.partition(".")[0] for name in json.loads(found.stdout.splitlines()[-1])}


def test_every_module_has_its_place() -> None:
    """A new module of the embedder must say here what it may know."""
    assert sorted(MAY_IMPORT) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_it_may_know(module: str) -> None:
    """Dependencies within the package point one way."""
    inside = {name.split(".")[1] for name in imported(module, at_once=False) if name.startswith("embedder.")}
    assert inside <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", MODULES)
def test_the_embedder_knows_no_store_and_no_service(module: str) -> None:
    """The embedder can be used without Qdrant and RunPod."""
    assert not {name.partition(".")[0] for name in imported(module, at_once=False)} & OUTSIDERS


@pytest.mark.parametrize("module", MODULES)
def test_importing_is_cheap(module: str) -> None:
    """Torch and the model libraries are imported where a model is loaded, not where a module is named."""
    now = {name.partition(".")[0] for name in imported(module, at_once=True)} & HEAVY
    assert now <= ({"torch"} if module in IMPORT_HEAVY_AT_ONCE else set())


def test_only_the_reference_knows_flagembedding() -> None:
    """The library is an engine among engines: one file names it."""
    users = {
        module
        for module in MODULES
        if {name.partition(".")[0] for name in imported(module, at_once=False)} & {"FlagEmbedding", "transformers"}
    }
    assert users == {"reference"}


def test_values_errors_and_scheduling_need_no_torch() -> None:
    """What other packages and tools import of the embedder costs no model libraries."""
    loaded = loaded_after("import embedder.errors, embedder.vectors, embedder.batching")
    assert not loaded & (HEAVY | {"tokenizers"})


def test_the_facade_needs_no_torch_until_it_loads() -> None:
    """A worker can read its settings and refuse them before it has paid for torch."""
    assert not loaded_after("import embedder.embedder, embedder.pool, embedder.tokenizer") & HEAVY


def test_the_packed_engine_never_pays_for_flagembedding() -> None:
    """Embedding on a CPU imports neither FlagEmbedding (seconds), nor transformers, nor torch's compiler (one)."""
    code = """
import asyncio
from embedder.batching import Priority
from embedder.embedder import Embedder, ModelOptions
from embedder.vectors import Outputs
embedder = Embedder.load(ModelOptions("mini", device="cpu", token_budget=512))
asyncio.run(embedder.embed(["one text"], Outputs(), max_length=16, priority=Priority.QUERY))
embedder.close()
import sys
assert "torch._dynamo" not in sys.modules
"""
    loaded = loaded_after(code)
    assert "torch" in loaded
    assert not loaded & {"FlagEmbedding", "transformers", "sentence_transformers", "datasets", "peft"}
    assert not loaded & OUTSIDERS
