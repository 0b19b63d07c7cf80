"""Load rows with Ray: an actor with a model of its own embeds and stores them. Here the cluster is this machine."""

import ray

from service.ray_data import load

ROWS = [
    {"id": 1, "text": "rsync copies only the changed parts of files to another machine.", "language": "C"},
    {"id": 2, "text": "PhotoRec recovers deleted files from memory cards.", "language": "C"},
    {"id": -3, "text": "MariaDB is a server for relational databases.", "language": "C++"},
]

ray.init(logging_level="ERROR", log_to_driver=False)
result = load(ray.data.from_items(ROWS), "example-ray")
print(f"stored: {result.report.stored}, rejected: {result.report.rejected}")
for row in result.rejects.iter_rows():
    print(row["message"], row["row"])
