"""Rerank what another search engine found: SQLite retrieves, and the worker ranks through Cohere's client."""

import os
import sqlite3

import cohere

TEXTS = [
    "rsync copies only the changed parts of files to another machine.",
    "Deletes files safely, so that no program can recover them.",
    "PhotoRec recovers deleted files from memory cards.",
    "A file manager with two panes, which shows photos from cards.",
]
QUERY = "a program to recover photos that were deleted"

database = sqlite3.connect(":memory:")
database.execute("CREATE VIRTUAL TABLE notes USING fts5(text)")
database.executemany("INSERT INTO notes VALUES (?)", [(text,) for text in TEXTS])
words = " OR ".join(QUERY.split())
found = [text for (text,) in database.execute("SELECT text FROM notes(?) ORDER BY rank LIMIT 50", [words])]
print("SQLite:", found[0])

url, key = os.environ.get("WORKER_URL", "http://localhost:8000"), os.environ.get("WORKER_API_KEY", "no key")
client = cohere.ClientV2(key, base_url=url)
ranking = client.rerank(model="BAAI/bge-m3", query=QUERY, documents=found, top_n=2)
for result in ranking.results:
    print(f"{result.relevance_score:.2f}", found[result.index])
