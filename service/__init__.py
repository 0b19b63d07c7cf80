"""The application: operations over one model and one store, their wire format, and the transports.

transports, bulk  ->  wire  ->  operations  ->  {embedder, qdrant_sink}
"""

__version__ = "0.1.0"  # pyproject.toml reads the version here, since the image does not install the distribution
