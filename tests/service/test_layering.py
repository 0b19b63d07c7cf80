"""Who may import whom, read from the source: doors -> service -> {embedder, qdrant_sink} -> values -> errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"handler", "service", "embedder", "qdrant_sink", "corpus", "precision", "benchmarks", "tests", "training"}
MODELS = {"torch", "transformers", "FlagEmbedding", "safetensors", "tokenizers", "huggingface_hub"}
STORES = {"qdrant_client", "qdrant_edge", "grpc"}


def modules(package: str) -> list[str]:
    """The modules of a package, as paths from the root."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / package).glob("*.py"))


def imports(module: str) -> set[str]:
    """Every module that a file imports, wherever in it, except for the type checker alone."""
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    return set(_imported(tree))


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        yield node.module or ""
    for child in ast.iter_child_nodes(node):
        yield from _imported(child)


def packages(module: str) -> set[str]:
    """The top-level packages that a file imports."""
    return {name.partition(".")[0] for name in imports(module)}


def test_the_handler_knows_only_the_service() -> None:
    """The RunPod adapter is thin: it reaches everything through the operations."""
    assert packages("handler.py") & OURS == {"service"}
    assert not packages("handler.py") & (MODELS | STORES | {"runpod"})


@pytest.mark.parametrize("module", modules("service"))
def test_the_service_composes_and_computes_nothing(module: str) -> None:
    """It knows the embedder and the sink, and none of the libraries below them."""
    found = packages(module)
    assert found & OURS <= {"service", "embedder", "qdrant_sink", "corpus"}
    assert not found & (MODELS | STORES)
    assert "runpod" not in found or module == "service/worker.py"
    assert "corpus" not in found or module == "service/demo.py"


@pytest.mark.parametrize("module", modules("embedder"))
def test_the_embedder_knows_nothing_of_qdrant_or_runpod(module: str) -> None:
    """It can be used without a store and without a worker."""
    found = packages(module)
    assert found & OURS <= {"embedder"}
    assert not found & (STORES | {"runpod", "pydantic", "pydantic_settings"})


@pytest.mark.parametrize("module", modules("qdrant_sink"))
def test_the_sink_knows_only_values_and_errors_of_the_embedder(module: str) -> None:
    """It never imports a model, nor anything that imports one, nor the service."""
    found = imports(module)
    ours = {name for name in found if name.partition(".")[0] in OURS}
    assert {name for name in ours if not name.startswith("qdrant_sink")} <= {"embedder.errors", "embedder.vectors"}
    assert not packages(module) & (MODELS | {"runpod", "pydantic", "pydantic_settings"})


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("embedder/errors.py", set()),
        ("embedder/vectors.py", {"numpy"}),
        ("embedder/batching.py", set()),
        ("service/concurrency.py", set()),
        ("qdrant_sink/store.py", {"embedder", "qdrant_sink"}),
        ("qdrant_sink/search.py", {"numpy", "embedder", "qdrant_sink"}),
        ("qdrant_sink/grouping.py", {"numpy", "embedder", "qdrant_sink"}),
        ("qdrant_sink/examples.py", {"numpy", "embedder", "qdrant_sink"}),
        ("qdrant_sink/conformance.py", {"numpy", "embedder", "qdrant_sink"}),
    ],
)
def test_values_and_plans_are_pure(module: str, allowed: set[str]) -> None:
    """What decides without computing needs nothing installed but what is named here."""
    import sys

    assert packages(module) - set(sys.stdlib_module_names) <= allowed


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        (
            "qdrant_edge",
            {f"qdrant_sink/edge{part}.py" for part in ("", "_collection", "_filter", "_models", "_schema")},
        ),
        ("FlagEmbedding", {"embedder/reference.py"}),
        ("semantic_text_splitter", {"embedder/chunking.py"}),
        ("runpod", {"service/worker.py"}),
    ],
)
def test_a_vendor_stops_at_its_adapter(library: str, owners: set[str]) -> None:
    """One place to change when a library changes."""
    everything = [*modules("service"), *modules("embedder"), *modules("qdrant_sink"), "handler.py"]
    assert {module for module in everything if library in packages(module)} == owners
