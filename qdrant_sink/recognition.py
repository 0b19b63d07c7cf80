"""Recognise what an existing collection has: its vectors, their properties, and the form of its payloads.

A collection must have what the operator has set. Everything else is taken from the collection, so that a worker without
a config uses collections that others made. The functions are pure.

A vector is recognised by its kind and size. Where several vectors may be of one kind, the configured name decides, then
the default name. Otherwise the kind is ambiguous: no operation can use it until the operator names the vector.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, cast, get_args

from embedder.vectors import KINDS, Kind
from qdrant_sink.errors import Difference, SchemaMismatch
from qdrant_sink.payload_form import PayloadForm, configured_form, default_form, recognise_form
from qdrant_sink.schema import (
    ColbertSchema,
    CollectionSchema,
    Datatype,
    DenseSchema,
    Distance,
    Layout,
    Quantization,
    SparseSchema,
    StoredQuantization,
    VectorNames,
)
from qdrant_sink.schema_diff import UNNAMED, CollectionDescription, VectorDescription, VectorKind, differences, mismatch

_VECTOR_KINDS: Final[Mapping[Kind, VectorKind]] = {"dense": "dense", "sparse": "sparse", "colbert": "multivector"}

_CHOICES_SHOWN_MAX: Final = 10
"""Maximum choices, or vectors, in a message."""

_CHOICE_MAX_CHARACTERS: Final = 64
"""Maximum characters of a choice in a message."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken from a collection, because it differs from the config and the config does not set it.

    Attributes:
        kinds: kinds of vectors of the collection; empty if they are those of the config.
        names: names of the vectors by kind; empty if they are those of the config.
        distances: distance functions by kind, those that differ from the config.
        modifier: modifier of the sparse vector, "none" or "idf"; None if it is that of the config.
        layout: layout of the payloads; None if it is that of the config.
        text_key: key of the text, or of the object that contains it; None if it is that of the config.
    """

    kinds: tuple[Kind, ...] = ()
    names: Mapping[Kind, str] = field(default_factory=dict)
    distances: Mapping[Kind, str] = field(default_factory=dict)
    modifier: Literal["none", "idf"] | None = None
    layout: Layout | None = None
    text_key: str | None = None

    def __bool__(self) -> bool:
        """Whether anything was taken."""
        return self != Taken()

    def __str__(self) -> str:
        """Describe what was taken in one line, for the log."""
        parts = [f"{kind} is the vector {name or UNNAMED!r}" for kind, name in self.names.items()]
        if self.kinds:
            parts.insert(0, f"the kinds are {', '.join(self.kinds)}")
        parts += [f"the distance of {kind} is {distance}" for kind, distance in self.distances.items()]
        if self.modifier is not None:
            parts.append(f"the modifier of sparse is {self.modifier}")
        if self.layout is not None:
            parts.append(f"the layout of payloads is {self.layout}")
        if self.text_key is not None:
            parts.append(f"the text is under {self.text_key!r}")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True, eq=False)
class Recognised:
    """An existing collection as operations use it.

    Attributes:
        collection: name of the collection, as it was requested.
        schema: schema of the collection. Its kinds are those that are unambiguous, its layout and text key those by
            which points are read.
        form: form of the payloads.
        vectors: the names of the vectors that may be of an ambiguous kind, by kind.
        taken: what differs from the config.
    """

    collection: str
    schema: CollectionSchema
    form: PayloadForm
    vectors: Mapping[Kind, tuple[str, ...]]
    taken: Taken

    @classmethod
    def new(cls, collection: str, wanted: CollectionSchema) -> Recognised:
        """Return what a collection will be that is created with the wanted schema."""
        return cls(collection, wanted, configured_form(wanted) or default_form(wanted), {}, Taken())

    @property
    def text_key(self) -> str | None:
        """Payload key of the text, or of the object that contains it; None if it is unknown or ambiguous."""
        return self.form.text_key

    @property
    def ambiguous(self) -> dict[str, tuple[str, ...]]:
        """The choices for each setting that has to decide, such as `vectorNames.dense` and `textKey`."""
        choices: dict[str, tuple[str, ...]] = {f"vectorNames.{kind}": names for kind, names in self.vectors.items()}
        if self.form.layouts:
            choices["layout"] = self.form.layouts
        if self.form.text_keys:
            choices["textKey"] = self.form.text_keys
        return choices

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """All kinds of vectors of the collection, the ambiguous ones included."""
        return tuple(kind for kind in KINDS if kind in self.schema.kinds or kind in self.vectors)

    def require(self, kinds: Collection[Kind]) -> None:
        """Check that an operation can use these kinds.

        Raises:
            SchemaMismatch: a kind is ambiguous.
        """
        for kind, names in self.vectors.items():
            if kind in kinds:
                raise _undecided(
                    self.collection,
                    f"vectorNames.{kind}",
                    names,
                    f"has several {kind} vectors ({_shown(name or UNNAMED for name in names)})",
                    f"set vectorNames.{kind} in QDRANT_COLLECTION_CONFIG to one of them",
                )

    def taken_with(self, text_key: str | None) -> Taken:
        """Return what a request takes from the collection that gives this text key, or None."""
        return self.taken if text_key is None else replace(self.taken, layout=None, text_key=None)

    def read_by(self, text_key: str | None) -> CollectionSchema:
        """Return the schema to read texts by.

        Args:
            text_key: text key of the request; None to read by what was recognised.
        """
        return self.schema if text_key is None or self._has_fixed_key else self._plain(text_key)

    def written_by(self, text_key: str | None) -> CollectionSchema:
        """Return the schema to write points by, whose layout and text key must be certain.

        Args:
            text_key: text key of the request; None to write by what was recognised.

        Raises:
            SchemaMismatch: the layout or the text key is ambiguous or unknown.
        """
        if text_key is not None and not self._has_fixed_key:
            return self._plain(text_key)
        form = self.form
        decided_layout(self.collection, form)
        remedy = "give textKey in the request, or set textKey or layout in QDRANT_COLLECTION_CONFIG"
        if form.text_keys:
            several = f"has points with a text under several keys ({_shown(form.text_keys)})"
            raise _undecided(self.collection, "textKey", form.text_keys, several, remedy)
        if form.text_key is None:
            keys = form.partial_text_keys
            unknown = "has points whose text is under no key that all of them have"
            some = f" (some have one under: {_shown(keys)})" if keys else ""
            raise _undecided(self.collection, "textKey", keys, unknown + some, remedy)
        return self.schema

    @property
    def _has_fixed_key(self) -> bool:
        """Whether the operator has set a layout with a text key of its own."""
        return self.form.source == "config" and self.form.layout != "plain"

    def _plain(self, text_key: str) -> CollectionSchema:
        return replace(self.schema, layout="plain", text_key=text_key)


def decided_layout(collection: str, form: PayloadForm) -> Layout:
    """Return the layout of a form.

    Raises:
        SchemaMismatch: the layout is ambiguous.
    """
    if form.layouts:
        fitting = f"has points that fit several layouts ({_shown(form.layouts)})"
        raise _undecided(
            collection, "layout", form.layouts, fitting, "set layout in QDRANT_COLLECTION_CONFIG to one of them"
        )
    return form.layout


def recognise(
    collection: str, wanted: CollectionSchema, description: CollectionDescription, sample: Sequence[Mapping[str, Any]]
) -> Recognised:
    """Recognise an existing collection.

    Args:
        collection: name of the collection, for errors.
        wanted: schema of the config.
        description: the collection as its store describes it.
        sample: payloads of stored points; see `recognise_form`.

    Raises:
        SchemaMismatch: the collection lacks what the operator has set, it has no vector of the model, or no kind is
            unambiguous.
    """
    names: dict[Kind, str] = {}
    ambiguous: dict[Kind, tuple[str, ...]] = {}
    for kind in wanted.kinds:
        candidates = _candidates(kind, wanted, description)
        wanted_name = wanted.names.of(kind)
        is_required = "kinds" in wanted.explicit or wanted_name in description.vectors
        if f"vectorNames.{kind}" in wanted.explicit:
            if is_required or candidates:
                names[kind] = wanted_name
        elif wanted_name in candidates or (is_required and not candidates):
            names[kind] = wanted_name
        elif len(candidates) == 1:
            names[kind] = candidates[0]
        elif candidates:
            ambiguous[kind] = candidates
    form = recognise_form(wanted, sample)
    if not names:
        if not ambiguous:
            raise _without_vectors(collection, wanted, description)
        Recognised(collection, wanted, form, ambiguous, Taken()).require(KINDS)
    schema = _schema(wanted, description, names, form)
    unequal = differences(schema, description)
    if unequal:
        raise mismatch(collection, unequal)
    recognised = Recognised(collection, schema, form, ambiguous, Taken())
    return replace(recognised, taken=_taken(wanted, recognised))


def _candidates(kind: Kind, wanted: CollectionSchema, description: CollectionDescription) -> tuple[str, ...]:
    """The names of the vectors that can be of this kind, in alphabetical order."""
    return tuple(sorted(name for name, vector in description.vectors.items() if _is_usable(kind, wanted, vector)))


def _is_usable(kind: Kind, wanted: CollectionSchema, vector: VectorDescription) -> bool:
    if vector.kind != _VECTOR_KINDS[kind] or vector.has_byte_components:
        return False
    if kind == "sparse":
        return vector.modifier in (None, "idf")
    if kind == "colbert":
        size = None if wanted.colbert is None else wanted.colbert.size
        return vector.size == size and vector.comparator == "max_sim" and vector.distance in ("cosine", "dot")
    size = None if wanted.dense is None else wanted.dense.size
    return vector.size == size and vector.distance in get_args(Distance)


def _schema(
    wanted: CollectionSchema, description: CollectionDescription, names: Mapping[Kind, str], form: PayloadForm
) -> CollectionSchema:
    """The schema: fields that the operator has set as they are wanted, all others as the collection has them.

    A vector that cannot be of its kind keeps the wanted fields, so that the differences name what is wrong with it.
    """
    parts: dict[str, Any] = dict.fromkeys(KINDS)
    is_set = "payloadOnDisk" in wanted.explicit
    for kind, name in names.items():
        vector = description.vectors.get(name)
        part = getattr(wanted, kind)
        if vector is not None and _is_usable(kind, wanted, vector):
            explicit = {path.partition(".")[2] for path in wanted.explicit if path.startswith(f"{kind}.")}
            part = _part(kind, part, vector, explicit)
        parts[kind] = part
    return replace(
        wanted,
        **parts,
        names=VectorNames(**{kind: names.get(kind, wanted.names.of(kind)) for kind in KINDS}),
        payload_on_disk=wanted.payload_on_disk if is_set else description.payload_on_disk,
        layout=form.layout,
        text_key=form.text_key if form.layout == "plain" and form.text_key is not None else wanted.text_key,
    )


def _part(kind: Kind, wanted: Any, vector: VectorDescription, explicit: Collection[str]) -> Any:
    """The schema of one vector."""
    fields: dict[str, Any] = {
        "datatype": ("datatype", _datatype(vector.datatype)),
        "on_disk": ("onDisk", bool(vector.on_disk)),
    }
    if kind == "sparse":
        fields["modifier"] = ("modifier", vector.modifier)
    else:
        fields["distance"] = ("distance", vector.distance)
        fields["quantization"] = ("quantization", _quantization(vector.quantization))
        fields["m"] = ("m", vector.m or wanted.m)  # without edges the graph may be deferred
    if kind == "dense":
        fields["ef_construct"] = ("efConstruct", vector.ef_construct or wanted.ef_construct)
    return replace(wanted, **{name: value for name, (wire, value) in fields.items() if wire not in explicit})


def _datatype(name: str | None) -> Datatype:
    """The type by whose range vectors are validated; every other one has the range of float32."""
    return "float16" if name == "float16" else "float32"


def _quantization(name: str | None) -> StoredQuantization:
    if name is None:
        return "none"
    return cast("Quantization", name) if name in get_args(Quantization) else "other"


def _taken(wanted: CollectionSchema, recognised: Recognised) -> Taken:
    schema, form = recognised.schema, recognised.form
    names = {kind: schema.names.of(kind) for kind in schema.kinds}
    distances: dict[Kind, str] = {}
    pairs: tuple[tuple[Kind, DenseSchema | ColbertSchema | None, DenseSchema | ColbertSchema | None], ...] = (
        ("dense", schema.dense, wanted.dense),
        ("colbert", schema.colbert, wanted.colbert),
    )
    for kind, actual, default in pairs:
        if actual is not None and default is not None and actual.distance != default.distance:
            distances[kind] = actual.distance
    modifier = None
    if schema.sparse is not None and wanted.sparse is not None and schema.sparse.modifier != wanted.sparse.modifier:
        modifier = _modifier(schema.sparse)
    of_sample = form.source == "collection" and form.is_decided
    return Taken(
        kinds=() if recognised.kinds == wanted.kinds else recognised.kinds,
        names={} if all(name == wanted.names.of(kind) for kind, name in names.items()) else names,
        distances=distances,
        modifier=modifier,
        layout=form.layout if of_sample and form.layout != wanted.layout else None,
        text_key=form.text_key if of_sample and form.text_key != default_form(wanted).text_key else None,
    )


def _modifier(sparse: SparseSchema) -> Literal["none", "idf"]:
    return sparse.modifier or "none"


def _undecided(collection: str, setting: str, choices: Sequence[str], what: str, remedy: str) -> SchemaMismatch:
    return SchemaMismatch(
        f"collection {collection!r} {what}; {remedy}",
        collection=collection,
        choices={setting: tuple(choices[:_CHOICES_SHOWN_MAX])},
    )


def _without_vectors(collection: str, wanted: CollectionSchema, description: CollectionDescription) -> SchemaMismatch:
    """The error of a collection that has no vector of the model."""
    has = _shown(f"{name or UNNAMED} ({_shape(vector)})" for name, vector in sorted(description.vectors.items()))
    sizes = [
        "sparse weights" if kind == "sparse" else f"{kind} vectors of size {getattr(wanted, kind).size}"
        for kind in wanted.kinds
    ]
    unequal: list[Difference] = differences(wanted, description)
    return SchemaMismatch(
        f"collection {collection!r} has no vectors of this model and is left as it is: it has {has or 'none'}; the "
        f"model has {', '.join(sizes)}",
        collection=collection,
        differences=unequal,
    )


def _shape(vector: VectorDescription) -> str:
    """What decides whether a vector can be of the model, in words."""
    parts = [] if vector.size is None else [f"size {vector.size}", str(vector.distance)]
    parts += [str(vector.datatype)] if vector.has_byte_components else []
    return ", ".join([vector.kind, *parts])


def _shown(choices: Iterable[str]) -> str:
    """Choices for a message, bounded in number and length."""
    shown = [choice[:_CHOICE_MAX_CHARACTERS] for choice in choices]
    more = ["…"] if len(shown) > _CHOICES_SHOWN_MAX else []
    return ", ".join(shown[:_CHOICES_SHOWN_MAX] + more)
