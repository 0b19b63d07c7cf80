"""The operations of the worker, and the doors to them."""
