"""Store and search through the MCP server of a worker, as an assistant does."""

import asyncio
import json
import os

from mcp import Client, StdioServerParameters

SERVER = StdioServerParameters(
    command="bge-m3-qdrant", args=["mcp", "--collection", "example-mcp", "--allow-store"], env=dict(os.environ)
)
TEXTS = [
    "rsync copies only the changed parts of files to another machine.",
    "PhotoRec recovers deleted files from memory cards.",
]


async def main() -> None:
    """Store two texts, and print the best hits of a query."""
    async with Client(SERVER) as client:
        await client.call_tool("store", {"texts": TEXTS})
        result = await client.call_tool("search", {"query": "send only what changed", "rerank": True, "limit": 2})
        for hit in json.loads(result.content[0].model_dump()["text"])["hits"]:
            print(f"{hit['score']:.2f}", hit["text"])


asyncio.run(main())
