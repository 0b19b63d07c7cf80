"""Store texts and search them with the client of the worker."""

import os

from bge_m3_qdrant_client import Client

TEXTS = {
    "rsync": "rsync copies only the changed parts of files to another machine.",
    "photorec": "PhotoRec recovers deleted files from memory cards.",
    "mariadb": "MariaDB is a server for relational databases.",
}

url, key = os.environ.get("WORKER_URL", "http://localhost:8000"), os.environ.get("WORKER_API_KEY")
with Client(url, api_key=key) as client:
    report = client.ingest(TEXTS.values(), ids=TEXTS, collection="example-client")
    print("stored:", report.stored)
    answer = client.search("send only what changed", collection="example-client", rerank="colbert", limit=2)
    for hit in answer.results[0].hits:
        print(f"{hit.score:.2f}", (hit.payload or {})["text"])
