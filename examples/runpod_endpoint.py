"""Store texts and search them through a RunPod queue endpoint with RunPod's own package."""

import os

import runpod

runpod.api_key = os.environ["RUNPOD_API_KEY"]
endpoint = runpod.Endpoint(os.environ["RUNPOD_ENDPOINT_ID"])
TEXTS = [
    "rsync copies only the changed parts of files to another machine.",
    "PhotoRec recovers deleted files from memory cards.",
]

job = endpoint.run({"texts": TEXTS, "isPassage": True, "qdrant": {"collection": "example-runpod", "ids": [1, 2]}})
output = job.output(timeout=600)
if job.status() != "COMPLETED":
    raise SystemExit(f"{job.status()}: {output}")
print("stored:", output["upsert"]["stored"])

search = {"operation": "search", "queries": ["send only what changed"], "collection": "example-runpod", "limit": 1}
answer = endpoint.run_sync({**search, "rerank": "colbert"}, timeout=600)
for hit in answer["results"][0]["hits"]:
    print(f"{hit['score']:.2f}", hit["payload"]["text"])
