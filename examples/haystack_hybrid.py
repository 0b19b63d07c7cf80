"""Hybrid search and rerank with Haystack: one component computes dense and sparse vectors with one request.

pip install './clients/python[haystack]'
"""

import os

from bge_m3_qdrant_client.haystack import BGEM3DocumentEmbedder, BGEM3Ranker, BGEM3TextEmbedder
from haystack import Document, Pipeline
from haystack.document_stores.types import DuplicatePolicy
from haystack.utils import Secret
from haystack_integrations.components.retrievers.qdrant import QdrantHybridRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

TEXTS = [
    "rsync copies only the changed parts of files to another machine.",
    "PhotoRec recovers deleted files from memory cards.",
    "MariaDB is a server for relational databases.",
]
QUERY = "send only what changed"

url, key = os.environ.get("WORKER_URL", "http://localhost:8000"), Secret.from_env_var("WORKER_API_KEY", strict=False)
documents = BGEM3DocumentEmbedder(url, key).run([Document(content=text) for text in TEXTS])["documents"]
store = QdrantDocumentStore(
    url=os.environ.get("QDRANT_URL", "http://localhost:6333"),
    api_key=Secret.from_env_var("QDRANT_API_KEY", strict=False),
    index="example-haystack",
    embedding_dim=len(documents[0].embedding or []),
    use_sparse_embeddings=True,
    progress_bar=False,
)
store.write_documents(documents, DuplicatePolicy.OVERWRITE)

pipeline = Pipeline()
pipeline.add_component("embedder", BGEM3TextEmbedder(url, key))
pipeline.add_component("retriever", QdrantHybridRetriever(store, top_k=3))
pipeline.add_component("ranker", BGEM3Ranker(url, key, top_k=2))
pipeline.connect("embedder.embedding", "retriever.query_embedding")
pipeline.connect("embedder.sparse_embedding", "retriever.query_sparse_embedding")
pipeline.connect("retriever.documents", "ranker.documents")
for document in pipeline.run({"embedder": {"text": QUERY}, "ranker": {"query": QUERY}})["ranker"]["documents"]:
    print(f"{document.score:.2f}", document.content)
