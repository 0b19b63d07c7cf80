"""The collection block: read from the setting or a file, refused by field, and in force for points and searches."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.alias_generators import to_camel

from embedder import ConfigurationError, InvalidRequest
from qdrant_sink import Placement, Rescoring, VectorNames
from qdrant_sink.edge import EdgeStore
from service.collection_config import CollectionConfig, parse_config
from service.operations import IngestRequest, open_store
from service.settings import Settings
from tests.service.conftest import Serve
from tests.service.doubles import WatchedStore
from tests.sink.samples import schema_for

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")

WHOLE = {
    "vectorNames": {"dense": "text-dense", "sparse": "text-sparse", "colbert": "text-colbert"},
    "dense": {
        "distance": "dot",
        "m": 32,
        "efConstruct": 200,
        "datatype": "float16",
        "onDisk": True,
        "quantization": "int8",
    },
    "sparse": {"datatype": "float16", "onDisk": True},
    "colbert": {"datatype": "float32", "onDisk": False, "quantization": "binary"},
    "payloadIndexes": {"topic": "keyword", "metadata.year": "integer", "offers[].price": "float"},
    "tenantKey": "metadata.tenant",
    "payloadOnDisk": True,
    "shards": 6,
    "replication": 2,
    "writeConsistency": 2,
    "layout": "langchain",
}


def _settings(block: object, **more: str) -> Settings:
    return Settings.from_environment({"QDRANT_COLLECTION_CONFIG": json.dumps(block), **more})


def test_without_a_block_collections_are_those_of_bge_m3() -> None:
    """The defaults of the block are the defaults of the schema, and none of them counts as set."""
    assert Settings.from_environment({}).qdrant_collection_config.schema_for(1024, 512) == schema_for(1024, 512)
    assert _settings({}).qdrant_collection_config.schema_for(1024, 512) == schema_for(1024, 512)


def test_every_field_reaches_the_schema() -> None:
    """What the operator states is what collections are made with, and what they are verified for."""
    block = _settings(WHOLE, QDRANT_URL="https://example.org").qdrant_collection_config
    schema = block.schema_for(1024, 512)
    dense, sparse, colbert = schema.dense, schema.sparse, schema.colbert
    assert (dense.size, dense.distance, dense.m, dense.ef_construct) == (1024, "dot", 32, 200)
    assert (dense.datatype, dense.on_disk, dense.quantization) == ("float16", True, "int8")
    assert (sparse.datatype, sparse.on_disk, sparse.modifier) == ("float16", True, None)
    assert (colbert.size, colbert.datatype, colbert.on_disk, colbert.quantization) == (512, "float32", False, "binary")
    assert schema.names == block.names == VectorNames("text-dense", "text-sparse", "text-colbert")
    assert schema.payload_indexes == WHOLE["payloadIndexes"]
    assert (schema.tenant_key, schema.payload_on_disk, schema.layout) == ("metadata.tenant", True, "langchain")
    assert schema.placement == Placement(6, 2, 2)
    assert {"dense.m", "dense.onDisk", "sparse.datatype", "colbert.quantization", "shards"} <= schema.explicit
    assert "dense.m" not in parse_config('{"dense": {"onDisk": false}}').schema_for(8, 8).explicit


def test_the_block_may_lie_in_a_file(tmp_path: Path) -> None:
    """The setting is then the path; the file may have blank space around the object."""
    file = tmp_path / "collection.json"
    file.write_text('\n {"dense": {"m": 8}} \n')
    settings = Settings.from_environment({"QDRANT_COLLECTION_CONFIG": str(file)})
    assert settings.qdrant_collection_config.dense.m == 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"dense": {"m": 5000}}', "dense.m must be at most 1000, got 5000"),
        ('{"dense": {"m": 16.0}}', "dense.m must be an integer, got a number"),
        ('{"dense": {"onDisk": "yes"}}', "dense.onDisk must be a boolean, got a string"),
        ('{"dense": {"distance": "euclid"}}', "dense.distance must be 'cosine' or 'dot', got 'euclid'"),
        (
            '{"colbert": {"quantization": "int4"}}',
            "colbert.quantization must be 'none', 'int8' or 'binary', got 'int4'",
        ),
        ('{"dense": {"on_disk": true}}', "unknown field 'dense.on_disk'"),
        ('{"replicas": 2}', "unknown field 'replicas'"),
        ('{"dense": 3}', "dense must be an object, got an integer"),
        ('{"shards": 0}', "shards must be at least 1, got 0"),
        (
            '{"replication": 2, "writeConsistency": 3}',
            "writeConsistency must be at most replication (2), got 3",
        ),
        ('{"vectorNames": {"dense": ""}}', "vectorNames.dense must have 1 to 200 bytes, got 0"),
        (json.dumps({"vectorNames": {"dense": "ä" * 101}}), "vectorNames.dense must have 1 to 200 bytes, got 202"),
        (
            '{"vectorNames": {"sparse": "a|b"}}',
            "vectorNames.sparse must have none of < > : \" / \\ | ? *, NUL and 0x1F, got '|'",
        ),
        ('{"vectorNames": {"sparse": "dense"}}', "vectorNames must be three different names, got 'dense' twice"),
        ('{"payloadIndexes": {"a": "blob"}}', "payloadIndexes.a must be 'keyword', 'integer', 'float', 'bool',"),
        ('{"payloadIndexes": {"a b": "text"}}', "payloadIndexes.a b must match ^"),
        ('{"tenantKey": "a[]"}', "tenantKey must match ^[\\w-]+(\\.[\\w-]+)*$, got a string of 3 characters"),
        (
            '{"tenantKey": "t", "payloadIndexes": {"t": "integer"}}',
            "payloadIndexes.t must be keyword, since it is the tenantKey, got integer",
        ),
        ('{"layout": "plane"}', "layout must be 'plain', 'langchain', 'llamaindex' or 'haystack', got 'plane'"),
        ('{"shards": 1, "shards": 2}', '"shards" is there twice'),
        ('{"shards": }', "is not valid JSON: Expecting value in line 1, column 12"),
        ("{" * 5, "is not valid JSON"),
        ('{"a":' * 100_000, "is not valid JSON: nested too deeply"),
    ],
)
def test_a_field_at_fault_is_named_with_limit_and_value(text: str, says: str) -> None:
    """The worker refuses to start, and the operator reads what to correct."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_environment({"QDRANT_COLLECTION_CONFIG": text, "QDRANT_URL": "https://example.org"})
    assert str(caught.value).startswith(f"QDRANT_COLLECTION_CONFIG: {says}")


