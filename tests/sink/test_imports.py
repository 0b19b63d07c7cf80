"""The sink costs nothing until a store is opened, and knows nothing of models."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SINK = ROOT / "qdrant_sink"
CLIENTS = {
    "server": {"qdrant_client", "grpc", "tenacity"},
    "server_collections": {"qdrant_client"},
    "client_schema": {"qdrant_client"},
    "client_models": {"qdrant_client"},
    "protobuf": {"qdrant_client"},
    "faults": {"qdrant_client", "grpc"},
    "edge": {"qdrant_edge"},
    "edge_collection": {"qdrant_edge"},
    "edge_models": {"qdrant_edge"},
    "edge_schema": {"qdrant_edge"},
    "edge_filter": {"qdrant_edge"},
}
PURE = sorted({path.stem for path in SINK.glob("*.py")} - CLIENTS.keys() - {"__init__"})


def test_pure_modules_load_no_client_and_no_model() -> None:
    """All that is no adapter is importable where there is only numpy: conformance, points, search, writer and so on."""
    script = f"""
import sys
for name in {PURE!r}:
    __import__("qdrant_sink." + name)
heavy = {{"torch", "qdrant_client", "qdrant_edge", "grpc", "pydantic", "tenacity", "transformers"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted(SINK.glob("*.py")), ids=lambda path: path.stem)
def test_every_module_imports_only_what_is_its_own(path: Path) -> None:
    """A vendor is known to its adapter alone, and of the embedder only the values and the errors."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module)
    ours = {name for name in imported if name.split(".")[0] in ("embedder", "service")}
    assert ours <= {"embedder.vectors", "embedder.errors"}
    foreign = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) - {"qdrant_sink", "embedder"}
    assert foreign <= {"numpy"} | CLIENTS.get(path.stem, set())
