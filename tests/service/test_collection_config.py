"""The collection config: reading from the setting or a file, errors, and its effect on points and searches."""

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
from service.operations import IngestRequest
from service.settings import Settings
from tests.service.conftest import Serve
from tests.service.doubles import WatchedStore
from tests.sink.samples import parts, schema_for

PAGE = (Path(__file__).parents[2] / "docs" / "collections.md").read_text(encoding="utf-8")

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
    "sparse": {"datatype": "float16", "modifier": "idf", "onDisk": True},
    "colbert": {"distance": "dot", "datatype": "float32", "onDisk": False, "quantization": "binary"},
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
    """The defaults of the config are those of the schema, and none counts as explicitly set."""
    assert Settings.from_environment({}).qdrant_collection_config.schema_for(1024, 512) == schema_for(1024, 512)
    assert _settings({}).qdrant_collection_config.schema_for(1024, 512) == schema_for(1024, 512)


def test_every_field_reaches_the_schema() -> None:
    """Every field of the config reaches the schema."""
    block = _settings(WHOLE, QDRANT_URL="https://example.org").qdrant_collection_config
    schema = block.schema_for(1024, 512)
    dense, sparse, colbert = parts(schema)
    assert (dense.size, dense.distance, dense.m, dense.ef_construct) == (1024, "dot", 32, 200)
    assert (dense.datatype, dense.on_disk, dense.quantization) == ("float16", True, "int8")
    assert (sparse.datatype, sparse.on_disk, sparse.modifier) == ("float16", True, "idf")
    assert (colbert.distance, colbert.size, colbert.datatype, colbert.on_disk, colbert.quantization) == (
        "dot",
        512,
        "float32",
        False,
        "binary",
    )
    assert schema.names == block.names == VectorNames("text-dense", "text-sparse", "text-colbert")
    assert schema.payload_indexes == WHOLE["payloadIndexes"]
    assert (schema.tenant_key, schema.payload_on_disk, schema.layout) == ("metadata.tenant", True, "langchain")
    assert schema.placement == Placement(6, 2, 2)
    assert {"dense.m", "dense.onDisk", "sparse.datatype", "colbert.quantization", "shards"} <= schema.explicit
    assert "dense.m" not in parse_config('{"dense": {"onDisk": false}}').schema_for(8, 8).explicit


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, VectorNames("dense", "sparse", "colbert")),
        ({"layout": "langchain"}, VectorNames("", "langchain-sparse", "colbert")),
        ({"layout": "llamaindex"}, VectorNames("text-dense", "text-sparse-new", "colbert")),
        ({"layout": "haystack"}, VectorNames("text-dense", "text-sparse", "colbert")),
        ({"layout": "haystack", "kinds": ["dense"]}, VectorNames("", "text-sparse", "colbert")),
        (
            {"layout": "langchain", "vectorNames": {"dense": "dense"}},
            VectorNames("dense", "langchain-sparse", "colbert"),
        ),
    ],
)
def test_vectors_have_the_names_of_the_layout_unless_others_are_set(config: dict[str, Any], names: VectorNames) -> None:
    """A name that is set is kept, and the others are those of the layout."""
    assert parse_config(json.dumps(config)).schema_for(8, 8).names == names


def test_only_the_names_of_existing_vectors_must_differ() -> None:
    """A vector may have the default name of a kind that collections do not have."""
    config = parse_config('{"kinds": ["dense"], "vectorNames": {"dense": "sparse"}}')
    assert config.schema_for(8, 8).names.dense == "sparse"


