"""Store points and search them with qdrant-client alone: the worker only computes the vectors."""

import os
from typing import Any

import httpx
from qdrant_client import QdrantClient, models

WORKER = os.environ.get("WORKER_URL", "http://localhost:8000")
HEADERS = {"Authorization": f"Bearer {os.environ.get('WORKER_API_KEY', 'no key')}"}
COLLECTION = "example-qdrant-client"
TEXTS = [
    "rsync copies only the changed parts of files to another machine.",
    "PhotoRec recovers deleted files from memory cards.",
    "MariaDB is a server for relational databases.",
]


def embedded(texts: list[str], *, is_passage: bool) -> list[dict[str, Any]]:
    """The vectors of each text by the name of their kind, as Qdrant takes them."""
    request = {"texts": texts, "isPassage": is_passage}
    answer = httpx.post(f"{WORKER}/embed", json=request, headers=HEADERS, timeout=60)
    results = answer.raise_for_status().json()["results"]
    return [{kind: result[kind] for kind in ("dense", "sparse", "colbert")} for result in results]


client = QdrantClient(os.environ.get("QDRANT_URL", "http://localhost:6333"), api_key=os.environ.get("QDRANT_API_KEY"))
vectors = embedded(TEXTS, is_passage=True)
dense = models.VectorParams(size=len(vectors[0]["dense"]), distance=models.Distance.COSINE)
max_sim = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
colbert = dense.model_copy(update={"multivector_config": max_sim, "hnsw_config": models.HnswConfigDiff(m=0)})
if not client.collection_exists(COLLECTION):
    sparse = {"sparse": models.SparseVectorParams()}
    client.create_collection(COLLECTION, {"dense": dense, "colbert": colbert}, sparse_vectors_config=sparse)
points = [
    models.PointStruct(id=number, vector=vector, payload={"text": text})
    for number, (text, vector) in enumerate(zip(TEXTS, vectors, strict=True))
]
client.upsert(COLLECTION, points, wait=True)

(query,) = embedded(["send only what changed"], is_passage=False)
branches = [
    models.Prefetch(query=query["dense"], using="dense", limit=50),
    models.Prefetch(query=models.SparseVector(**query["sparse"]), using="sparse", limit=50),
]
hits = client.query_points(COLLECTION, prefetch=branches, query=query["colbert"], using="colbert", limit=2)
for hit in hits.points:
    print(f"{hit.score:.2f}", (hit.payload or {})["text"])
