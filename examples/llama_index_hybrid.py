"""Hybrid search and rerank with LlamaIndex: one request of a batch computes its dense and its sparse vectors.

pip install './clients/python[llama-index]'
"""

import os
import uuid

from bge_m3_qdrant_client import Client
from bge_m3_qdrant_client.llama_index import BGEM3Rerank, BGEM3Vectors
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

TEXTS = [
    "rsync copies only the changed parts of files to another machine.",
    "PhotoRec recovers deleted files from memory cards.",
    "MariaDB is a server for relational databases.",
]
QUERY = "send only what changed"

url, key = os.environ.get("WORKER_URL", "http://localhost:8000"), os.environ.get("WORKER_API_KEY")
qdrant = QdrantClient(os.environ.get("QDRANT_URL", "http://localhost:6333"), api_key=os.environ.get("QDRANT_API_KEY"))
with Client(url, api_key=key) as client:
    vectors = BGEM3Vectors(client)
    store = QdrantVectorStore(
        "example-llama-index",
        client=qdrant,
        enable_hybrid=True,
        sparse_doc_fn=vectors.sparse_doc_fn,
        sparse_query_fn=vectors.sparse_query_fn,
    )
    index = VectorStoreIndex.from_vector_store(store, embed_model=vectors.dense)
    index.insert_nodes([TextNode(id_=str(uuid.uuid5(uuid.NAMESPACE_URL, text)), text=text) for text in TEXTS])
    hits = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=3).retrieve(QUERY)
    for node in BGEM3Rerank(client, top_n=2).postprocess_nodes(hits, query_str=QUERY):
        print(f"{node.score:.2f}", node.get_content())