def test_the_config_may_be_in_a_file(tmp_path: Path) -> None:
    """The setting may be the path of a file, in which white space may surround the object."""
    file = tmp_path / "collection.json"
    file.write_text('\ufeff\n {"dense": {"m": 8}} \n', encoding="utf-8")  # editors may write a byte order mark
    settings = Settings.from_environment({"QDRANT_COLLECTION_CONFIG": str(file)})
    assert settings.qdrant_collection_config.dense.m == 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"dense": {"m": 5000}}', "dense.m must be at most 1000, got 5000"),
        ('{"dense": {"m": 16.0}}', "dense.m must be an integer, got a number"),
        ('{"dense": {"onDisk": "yes"}}', "dense.onDisk must be a boolean, got a string"),
        (
            '{"dense": {"distance": "euclidean"}}',
            "dense.distance must be 'cosine', 'dot', 'euclid' or 'manhattan', got 'euclidean'",
        ),
        ('{"colbert": {"distance": "euclid"}}', "colbert.distance must be 'cosine' or 'dot', got 'euclid'"),
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
        (
            '{"vectorNames": {"sparse": ""}}',
            "vectorNames.sparse must have 1 to 200 bytes, got 0; only the dense vector can be unnamed",
        ),
        (json.dumps({"vectorNames": {"dense": "ä" * 101}}), "vectorNames.dense must have at most 200 bytes, got 202"),
        (
            '{"vectorNames": {"sparse": "a|b"}}',
            "vectorNames.sparse must not contain < > : \" / \\ | ? *, NUL or 0x1F, got '|'",
        ),
        ('{"vectorNames": {"sparse": "dense"}}', "vectorNames must be different names, got 'dense' twice"),
        ('{"payloadIndexes": {"a": "blob"}}', "payloadIndexes.a must be 'keyword', 'integer', 'float', 'bool',"),
        ('{"payloadIndexes": {"a b": "text"}}', "payloadIndexes.a b must be a path of keys"),
        ('{"tenantKey": "a[]"}', "tenantKey must be a path through objects to one value, without [] and [0]"),
        ('{"tenantKey": "a."}', "tenantKey must be a path of keys such as topic"),
        (
            r'{"payloadIndexes": {"topic": "keyword", "\"topic\"": "text"}}',
            'payloadIndexes must name each key once, got "topic" in two notations',
        ),
        (
            r'{"tenantKey": "t", "payloadIndexes": {"\"t\"": "integer"}}',
            "payloadIndexes.t must be 'keyword' for the tenantKey, got 'integer'",
        ),
        (
            '{"tenantKey": "t", "payloadIndexes": {"t": "integer"}}',
            "payloadIndexes.t must be 'keyword' for the tenantKey, got 'integer'",
        ),
        ('{"kinds": []}', "kinds must have at least 1 item, got 0"),
        ('{"kinds": ["dense", "dense"]}', "kinds must not repeat a kind, got dense, dense"),
        ('{"kinds": ["dense", "tokens"]}', "kinds[1] must be 'dense', 'sparse' or 'colbert', got 'tokens'"),
        ('{"kinds": "dense"}', "kinds must be a list, got a string"),
        (
            '{"kinds": ["sparse", "dense"], "colbert": {"onDisk": true}}',
            "colbert must be left out, because kinds is sparse, dense",
        ),
        ('{"layout": "plane"}', "layout must be 'plain', 'langchain', 'llamaindex' or 'haystack', got 'plane'"),
        ('{"descriptions": {"a/b": "x"}}', "descriptions.a/b must"),
        ('{"descriptions": {"notes": " \\n "}}', "descriptions.notes must not be blank"),
        (
            json.dumps({"descriptions": {"notes": "x" * 1001}}),
            "descriptions.notes must have at most 1000 characters, got 1001",
        ),
        ('{"shards": 1, "shards": 2}', 'the field "shards" is given twice'),
        ('{"shards": }', "the config is not valid JSON: Expecting value (line 1, column 12)"),
        ("{" * 5, "the config is not valid JSON"),
        ('{"a":' * 100_000, "the config is nested too deeply"),
    ],
)
def test_an_invalid_field_is_named_with_limit_and_value(text: str, says: str) -> None:
    """The worker refuses to start, with a message that names the field."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_environment({"QDRANT_COLLECTION_CONFIG": text, "QDRANT_URL": "https://example.org"})
    assert str(caught.value).startswith(f"QDRANT_COLLECTION_CONFIG: {says}")


def test_all_invalid_fields_are_named_together() -> None:
    """The message names every invalid field."""
    with pytest.raises(ConfigurationError, match=r"dense\.m .*; unknown field 'x'$"):
        _settings({"dense": {"m": -1}, "x": 1})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"the file cannot be opened \(No such file or directory\)"),
        (b"\xff\xfe", "the file must be valid UTF-8"),
        (b"[1]", r"the config must be a JSON object, got \[1\]"),
        (b"", "is not valid JSON"),
    ],
)
def test_a_file_without_a_config_is_named(tmp_path: Path, content: bytes | None, says: str) -> None:
    """The message names the file, and says what is wrong with it."""
    file = tmp_path / "collection.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=says) as caught:
        Settings.from_environment({"QDRANT_COLLECTION_CONFIG": str(file)})
    assert str(caught.value).startswith(f"QDRANT_COLLECTION_CONFIG='{file}': ")


def test_a_cluster_needs_a_server() -> None:
    """Several shards or replicas without a server refuse to start."""
    with pytest.raises(ConfigurationError, match=r"shards=4, replication=2 needs a Qdrant server.*set QDRANT_URL"):
        _settings({"shards": 4, "replication": 2, "writeConsistency": 1})
    _settings({"shards": 1, "replication": 1, "writeConsistency": 1})
    _settings({"shards": 4}, QDRANT_URL="https://example.org")


@pytest.mark.parametrize("name", ["v", ""])
def test_the_vectors_have_the_configured_names(serve: Serve, store: EdgeStore, name: str) -> None:
    """Points are stored and found under the vector names of the config; the dense vector may be unnamed."""
    worker = serve(QDRANT_COLLECTION_CONFIG=json.dumps({"vectorNames": {"dense": name}}))
    worker.good({"texts": ["one", "two"], "qdrant": {"collection": "notes"}})
    assert store.count("notes", {"must": [{"has_vector": name}]}) == 2
    search = {"operation": "search", "collection": "notes", "queries": ["two"], "explain": True, "withVectors": True}
    [result] = worker.good(search)["results"]
    assert result["hits"][0]["payload"]["text"] == "two"
    assert set(result["hits"][0]["vectors"]) == {"dense", "sparse", "colbert"}


def test_only_a_point_without_a_tenant_is_rejected(serve: Serve) -> None:
    """Points with a tenant are stored and can be filtered by it."""
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
    """Searches of a quantized vector are rescored by default."""
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
    """The next ingest creates the index, whether or not the worker has used the collection before."""
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


def test_the_page_explains_every_field_and_its_example_works() -> None:
    """The table has a row for every field, and the example can be copied."""
    section = PAGE.split("## Collection config")[1].split("\n## ")[0]
    rows = "\n".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([A-Za-z.]+)`", rows)) == _fields(CollectionConfig)
    example = section.split("```json")[1].split("```")[0]
    assert parse_config(example).schema_for(1024, 1024) != schema_for(1024, 1024)


def test_a_text_key_for_another_layout_is_an_error(serve: Serve, store: EdgeStore) -> None:
    """A framework's layout has its own text key; another one is an error before the collection is created."""
    worker = serve(QDRANT_COLLECTION_CONFIG='{"layout": "langchain"}')
    job: dict[str, Any] = {"texts": ["a"], "qdrant": {"collection": "notes", "textKey": "body"}}
    error = worker.error(job, "invalid_request")
    assert error["error"] == (
        "qdrant.textKey must be left out: the payload layout 'langchain' has the text under 'page_content', "
        "got another key"
    )
    assert error["details"]["errors"][0]["field"] == "qdrant.textKey"
    with pytest.raises(InvalidRequest, match="textKey"):  # also before a bulk load
        worker.operations.ingest.check(IngestRequest(["a"], ["dense"], text_key="body", path="qdrant."))
    assert not store.collection_of("notes")
    worker.good({"texts": ["a"], "qdrant": {"collection": "notes", "textKey": "text"}})  # the default is accepted
