"""Tests of the embedder: parity with FlagEmbedding, scheduling, the pool, and loading."""
