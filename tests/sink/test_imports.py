"""Public names and imports of the sink. The contracts in pyproject.toml check the layering."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import qdrant_sink

ROOT = Path(__file__).parents[2]
SINK = ROOT / "qdrant_sink"
ADAPTERS = ("qdrant_sink.server", "qdrant_sink.edge")
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(SINK.rglob("*.py"))
]


def test_the_public_names_are_these() -> None:
    """The public API does not change unintentionally."""
    assert sorted(qdrant_sink.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(qdrant_sink, name) is not None


@pytest.mark.parametrize("subpackage", ["searching", "writing", "server", "edge"])
def test_public_names_of_subpackages_exist(subpackage: str) -> None:
    """Every name in `__all__` of a subpackage exists."""
    package = import_module(f"qdrant_sink.{subpackage}")
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_importing_it_loads_no_client_and_no_model() -> None:
    """Modules other than the adapters do not import a client library or a model library."""
    pure = [module for module in MODULES if not module.startswith(ADAPTERS)]
    script = f"""
import sys
for name in {pure!r}:
    __import__(name)
heavy = {{"torch", "qdrant_client", "qdrant_edge", "grpc", "pydantic", "tenacity", "transformers"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
    "IndexRequired",
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
