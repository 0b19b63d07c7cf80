"""The driver of a load on a cluster of Ray: `python -m tests.service.ray_driver` reads its task as JSON.

It is a process of its own so that a test can kill it, and so that no test process connects to a cluster.
"""

from __future__ import annotations

import json
import logging
import sys
from tempfile import TemporaryDirectory
from typing import Any

import ray

from service.operations import Chunking
from service.ray_data import ActorPool, QdrantDatasink, embed_dataset, load, model_source
from service.settings import Settings

BLOCK_ROWS = 100


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Load the rows of a task; returns the report.

    Args:
        task: `address` of the cluster, `settings`, arguments of `rows`, `collection`, and the arguments of `load` in
            `options`. With `sink` the rows are embedded by `embed_dataset` and stored by a `QdrantDatasink`.
    """
    ray.init(address=task["address"], logging_level=logging.ERROR, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    settings = Settings.from_environment(task["settings"])
    items = rows(**task["rows"])
    ds = ray.data.from_items(items, override_num_blocks=len(items) // BLOCK_ROWS)
    options = dict(task.get("options", {}))
    if "chunk" in options:
        options["chunk"] = Chunking(*options["chunk"])
    pool = ActorPool(size=2, num_cpus=0.4, batch_size=BLOCK_ROWS)
    with TemporaryDirectory() as folder:
        if not task.get("sink"):
            result = load(ds, task["collection"], pool=pool, settings=settings, **options)
            report, rejects = result.report, result.rejects
        else:
            embedded = embed_dataset(ds, pool=pool, settings=settings, chunk=options.pop("chunk", None))
            source = model_source(settings)
            sink = QdrantDatasink(task["collection"], source, settings=settings, rejects=folder, **options)
            embedded.write_datasink(sink, ray_remote_args={"num_cpus": 0.1})
            assert sink.report is not None
            report, rejects = sink.report, sink.rejects()
        counts = ("lines", "stored", "skipped", "rejected", "repeated", "replaced", "points", "failure", "alias")
        return {**{name: getattr(report, name) for name in counts}, "rejects": rejects.take_all()}


def rows(count: int, repeated: int = 0, replaced: int = 0) -> list[dict[str, Any]]:
    """The rows of every load, of which each tenth has no id.

    Args:
        count: number of different points.
        repeated: number of rows that are there again, in other blocks than the first time.
        replaced: number of further rows that have the id of another one and another payload, also in other blocks.
    """
    again = [_row(number) for number in range(repeated)]
    other = [{**_row(count - 1 - 2 * number), "payload": {"number": -number}} for number in range(replaced)]
    return [*other, *(_row(number) for number in range(count)), *again]


def _row(number: int) -> dict[str, Any]:
    return {
        "id": None if number % 10 == 0 else f"row {number}",
        "text": " ".join(f"word{(number * 7919 + place * 104729) % 997}" for place in range(40)),
        "payload": {"number": number},
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))  # noqa: T201 - read by the test
