"""Several bulk loads into one collection: their records in its metadata, and who finishes the collection.

`record` is what is stored of a load, `content` decides what its points contain, `shard` is a part of an input and
`sharded_load` all parts, `signs` tells the living from the dead, and `steps` are the steps of a load, as values without
any input or output.
"""

from __future__ import annotations

from qdrant_sink.loading.content import LoadContent
from qdrant_sink.loading.record import LOAD_ID, LOAD_ID_RULE, LoadRecord, Records, changes_of, is_load_id, records_of
from qdrant_sink.loading.shard import SHARD_RULE, SHARDS_MAX, Shard
from qdrant_sink.loading.sharded_load import ShardedLoad, lacking_lines, sharded_loads
from qdrant_sink.loading.signs import BEAT_INTERVAL_S, LEASE_S, Life, SignsOfLife
from qdrant_sink.loading.steps import Action, Step, Steps, in_force

__all__ = [
    "BEAT_INTERVAL_S",
    "LEASE_S",
    "LOAD_ID",
    "LOAD_ID_RULE",
    "SHARDS_MAX",
    "SHARD_RULE",
    "Action",
    "Life",
    "LoadContent",
    "LoadRecord",
    "Records",
    "Shard",
    "ShardedLoad",
    "SignsOfLife",
    "Step",
    "Steps",
    "changes_of",
    "in_force",
    "is_load_id",
    "lacking_lines",
    "records_of",
    "sharded_loads",
]
