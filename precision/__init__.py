"""Comparison of a faster type with float32 on a checkpoint: `bge-m3-qdrant precision --help`."""
