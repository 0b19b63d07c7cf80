"""Vectors into Qdrant and back: conformance, points, schema, search, and the two stores.

Importing the package imports no client: `qdrant_sink.server` and `qdrant_sink.edge` do, when they are
imported themselves.
"""