def test_all_fields_at_fault_are_named_together() -> None:
    """A start that is refused names every field."""
    with pytest.raises(ConfigurationError, match=r"dense\.m .*; unknown field 'x'$"):
        _settings({"dense": {"m": -1}, "x": 1})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "opening it: No such file or directory"),
        (b"\xff\xfe", "the file must be UTF-8"),
        (b"[1]", r"must be a JSON object, got \[1\]"),
        (b"", "is not valid JSON"),
    ],
)
def test_a_file_without_a_block_is_named(tmp_path: Path, content: bytes | None, says: str) -> None:
    """The operator, who alone reads it, sees which file was opened, and what is wrong with it."""
    file = tmp_path / "collection.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=says) as caught:
        Settings.from_environment({"QDRANT_COLLECTION_CONFIG": str(file)})
    assert str(caught.value).startswith(f"QDRANT_COLLECTION_CONFIG='{file}': ")


def test_a_cluster_needs_a_server() -> None:
    """Shards and replicas that the embedded store cannot have refuse to start; one of each is what it has."""
    with pytest.raises(ConfigurationError, match=r"shards=4, replication=2 needs a server.*set QDRANT_URL"):
        _settings({"shards": 4, "replication": 2, "writeConsistency": 1})
    _settings({"shards": 1, "replication": 1, "writeConsistency": 1})
    _settings({"shards": 4}, QDRANT_URL="https://example.org")


def test_the_store_is_opened_with_the_names(tmp_path: Path) -> None:
    """Store and schema come from one block."""
    settings = _settings({"vectorNames": {"dense": "v"}}, QDRANT_PATH=str(tmp_path))
    store = open_store(settings)
    store.ensure("docs", settings.qdrant_collection_config.schema_for(8, 8))
    assert store.count("docs", {"must": [{"has_vector": "v"}]}) == 0
    store.close()


