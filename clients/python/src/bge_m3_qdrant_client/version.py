"""The version of the client, which its requests carry in `User-Agent`."""

__version__ = "0.1.0"
