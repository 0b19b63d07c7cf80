"""Training of the miniature BGE-M3 checkpoint, and of others like it.

The stages, in the order in which they run:

- ``data``: package descriptions -> ``data.json`` (training pairs, held-out queries and pool).
- ``baseline``: BM25 over the held-out pool -> ``bm25.json``.
- ``train``: ``data.json`` -> a checkpoint directory in the layout of BAAI/bge-m3.
- ``evaluate``: a checkpoint, ``data.json`` and ``bm25.json`` -> the held-out table.

``random_checkpoint`` stands apart: an untrained checkpoint of any size, for tests.
"""
