"""The operations of a worker: they take request values, return frozen results and raise errors, without any JSON."""

from __future__ import annotations

from service.operations.collections import Collections, CountRequest, CountResult, DeleteRequest, DeleteResult
from service.operations.completion_values import CompletionProgress, CompletionRequest
from service.operations.embed import EmbedRequest, EmbedResult, LengthLimits, Role
from service.operations.explanation import ColbertMatch, HitExplanation, SparseMatch
from service.operations.ingest_values import (
    Chunking,
    IngestedText,
    IngestFailed,
    IngestProgress,
    IngestReport,
    IngestRequest,
    IngestResult,
    RejectedPoint,
)
from service.operations.inventory import CollectionsRequest, CollectionsResult, DescribedCollection
from service.operations.load_actions import LoadAction, LoadStep
from service.operations.load_values import LoadCounts, LoadEnd, LoadRequest
from service.operations.loads import Loads
from service.operations.model_check import ModelWarning
from service.operations.ongoing_load import OngoingLoad
from service.operations.operations import Operations
from service.operations.pair_scores import PairScores, Weights
from service.operations.piece_vectors import EncodedPiece, PieceVectors
from service.operations.points import PointsRequest, PointsResult, ReadPoint
from service.operations.reindex import Reindex
from service.operations.reindex_values import PreviousCollection, ReindexProgress, ReindexReport, ReindexRequest
from service.operations.rerank import RankedDocument, RerankRequest, RerankResult
from service.operations.score import ScoreRequest, ScoreResult
from service.operations.search import Like, SearchRequest, SearchResult
from service.operations.store_access import StoreState, open_store
from service.operations.text_pieces import Piece
from service.operations.vector_ingest import GivenPoint
from service.operations.vector_operations import VectorOperations, VectorSource

__all__ = [
    "Chunking",
    "ColbertMatch",
    "Collections",
    "CollectionsRequest",
    "CollectionsResult",
    "CompletionProgress",
    "CompletionRequest",
    "CountRequest",
    "CountResult",
    "DeleteRequest",
    "DeleteResult",
    "DescribedCollection",
    "EmbedRequest",
    "EmbedResult",
    "EncodedPiece",
    "GivenPoint",
    "HitExplanation",
    "IngestFailed",
    "IngestProgress",
    "IngestReport",
    "IngestRequest",
    "IngestResult",
    "IngestedText",
    "LengthLimits",
    "Like",
    "LoadAction",
    "LoadCounts",
    "LoadEnd",
    "LoadRequest",
    "LoadStep",
    "Loads",
    "ModelWarning",
    "OngoingLoad",
    "Operations",
    "PairScores",
    "Piece",
    "PieceVectors",
    "PointsRequest",
    "PointsResult",
    "PreviousCollection",
    "RankedDocument",
    "ReadPoint",
    "Reindex",
    "ReindexProgress",
    "ReindexReport",
    "ReindexRequest",
    "RejectedPoint",
    "RerankRequest",
    "RerankResult",
    "Role",
    "ScoreRequest",
    "ScoreResult",
    "SearchRequest",
    "SearchResult",
    "SparseMatch",
    "StoreState",
    "VectorOperations",
    "VectorSource",
    "Weights",
    "open_store",
]
