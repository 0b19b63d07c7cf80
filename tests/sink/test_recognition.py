"""What a collection has is recognised by its description; what the operator has set must be as set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.vectors import KINDS, Kind
from qdrant_sink.errors import SchemaMismatch
from qdrant_sink.recognition import Recognised, Taken, recognise
from qdrant_sink.schema import CollectionSchema, Placement, SparseSchema, VectorNames
from qdrant_sink.schema_diff import CollectionDescription, VectorDescription, differences
from tests.sink.samples import COLBERT, SCHEMA, SIZE

DENSE: Final = VectorDescription(
    "dense", size=SIZE, distance="cosine", datatype="float32", quantization="none", m=16, ef_construct=100,
    on_disk=False,
)  # fmt: skip
SPARSE: Final = VectorDescription("sparse", datatype="float32", on_disk=False)
ROWS: Final = VectorDescription(
    "multivector", size=SIZE, distance="cosine", comparator="max_sim", datatype="float16", quantization="none", m=0,
    ef_construct=100, on_disk=True,
)  # fmt: skip
OWN: Final = {"dense": DENSE, "sparse": SPARSE, "colbert": ROWS}
PLACEMENT: Final = Placement(1, 1, 1)

NAMES: Final = st.text("abc-", max_size=3)
VECTORS: Final = st.one_of(
    st.builds(
        replace,
        st.just(DENSE),
        size=st.sampled_from([SIZE, SIZE + 1]),
        distance=st.sampled_from(["cosine", "dot", "euclid", "manhattan"]),
        datatype=st.sampled_from(["float32", "float16", "uint8", "turbo4"]),
        quantization=st.sampled_from(["none", "int8", "binary", "product"]),
        m=st.sampled_from([0, 16, 32]),
        on_disk=st.booleans(),
    ),
    st.builds(
        replace,
        st.just(SPARSE),
        modifier=st.sampled_from([None, "idf"]),
        datatype=st.sampled_from(["float32", "float16", "uint8"]),
    ),
    st.builds(
        replace, st.just(ROWS), size=st.sampled_from([SIZE, SIZE + 1]), distance=st.sampled_from(["dot", "euclid"])
    ),
)


def described(vectors: Mapping[str, VectorDescription]) -> CollectionDescription:
    """Return the description of a collection with these vectors."""
    return CollectionDescription(vectors, payload_on_disk=True, placement=PLACEMENT)


def recognised(vectors: Mapping[str, VectorDescription], *explicit: str, **wanted: Any) -> Recognised:
    """Recognise a collection with these vectors, under a config with these fields."""
    schema = replace(SCHEMA, explicit=frozenset(explicit), **wanted)
    return recognise("notes", schema, described(vectors), [])


def mismatch(vectors: Mapping[str, VectorDescription], *explicit: str, **wanted: Any) -> SchemaMismatch:
    """Return the error of a collection that cannot be used."""
    with pytest.raises(SchemaMismatch, match="'notes'") as caught:
        recognised(vectors, *explicit, **wanted)
    assert caught.value.collection == "notes"
    return caught.value


def test_a_collection_of_our_own_is_as_it_was_configured() -> None:
    """Nothing is taken from a collection that has the default schema."""
    own = recognised(OWN)
    assert own.schema == replace(SCHEMA, payload_on_disk=True)
    assert (own.taken, own.ambiguous, own.kinds) == (Taken(), {}, KINDS)


@pytest.mark.parametrize(
    ("vectors", "taken"),
    [
        ({"": DENSE}, Taken(kinds=("dense",), names={"dense": ""})),
        ({"": DENSE, "langchain-sparse": SPARSE},
         Taken(kinds=("dense", "sparse"), names={"dense": "", "sparse": "langchain-sparse"})),
        ({"text-dense": DENSE, "text-sparse-new": replace(SPARSE, modifier="idf")},
         Taken(kinds=("dense", "sparse"), names={"dense": "text-dense", "sparse": "text-sparse-new"}, modifier="idf")),
        ({"dense": replace(DENSE, distance="dot")}, Taken(kinds=("dense",), distances={"dense": "dot"})),
        ({"bm25": SPARSE}, Taken(kinds=("sparse",), names={"sparse": "bm25"})),
        ({"dense": DENSE, "late": replace(ROWS, distance="dot")},
         Taken(kinds=("dense", "colbert"), names={"dense": "dense", "colbert": "late"}, distances={"colbert": "dot"})),
        ({**OWN, "openai": replace(DENSE, size=1536), "image": replace(ROWS, size=128)}, Taken()),
        ({"dense": DENSE, "other": DENSE}, Taken(kinds=("dense",))),
    ],
    ids=["unnamed", "langchain", "llamaindex", "dot", "sparse", "colbert", "other models", "default name"],
)  # fmt: skip
def test_what_a_collection_has_is_taken(vectors: Mapping[str, VectorDescription], taken: Taken) -> None:
    """Without a config the vectors are those of the model's kinds and sizes, and what was taken can be said."""
    found = recognised(vectors)
    assert found.taken == taken
    assert differences(found.schema, described(vectors)) == []
    assert all(name in str(taken) for name in taken.names.values())


