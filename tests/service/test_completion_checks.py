"""A completion compares the model and looks at the collection to copy into before it changes anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedder import Embedder, InvalidRequest
from qdrant_sink import (
    CollectionSchema,
    DenseSchema,
    ModelIdentity,
    ModelMismatch,
    Point,
    SparseSchema,
    VectorNames,
)
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT
from tests.service.test_completion import NAMES, TEXTS, Site, embedded
from tests.sink.samples import sample_vectors
from tests.sink.stores import EMBEDDED_FIRST, opened

ANOTHER = ModelIdentity("another/model")


@pytest.fixture(params=EMBEDDED_FIRST)
def site(request: pytest.FixtureRequest, embedder: Embedder, tmp_path: Path) -> Iterator[Site]:
    """A site on each kind of store, with an empty collection."""
    with opened(request.param, tmp_path) as store:
        yield Site(store, embedder)


def fill_with_other_vectors(site: Site, *, model: ModelIdentity | None = None, size: int | None = None) -> None:
    """Store texts with dense vectors that are not those of the model."""
    size = size or site.embedder.hidden_size
    site.store.ensure("notes", CollectionSchema(DenseSchema(size), names=NAMES, model=model))
    points = [
        Point(number, {"text": text}, dense=sample_vectors(number, size=size).dense, names=NAMES)
        for number, text in enumerate(TEXTS[:8])
    ]
    site.store.upsert("notes", points)


def vouched(site: Site) -> Site:
    """The site with a worker whose operator vouches for the vectors."""
    config = json.dumps({"vectorNames": {"dense": ""}, "verifyModel": False})
    settings = Settings.from_environment({**ENVIRONMENT, "QDRANT_COLLECTION_CONFIG": config})
    site.core = Operations(settings, site.embedder, site.store)
    return site


@pytest.mark.parametrize("fields", [{}, {"into": "new", "alias": "current"}], ids=["in place", "copy"])
def test_vectors_of_another_model_are_refused_before_anything_changes(site: Site, fields: dict[str, Any]) -> None:
    """The error has the cosine and the way out; with `verifyModel: false` the completion runs."""
    fill_with_other_vectors(site)
    with pytest.raises(ModelMismatch, match=r"dense has a median cosine of .*verifyModel to false"):
        site.complete(("sparse",), **fields)
    assert set(site.store.describe("notes").description.vectors) == {""}
    assert site.store.collections() == ["notes"]
    assert vouched(site).complete(("sparse",), **fields).completed == 8


def test_a_collection_of_another_model_by_name_is_refused(site: Site) -> None:
    """The metadata decide, also where no vector has the size of the model."""
    fill_with_other_vectors(site, model=ANOTHER, size=8)
    with pytest.raises(ModelMismatch, match="was made for the model 'another/model'"):
        site.complete(("sparse",))
    assert set(site.store.describe("notes").description.vectors) == {""}


def test_a_copy_is_of_the_model_of_the_collection(site: Site) -> None:
    """A copy of a collection without metadata does not name the worker's model, whose vectors it may not have."""
    fill_with_other_vectors(site)
    vouched(site).complete(("sparse",), into="new", alias="current")
    assert site.store.describe("new").model is None


def test_vectors_of_another_size_are_left_beside_the_added_ones(site: Site) -> None:
    """Dense vectors of a smaller model cannot be taken for those of this one, and do not prevent the other kinds."""
    fill_with_other_vectors(site, size=8)
    assert site.complete().completed == 8


def test_sparse_vectors_of_another_method_prevent_only_sparse(site: Site) -> None:
    """ColBERT rows are added beside BM25 weights, and no lexical weights of the model are mixed with them."""
    names = VectorNames(dense="", sparse="bm25")
    site.store.ensure("notes", CollectionSchema(site.schema.dense, SparseSchema(modifier="idf"), names=names))
    points = [
        Point(number, {"text": text}, vectors.dense, sample_vectors(number).sparse, names=names)
        for number, (text, vectors) in enumerate(zip(TEXTS[:8], embedded(site.embedder, TEXTS[:8]), strict=True))
    ]
    site.store.upsert("notes", points)
    assert site.complete(("colbert",)).completed == 8
    with pytest.raises(ModelMismatch, match="sparse has a median cosine of"):
        site.complete(("sparse",))


def test_another_collection_is_not_taken_for_a_copy(site: Site) -> None:
    """Points with the ids of a collection but other payloads would stay instead of its own; the alias stays too."""
    site.fill(TEXTS[:6])
    site.complete(into="copy", alias="current")
    site.fill(TEXTS[10:16])  # under the same ids
    with pytest.raises(InvalidRequest, match="into must be a new collection or an unfinished copy"):
        site.complete(into="copy", alias="other")
    assert site.store.aliases() == {"current": "copy"}
    with pytest.raises(InvalidRequest, match="into must not be an alias, got 'current'"):
        site.complete(into="current", alias="other")


def test_the_same_command_after_the_alias_has_moved_changes_nothing(site: Site) -> None:
    """A run that was killed at its very end is run again: the alias leads to the copy already."""
    site.fill(TEXTS[:6])
    site.store.alias("current", "notes")
    assert site.complete(collection="current", into="copy").alias == "current"
    again = site.complete(collection="current", into="copy")
    assert (again.is_complete, again.collection, again.already, again.copied) == (True, "copy", 6, None)
    assert site.store.aliases() == {"current": "copy"}
