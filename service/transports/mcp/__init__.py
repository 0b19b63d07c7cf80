"""The MCP server: the worker's searches and points as tools of a language model, over stdio or streamable HTTP."""
