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
    "BATCH_MAX_BYTES",
    "IN_FLIGHT_MAX",
    "PORTION_MAX_BYTES",
    "ANYWHERE",
    "Admit",
    "BATCH_MAX_POINTS",
    "COLLECTION_NAME",
    "COLLECTION_NAME_RULE",
    "DOCUMENT_CHUNKS",
    "DOCUMENT_KEY",
    "DOCUMENT_VERSION",
    "INTEGER_ID_MAX",
    "MODEL_COSINE_MIN",
    "NAMES",
    "OFFSET_MAX",
    "ORDERED_TYPES",
    "OVERSAMPLING",
    "RELATED_COSINE_MIN",
    "TEXT_KEY",
    "AccessDenied",
    "Acknowledged",
    "BranchRank",
    "CallAbandoned",
    "Catalogue",
    "ColbertSchema",
    "CollectionChanged",
    "CollectionSchema",
    "CollectionState",
    "ComparedText",
    "Datatype",
    "DenseSchema",
    "Difference",
    "Disagreement",
    "Distance",
    "Document",
    "DocumentLocks",
    "DocumentPaths",
    "Draft",
    "DuplicateId",
    "EmbeddedText",
    "Explained",
    "Explanation",
    "FeatureMissing",
    "Filter",
    "Hit",
    "IndexRequired",
    "IndexType",
    "Layout",
    "LimitExceeded",
    "ModelIdentity",
    "ModelMismatch",
    "ModelVerdict",
    "NothingTaken",
    "OrderPosition",
    "OrderValue",
    "PartReader",
    "PartSizes",
    "PayloadForm",
    "PayloadIndex",
    "PayloadKeys",
    "Placement",
    "Plan",
    "Point",
    "PointId",
    "PointOrder",
    "Quantization",
    "Recognised",
    "Refusal",
    "RefusalCode",
    "Rejection",
    "Replacement",
    "Rescoring",
    "RowMatch",
    "SchemaMismatch",
    "Search",
    "SearchOptions",
    "SearchPage",
    "ServerAddress",
    "ServerUrl",
    "SharedCalls",
    "SparseSchema",
    "Store",
    "StoreError",
    "StoreRejected",
    "StoreUnavailable",
    "Stored",
    "Superseded",
    "Taken",
    "TokenMatch",
    "TransportChoice",
    "VectorDescription",
    "VectorNames",
    "Vectors",
    "VersionedCollections",
    "WithPayload",
    "WriteReport",
    "Writer",
    "canonical_path",
    "canonical_selection_path",
    "canonical_value_path",
    "check_collection",
    "check_server",
    "check_kinds",
    "chunk_id",
    "claims",
    "compare_vectors",
    "conform",
    "conform_id",
    "conform_payload",
    "conform_query",
    "default_branches",
    "default_names",
    "differing_points",
    "embedded_text",
    "existing_ids",
    "explain",
    "is_collection_name",
    "is_derived",
    "is_exact",
    "kind_of",
    "laid_out",
    "matches_all",
    "missing_indices",
    "new_version",
    "open_edge",
    "open_server",
    "ordered_page",
    "parse_date",
    "parse_filter",
    "path_of_key",
    "point_id",
    "pooled",
    "recommend",
    "rows_max",
    "run",
    "sample_points",
    "search_pages",
    "text_id",
    "text_key_of",
    "text_of",
    "too_many_rows",
    "with_branches",
]
