"""The sink costs nothing until a store is opened, knows nothing of models, and says what it offers."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import qdrant_sink

ROOT = Path(__file__).parents[2]
SINK = ROOT / "qdrant_sink"
CLIENTS = {"server": {"qdrant_client", "grpc", "tenacity"}, "edge": {"qdrant_edge"}}
"""What the modules of a room may import beside numpy."""
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SINK.rglob("*.py"))
}


def _room(module: str) -> str:
    return [*module.split("."), ""][1]


def _imported(path: Path) -> set[str]:
    """Modules that a file imports anywhere; of `from a import b` that is `a.b` if that is a module of the sink."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= named & MODULES.keys() or {node.module}
    return imported


def test_the_public_names_are_these() -> None:
    """What others build on does not come or go unnoticed."""
    assert sorted(qdrant_sink.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(qdrant_sink, name) is not None


@pytest.mark.parametrize("room", ["searching", "writing", "server", "edge"])
def test_every_room_names_what_it_offers(room: str) -> None:
    """The names of a room exist."""
    package = import_module(f"qdrant_sink.{room}")
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_importing_it_loads_no_client_and_no_model() -> None:
    """All that is no adapter is importable where there is only numpy: conformance, searching, writing and so on."""
    pure = [module for module in MODULES if _room(module) not in CLIENTS]
    script = f"""
import sys
for name in {pure!r}:
    __import__(name)
heavy = {{"torch", "qdrant_client", "qdrant_edge", "grpc", "pydantic", "tenacity", "transformers"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports_only_what_is_its_own(module: str) -> None:
    """A vendor is known to its adapter alone, and of the embedder only the values and the errors."""
    imported = _imported(MODULES[module])
    ours = {name for name in imported if name.split(".")[0] in ("embedder", "service")}
    assert ours <= {"embedder.vectors", "embedder.errors"}
    foreign = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) - {"qdrant_sink", "embedder"}
    assert foreign <= {"numpy"} | CLIENTS.get(_room(module), set())
    if _room(module) in CLIENTS:
        other_rooms = {name for name in imported if _room(name) in {"searching", "writing", *CLIENTS} - {_room(module)}}
        assert other_rooms <= {"qdrant_sink.searching.plan"}, "an adapter knows plans, and calls nothing above the seam"


def test_no_module_imports_itself_in_a_circle() -> None:
    """Neither modules nor rooms depend on each other both ways."""
    rooms = defaultdict(set)
    for module, path in MODULES.items():
        for name in _imported(path) & MODULES.keys():
            rooms[_room(module) or "qdrant_sink"].add(_room(name) or "qdrant_sink")
    for room, others in rooms.items():
        others.discard(room)
    rooms.pop("qdrant_sink")  # its public names come from everywhere
    rooms.pop("open")  # imports the adapters when it is called
    assert list(TopologicalSorter(rooms).static_order())
    modules = {
        module: _imported(path) & MODULES.keys() for module, path in MODULES.items() if path.name != "__init__.py"
    }
    assert list(TopologicalSorter(modules).static_order())


PUBLIC = [
    "ANYWHERE",
    "BATCH_MAX_POINTS",
    "COLLECTION_NAME",
    "GROUP_KEY",
    "INTEGER_ID_MAX",
    "NAMES",
    "OVERSAMPLING",
    "AccessDenied",
    "BranchRank",
    "Catalogue",
    "ColbertSchema",
    "CollectionSchema",
    "Datatype",
    "DenseSchema",
    "Difference",
    "Distance",
    "DocumentLocks",
    "Draft",
    "DuplicateId",
    "Explained",
    "Explanation",
    "Filter",
    "Hit",
    "IndexType",
    "Layout",
    "NothingTaken",
    "PayloadKeys",
    "Placement",
    "Plan",
    "Point",
    "PointId",
    "Quantization",
    "Refusal",
    "RefusalCode",
    "Rejection",
    "Rescoring",
    "RowMatch",
    "SchemaMismatch",
    "Search",
    "SearchOptions",
    "SparseSchema",
    "Store",
    "StoreError",
    "StoreRejected",
    "StoreUnavailable",
    "Stored",
    "TokenMatch",
    "VectorNames",
    "Vectors",
    "WithPayload",
    "WriteReport",
    "Writer",
    "check_collection",
    "check_filter",
    "chunk_id",
    "claims",
    "conform",
    "conform_payload",
    "conform_query",
    "delete_stale_chunks",
    "existing_ids",
    "explain",
    "is_derived",
    "laid_out",
    "matches_all",
    "open_edge",
    "open_server",
    "point_id",
    "recommend",
    "rows_max",
    "run",
    "text_id",
    "text_key_of",
    "text_of",
    "too_many_rows",
]