def test_a_point_without_a_tenant_is_rejected_by_itself(serve: Serve) -> None:
    """Its neighbours are stored, and found by their tenant."""
    worker = serve(QDRANT_COLLECTION_CONFIG='{"tenantKey": "tenant"}')
    payloads = [{"tenant": "acme"}, {}, {"tenant": "7"}]
    target = {"collection": "notes", "payloads": payloads}
    answer = worker.good({"texts": ["one", "two", "three"], "isPassage": True, "qdrant": target})
    assert answer["upsert"]["stored"] == 2
    [rejected] = answer["upsert"]["rejected"]
    assert (rejected["index"], rejected["code"]) == (1, "invalid_payload")
    assert rejected["message"].startswith("payload.tenant: the tenant must be")
    condition = {"must": [{"key": "tenant", "match": {"value": "acme"}}]}
    assert worker.good({"operation": "count", "collection": "notes", "filter": condition})["count"] == 1


def test_searches_of_quantized_vectors_are_rescored(serve: Serve, tmp_path: Path) -> None:
    """Nobody has to ask for it: the block says what is quantized."""
    store = WatchedStore(tmp_path / "watched")
    worker = serve(store=store, QDRANT_COLLECTION_CONFIG='{"dense": {"quantization": "int8"}}')
    worker.good({"texts": ["one"], "qdrant": {"collection": "notes"}})
    worker.good({"operation": "search", "collection": "notes", "queries": ["one"]})
    (plan,) = store.plans
    assert {branch.query.kind: branch.query.rescoring for branch in plan.branches} == {
        "dense": Rescoring(),
        "sparse": None,
    }
    store.close()


def test_an_index_added_to_the_block_is_made_for_an_existing_collection(serve: Serve, store: EdgeStore) -> None:
    """The next job that stores makes it, whether or not the worker has seen the collection before."""
    job = {"texts": ["one"], "qdrant": {"collection": "notes"}}
    serve().good(job)
    block = '{"payloadIndexes": {"text": "text"}}'
    worker = serve(QDRANT_COLLECTION_CONFIG=block)
    worker.good({"operation": "search", "collection": "notes", "queries": ["one"]})
    worker.good(job)
    settings = Settings.from_environment({"QDRANT_COLLECTION_CONFIG": block})
    sizes = (worker.operations.hidden_size, worker.operations.colbert_size)
    assert store.verify("notes", settings.qdrant_collection_config.schema_for(*sizes))


def _fields(model: type[BaseModel], path: str = "") -> set[str]:
    fields: set[str] = set()
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            fields |= _fields(kind, f"{path}{to_camel(name)}.")
        else:
            fields.add(path + to_camel(name))
    return fields


def test_the_readme_explains_every_field_and_its_example_works() -> None:
    """The table has a row for every field, and the example can be copied."""
    section = README.split("### The collection block")[1].split("\n## ")[0]
    rows = "\n".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([A-Za-z.]+)`", rows)) == _fields(CollectionConfig)
    example = section.split("```json")[1].split("```")[0]
    assert parse_config(example).schema_for(1024, 1024) != schema_for(1024, 1024)


def test_a_key_that_a_layout_does_not_use_is_refused(serve: Serve, store: EdgeStore) -> None:
    """The layout of a framework has a key of its own; who asks for another learns it before anything is made."""
    worker = serve(QDRANT_COLLECTION_CONFIG='{"layout": "langchain"}')
    job: dict[str, Any] = {"texts": ["a"], "qdrant": {"collection": "notes", "textKey": "body"}}
    error = worker.error(job, "invalid_request")
    assert error["error"] == (
        "qdrant.textKey: belongs to the plain layout; in langchain's the text is in 'page_content'; leave it out"
    )
    assert error["details"]["errors"][0]["field"] == "qdrant.textKey"
    with pytest.raises(InvalidRequest, match="textKey"):  # of a load from the command line, before it begins
        worker.operations.ingest.check(IngestRequest(["a"], ["dense"], text_key="body", path="qdrant."))
    assert not store.collection_of("notes")
    worker.good({"texts": ["a"], "qdrant": {"collection": "notes", "textKey": "text"}})  # the default is no wish
