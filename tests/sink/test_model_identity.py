"""The model of a collection in its metadata: by name and revision, without a path of the host."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdrant_sink.edge import EdgeStore
from qdrant_sink.edge.settings import METADATA_FILE
from qdrant_sink.model_identity import METADATA_KEY, SHOWN_MAX_CHARACTERS, ModelIdentity
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import SCHEMA, draft
from tests.sink.writing import write

MODEL = ModelIdentity("BAAI/bge-m3", "5617a9f6")
OURS = replace(SCHEMA, model=MODEL)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_a_new_collection_says_its_model(store: Store, collection: str) -> None:
    """A collection that the sink creates has model and revision in its metadata, also under an alias."""
    store.ensure(collection, OURS)
    store.alias(f"{collection}.alias", collection)
    assert store.describe(collection).model == MODEL
    assert store.describe(f"{collection}.alias").model == MODEL


def test_an_existing_collection_is_left_without_a_model(store: Store, collection: str) -> None:
    """Metadata are written only when a collection is created: another program may have made the existing one."""
    store.ensure(collection, SCHEMA)
    store.ensure(collection, OURS)
    assert write(store, collection, [draft(1)], OURS).stored == 1
    assert store.describe(collection).model is None


def test_the_model_of_a_collection_stays(store: Store, collection: str) -> None:
    """A worker with another model does not replace the metadata."""
    store.ensure(collection, OURS)
    store.ensure(collection, replace(SCHEMA, model=ModelIdentity("mini")))
    assert store.describe(collection).model == MODEL


def test_a_server_without_metadata_creates_the_collection(server_store: ServerStore, double: GrpcDouble) -> None:
    """A server before 1.16 ignores the metadata, and the collection is created without a model."""
    double.version = (1, 15, 5)
    server_store.ensure("docs", OURS)
    assert server_store.describe("docs").model is None


def test_an_embedded_collection_keeps_its_model(tmp_path: Path) -> None:
    """The metadata of an embedded collection outlive the process and an optimisation, and are readable as JSON."""
    store = EdgeStore(tmp_path)
    store.ensure("docs", OURS)
    assert write(store, "docs", [draft(1)], OURS).stored == 1
    store.optimize("docs")
    store.close()
    content = json.loads((tmp_path / "docs" / METADATA_FILE).read_text())
    assert content == {"bge_m3_qdrant": {"model": "BAAI/bge-m3", "revision": "5617a9f6"}}
    store = EdgeStore(tmp_path)
    assert store.describe("docs").model == MODEL
    store.close()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"bge_m3_qdrant": {"model": 1}}', b"[" * 100_000])
def test_damaged_metadata_are_no_metadata(tmp_path: Path, content: bytes) -> None:
    """An embedded collection whose metadata cannot be read has no known model, and works."""
    store = EdgeStore(tmp_path)
    store.ensure("docs", OURS)
    (tmp_path / "docs" / METADATA_FILE).write_bytes(content)
    assert store.describe("docs").model is None
    assert write(store, "docs", [draft(1)], OURS).stored == 1
    store.close()


@given(st.builds(ModelIdentity, st.text(min_size=1), st.none() | st.text(min_size=1)))
def test_metadata_give_the_model_back(model: ModelIdentity) -> None:
    """What is written is what is read."""
    assert ModelIdentity.from_metadata(json.loads(json.dumps({"other": 1, **model.metadata}))) == model


@given(json_values | st.builds(lambda value: {METADATA_KEY: value}, json_values))
def test_any_metadata_can_be_read(metadata: object) -> None:
    """Metadata of other programs, in any form, give a model with a name or none."""
    model = ModelIdentity.from_metadata(metadata)
    assert model is None or (model.name and len(model.shown) <= SHOWN_MAX_CHARACTERS)


def test_one_model_has_many_names(tmp_path: Path) -> None:
    """The hub name, a directory and a snapshot in the hub's cache are one model; only its own name is kept."""
    directory = tmp_path / "models" / "BGE-M3"
    snapshot = tmp_path / "models--BAAI--bge-m3" / "snapshots" / "5617a9f6"
    link = tmp_path / "model"
    for path in (directory, snapshot):
        path.mkdir(parents=True)
    link.symlink_to(snapshot)
    identities = [ModelIdentity.of(str(name)) for name in ("BAAI/bge-m3", directory, f"{directory}/", snapshot, link)]
    assert [identity.name for identity in identities] == [
        "BAAI/bge-m3",
        "BGE-M3",
        "BGE-M3",
        "BAAI/bge-m3",
        "BAAI/bge-m3",
    ]
    assert [identity.revision for identity in identities] == [None, None, None, "5617a9f6", "5617a9f6"]
    assert all(identity.has_name_of(MODEL) for identity in identities)
    assert not ModelIdentity.of("mini").has_name_of(MODEL)
    assert not ModelIdentity.of("BAAI/bge-m3-retromae").has_name_of(MODEL)


def test_a_relative_directory_has_the_name_of_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.` is not the name of a model."""
    (tmp_path / "tuned").mkdir()
    monkeypatch.chdir(tmp_path / "tuned")
    assert {ModelIdentity.of(name).name for name in (".", "../tuned", "./")} == {"tuned"}


def test_only_a_known_revision_makes_a_model_certain() -> None:
    """The same name is the same model for certain only with the same revision, known of both."""
    assert MODEL.is_certainly(ModelIdentity("bge-m3", "5617a9f6"))
    assert not MODEL.is_certainly(ModelIdentity("bge-m3", "other"))
    assert not MODEL.is_certainly(ModelIdentity("bge-m3"))
    assert not ModelIdentity("bge-m3").is_certainly(ModelIdentity("bge-m3"))
    assert not MODEL.is_certainly(ModelIdentity("mini", "5617a9f6"))
