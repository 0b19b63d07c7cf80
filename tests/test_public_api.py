"""What each package offers, and that importing it costs next to nothing.

The public names of `embedder`, its packages and `qdrant_sink` are pinned beside their own tests.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]

LIBRARIES: Final = ("benchmarks", "corpus", "embedder", "precision", "qdrant_sink", "service", "training")
"""The top-level packages of the project."""

PUBLIC: Final[dict[str, str]] = {
    "corpus": """
        Passage Question passages questions
    """,
    "qdrant_sink.completing": """
        CompletionReport CompletionTally check_copyable completed_schema copied_schema kinds_lacking of_all_kinds
        of_any_lacking of_exactly_lacking
    """,
    "qdrant_sink.copying": """
        COPY_PAGE_POINTS COPY_WORKERS NAMED_MAX PAGE_POINTS VECTOR_KINDS CopyPaths PointCopy Round Rounds Scrolls
        SourceVectors UnfinishedPoint existing_part kept_indexes losses pages present_kinds reindexed_schema
        source_vectors vectors_by_kind
    """,
    "qdrant_sink.edge": """
        DiskSpace EdgeStore
    """,
    "qdrant_sink.searching": """
        OFFSET_MAX OVERSAMPLING PORTION_MAX_BYTES
        Admit BranchRank Explained Explanation Hit PartReader PartSizes Plan Rescoring RowMatch
        Search SearchOptions SearchPage Searchable TokenMatch check_kinds conform_query default_branches explain
        recommend run search_pages with_branches
    """,
    "qdrant_sink.server": """
        ServerStore
    """,
    "qdrant_sink.writing": """
        BATCH_MAX_BYTES BATCH_MAX_POINTS IN_FLIGHT_MAX Acknowledged Destination DocumentLocks Rejection
        Replacement VersionedCollections WriteReport Writer differing_points existing_ids missing_indices pooled
    """,
    "service.bulk": """
        BulkLoad LoadOptions LoadReport
    """,
    "qdrant_sink.loading": """
        BEAT_INTERVAL_S LEASE_S LOAD_ID LOAD_ID_RULE SHARDS_MAX SHARD_RULE Action Life LoadContent LoadRecord Records
        Shard ShardedLoad SignsOfLife Step Steps changes_of in_force is_load_id lacking_lines records_of sharded_loads
    """,
    "service.operations": """
        Chunking ColbertMatch Collections CollectionsRequest CollectionsResult CompletionProgress
        CompletionRequest CountRequest CountResult DeleteRequest DeleteResult DescribedCollection EmbedRequest
        EmbedResult EncodedPiece GivenPoint HitExplanation IngestFailed IngestProgress IngestReport
        IngestRequest IngestResult IngestedText LengthLimits Like LoadAction LoadCounts LoadEnd LoadRequest
        LoadStep Loads ModelWarning OngoingLoad Operations PairScores Piece PieceVectors PointsRequest
        PointsResult PreviousCollection RankedDocument ReadPoint Reindex ReindexProgress ReindexReport
        ReindexRequest RejectedPoint RerankRequest RerankResult Role ScoreRequest ScoreResult SearchRequest
        SearchResult SparseMatch StoreState VectorOperations VectorSource Weights open_store
    """,
    "service.planning": """
        CollectionSize PartSize Passages Plan Resources StoredColbert StoredDense StoredSparse StoredVectors
        collection_size plan
    """,
    "service.ray_data": """
        ActorPool LoadResult QdrantDatasink embed_dataset load model_source
    """,
    "service.wire": """
        CODES Answer Codec Progress error_answer error_form error_reply
    """,
}
"""The public names of each package that has any. Changing one is a decision, to be made here and in the changelog."""

ADAPTERS: Final = {"qdrant_sink.server": "qdrant_client", "qdrant_sink.edge": "qdrant_edge"}
"""The vendor package that each adapter may import. No adapter is imported before a store opens."""

HEAVY: Final = frozenset(
    {
        "FlagEmbedding",
        "fastapi",
        "grpc",
        "huggingface_hub",
        "prometheus_client",
        "pydantic",
        "qdrant_client",
        "qdrant_edge",
        "runpod",
        "safetensors",
        "starlette",
        "tokenizers",
        "torch",
        "transformers",
        "uvicorn",
    }
)
"""Libraries that take long to import."""

LIGHT: Final = frozenset({"prometheus_client", "pydantic"})
"""The heavy libraries that the service's packages may import, for validation and metrics."""


def packages(library: str) -> list[str]:
    """Return every package below the libraries."""
    path = importlib.import_module(library).__path__
    return [module.name for module in pkgutil.walk_packages(path, f"{library}.") if module.ispkg]


ALL_PACKAGES: Final = [name for library in LIBRARIES for name in (library, *packages(library))]


def offered(package: str) -> set[str]:
    """Return the public names that a package's `__init__.py` imports from the project or defines."""
    path = importlib.import_module(package).__file__
    assert path is not None
    names: set[str] = set()
    for node in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def heavy_after(statement: str) -> set[str]:
    """Return the heavy libraries loaded in a fresh process after the statement."""
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(HEAVY) & {name.partition(".")[0] for name in json.loads(done.stdout)}


@pytest.mark.parametrize("package", PUBLIC)
def test_the_public_names_of_a_package_are_these(package: str) -> None:
    """The public names of a package do not change between releases."""
    module = importlib.import_module(package)
    assert list(module.__all__) == PUBLIC[package].split()
    assert all(hasattr(module, name) for name in module.__all__)


def test_every_package_with_public_names_is_pinned() -> None:
    """The public names of every package are listed here or beside the tests of its library."""
    elsewhere = {"qdrant_sink", "embedder", *packages("embedder")}
    assert {name for name in ALL_PACKAGES if offered(name)} == set(PUBLIC) | elsewhere


@pytest.mark.parametrize("package", ALL_PACKAGES)
def test_every_package_lists_what_it_offers(package: str) -> None:
    """`__all__` has each public name of the package once; a package without names needs no list."""
    module = importlib.import_module(package)
    listed = list(getattr(module, "__all__", ()))
    assert len(listed) == len(set(listed))
    assert set(listed) == offered(package)
    assert module.__doc__


@pytest.mark.parametrize("package", ALL_PACKAGES)
def test_every_public_class_and_function_has_a_docstring(package: str) -> None:
    """Every public class and function has a written docstring, not one that a dataclass generates."""
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            documentation = value.__doc__ or ""
            assert documentation, name
            assert not documentation.startswith(f"{name}("), name


@pytest.mark.slow
def test_importing_the_service_is_cheap() -> None:
    """Importing any package of the service loads neither a model nor a platform SDK."""
    assert heavy_after(f"import service, {', '.join(packages('service'))}") <= LIGHT


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_costs_its_own_vendor_alone(adapter: str) -> None:
    """Importing one store adapter loads neither the other vendor's client nor a model."""
    others = HEAVY - {"grpc", "pydantic", ADAPTERS[adapter]}
    heavy = heavy_after(f"import {adapter}")
    assert ADAPTERS[adapter] in heavy
    assert not heavy & others


def test_the_handler_costs_nothing_until_it_serves() -> None:
    """Importing the handler loads no heavy library."""
    assert not heavy_after("import handler")
