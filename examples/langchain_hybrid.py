"""Hybrid search and rerank with LangChain: one request of a batch computes its dense and its sparse vectors.

pip install './clients/python[langchain]'
"""

import os

from bge_m3_qdrant_client import Client
from bge_m3_qdrant_client.langchain import BGEM3Rerank, BGEM3Vectors
from langchain_qdrant import QdrantVectorStore, RetrievalMode

TEXTS = [
    "rsync copies only the changed parts of files to another machine.",
    "PhotoRec recovers deleted files from memory cards.",
    "MariaDB is a server for relational databases.",
]
QUERY = "send only what changed"

url, key = os.environ.get("WORKER_URL", "http://localhost:8000"), os.environ.get("WORKER_API_KEY")
with Client(url, api_key=key) as client:
    vectors = BGEM3Vectors(client)
    store = QdrantVectorStore.from_texts(
        TEXTS,
        vectors.dense,
        ids=[0, 1, 2],
        sparse_embedding=vectors.sparse,
        retrieval_mode=RetrievalMode.HYBRID,
        collection_name="example-langchain",
        url=os.environ.get("QDRANT_URL", "http://localhost:6333"),
        api_key=os.environ.get("QDRANT_API_KEY"),
    )
    hits = store.similarity_search(QUERY, k=3)
    for document in BGEM3Rerank(client=client, top_n=2).compress_documents(hits, QUERY):
        print(f"{document.metadata['relevance_score']:.2f}", document.page_content)
