"""The application: operations over one model and one store, the wire that speaks of them, and the ways in.

transports, bulk  ->  wire  ->  operations  ->  {embedder, qdrant_sink}
"""
