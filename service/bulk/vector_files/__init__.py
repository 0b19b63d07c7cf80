"""Vectors in Parquet files: `bge-m3-qdrant embed` writes them, and `bulk --vectors-in` loads them without a model.

description (what the vectors are) -> points (rows and columns) -> parts (the files of a folder) <- embed_run
description -> columns (numbers of a row) -> vector_line -> vector_reading
"""

from __future__ import annotations
