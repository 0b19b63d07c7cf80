"""Client of the BGE-M3 worker for Qdrant: `Client` and `AsyncClient`, over HTTP and over a RunPod endpoint.

from bge_m3_qdrant_client import Client

with Client("http://localhost:8000") as client:
    client.ingest(["rsync copies only the changed parts of files."], collection="notes")
    for hit in client.search("send only what changed", collection="notes").results[0].hits:
        print(hit.score, hit.payload)
"""

from bge_m3_qdrant_client.answers import (
    CollectionAnswer,
    CollectionsAnswer,
    CountAnswer,
    DeleteAnswer,
    EmbedAnswer,
    HitAnswer,
    HitsAnswer,
    LoadAnswer,
    ReadPointAnswer,
    ReadPointsAnswer,
    RejectedAnswer,
    RerankAnswer,
    ScoreAnswer,
    SearchAnswer,
    SparseAnswer,
    TextAnswer,
)
from bge_m3_qdrant_client.async_client import AsyncClient
from bge_m3_qdrant_client.errors import (
    Cancelled,
    ClientError,
    ConnectionFailed,
    DuplicateId,
    Internal,
    InvalidOption,
    InvalidRequest,
    JobFailed,
    ModelFailure,
    NotFound,
    Overloaded,
    ResponseTooLarge,
    SchemaMismatch,
    StoreRejected,
    StoreUnavailable,
    Superseded,
    TimedOut,
    TransportError,
    Unauthorized,
    UnexpectedAnswer,
    WorkerError,
)
from bge_m3_qdrant_client.exchange import Target
from bge_m3_qdrant_client.http_target import HttpTarget
from bge_m3_qdrant_client.report import Health, IngestReport, Progress
from bge_m3_qdrant_client.runpod_target import RunPodTarget
from bge_m3_qdrant_client.sync_client import Client
from bge_m3_qdrant_client.version import __version__

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "ClientError",
    "CollectionAnswer",
    "CollectionsAnswer",
    "ConnectionFailed",
    "CountAnswer",
    "DeleteAnswer",
    "DuplicateId",
    "EmbedAnswer",
    "Health",
    "HitAnswer",
    "HitsAnswer",
    "HttpTarget",
    "IngestReport",
    "Internal",
    "InvalidOption",
    "InvalidRequest",
    "JobFailed",
    "LoadAnswer",
    "ModelFailure",
    "NotFound",
    "Overloaded",
    "Progress",
    "ReadPointAnswer",
    "ReadPointsAnswer",
    "RejectedAnswer",
    "RerankAnswer",
    "ResponseTooLarge",
    "RunPodTarget",
    "SchemaMismatch",
    "ScoreAnswer",
    "SearchAnswer",
    "SparseAnswer",
    "StoreRejected",
    "StoreUnavailable",
    "Superseded",
    "Target",
    "TextAnswer",
    "TimedOut",
    "TransportError",
    "Unauthorized",
    "UnexpectedAnswer",
    "WorkerError",
    "__version__",
]