@given(st.dictionaries(NAMES, VECTORS, max_size=4))
def test_what_is_recognised_is_there(vectors: dict[str, VectorDescription]) -> None:
    """Whatever a collection has, each recognised vector is one of its own, and no choice is made at random."""
    if not any(sum(usable(kind, vector) for vector in vectors.values()) == 1 for kind in KINDS):
        mismatch(vectors)
        return
    found = recognised(vectors)
    assert differences(found.schema, described(vectors)) == []
    for kind in KINDS:
        same = [name for name, vector in vectors.items() if usable(kind, vector)]
        if kind in found.schema.kinds:
            assert same == [found.schema.names.of(kind)]
        elif len(same) > 1:
            assert found.ambiguous[f"vectorNames.{kind}"] == tuple(sorted(same))
        else:
            assert not same


def usable(kind: Kind, vector: VectorDescription) -> bool:
    """Whether a vector of `VECTORS` can be of this kind."""
    fits = vector.size == SIZE and vector.datatype != "uint8"
    return {
        "dense": vector.kind == "dense" and fits,
        "sparse": vector.kind == "sparse",
        "colbert": vector.kind == "multivector" and fits and vector.distance == "dot",
    }[kind]


def test_several_vectors_of_a_kind_are_a_choice() -> None:
    """A search of the other kinds works; one that needs the kind, and a write, name the choices and the setting."""
    found = recognised({"title": DENSE, "body": DENSE, "sparse": SPARSE})
    assert found.schema.kinds == ("sparse",)
    assert found.kinds == ("dense", "sparse")
    found.require(["sparse"])
    with pytest.raises(SchemaMismatch, match=r"several dense vectors \(body, title\); set vectorNames.dense") as caught:
        found.require(["dense"])
    assert caught.value.choices == {"vectorNames.dense": ("body", "title")}
    assert mismatch({"title": DENSE, "": DENSE}).choices == {"vectorNames.dense": ("", "title")}
    named = recognised({"title": DENSE, "body": DENSE}, "vectorNames.dense", names=VectorNames(dense="body"))
    assert named.schema.names.dense == "body"


