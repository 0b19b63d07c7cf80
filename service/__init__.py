"""The application: operations over one model and one store, the wire that speaks of them, and the ways in.

transports, bulk  ->  wire  ->  operations  ->  {embedder, qdrant_sink}
"""

__version__ = "0.1.0"  # also that of the distribution: pyproject.toml reads it here, and the image installs none