def test_what_is_set_must_be_as_set() -> None:
    """A set distance, name or kind that the collection does not have is an error that names both values."""
    found, wanted = {"dense": replace(DENSE, distance="dot", m=32), "sparse": SPARSE}, "dense.distance"
    assert "dense.distance is dot, wanted cosine" in mismatch(found, wanted).message
    assert "dense.m is 32, wanted 16" in mismatch(found, "dense.m").message
    assert "colbert is absent" in mismatch(found, "kinds").message
    assert recognised(found, "kinds", colbert=None).schema.kinds == ("dense", "sparse")
    assert recognised(OWN, "kinds", colbert=None).schema.kinds == ("dense", "sparse")
    names = VectorNames(dense="title")
    assert "title is absent" in mismatch(found, "vectorNames.dense", names=names).message
    assert (
        "sparse.modifier is none, wanted idf"
        in mismatch(found, "sparse.modifier", sparse=SparseSchema(modifier="idf")).message
    )
    assert "shards" in mismatch(found, "shards", placement=Placement(shards=2)).message


def test_a_collection_of_another_model_is_refused() -> None:
    """The error says what vectors there are, and what sizes the model has."""
    error = mismatch({"": replace(DENSE, size=384), "image": replace(ROWS, distance="euclid")})
    assert "(unnamed) (dense, size 384, cosine), image (multivector, size 8, euclid)" in error.message
    assert "dense vectors of size 8, sparse weights, colbert vectors of size 8" in error.message
    assert "dense.size is 384, wanted 8" in mismatch({"dense": replace(DENSE, size=384), "sparse": SPARSE}).message
    assert "has none" in mismatch({}).message


@pytest.mark.parametrize("name", ["dense", "vectors"])
@pytest.mark.parametrize(("kind", "vector"), [("dense", DENSE), ("colbert", ROWS)])
def test_components_of_one_byte_are_refused(name: str, kind: Kind, vector: VectorDescription) -> None:
    """They would store every vector of the model as zeros, whatever the name of theirs. The error says it."""
    error = mismatch({name if name == "vectors" else kind: replace(vector, datatype="uint8")})
    assert "uint8" in error.message


def test_sparse_weights_of_one_byte_are_used() -> None:
    """Qdrant scales weights to bytes, so they keep their order."""
    assert recognised({"lexical": replace(SPARSE, datatype="uint8")}).schema.names.sparse == "lexical"


def test_a_deferred_graph_keeps_the_edges_of_the_config() -> None:
    """While a graph is deferred, nothing but the config knows how many edges it will have."""
    assert recognised({**OWN, "dense": replace(DENSE, m=0)}).schema.dense == SCHEMA.dense
    tuned = recognised({**OWN, "dense": replace(DENSE, m=32, quantization="product", datatype="turbo4")}).schema.dense
    assert tuned is not None
    assert (tuned.m, tuned.quantization, tuned.datatype) == (32, "other", "float32")


@pytest.mark.parametrize(
    ("sample", "setting", "choices"),
    [
        ([{"body": "a", "content": "b"}], "textKey", ("content", "body")),
        ([{"year": 1}], "textKey", ()),
        ([{"page_content": "a", "content": "b", "meta": {}, "metadata": {}, "id": "c"}], "layout",
         ("langchain", "haystack")),
    ],
)  # fmt: skip
def test_points_are_written_only_in_a_certain_form(
    sample: list[Mapping[str, Any]], setting: str, choices: tuple[str, ...]
) -> None:
    """Where the points leave the form open, they can be read; a write needs the request's text key or a setting."""
    found = recognise("notes", SCHEMA, described(OWN), sample)
    assert found.read_by(None) is found.schema
    with pytest.raises(SchemaMismatch, match="QDRANT_COLLECTION_CONFIG") as caught:
        found.written_by(None)
    assert caught.value.choices == {setting: choices}
    schema = found.written_by("body")
    assert (schema.layout, schema.text_key) == ("plain", "body")


def test_a_text_key_of_the_request_does_not_break_a_set_layout() -> None:
    """The layout of the config is written and read, whatever key the request gives."""
    wanted: CollectionSchema = replace(SCHEMA, layout="langchain", colbert=COLBERT)
    found = recognise("notes", wanted, described(OWN), [{"text": "a"}])
    assert found.written_by("body").layout == found.read_by("body").layout == "langchain"
