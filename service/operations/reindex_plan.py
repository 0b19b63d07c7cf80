"""The plan of a re-index: which vectors are copied, which are embedded, and the schema of the new collection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from embedder import KINDS, InvalidRequest, Kind
from qdrant_sink import Catalogue, CollectionSchema, Store, VectorNames, default_names
from qdrant_sink.collection_state import CollectionState
from qdrant_sink.copying import SourceVectors, losses, present_kinds, reindexed_schema, source_vectors, vectors_by_kind
from qdrant_sink.schema_diff import CollectionDescription
from service.collection_config import CollectionConfig
from service.operations.reindex_model import ReindexModel
from service.operations.reindex_values import ReindexRequest
from service.operations.stored_texts import form_of_texts
from service.validation import invalid_field


@dataclass(frozen=True, slots=True)
class ReindexPlan:
    """What a request leads to.

    Attributes:
        source: the collection that the request's name leads to.
        state: that collection before the copy.
        vectors: its vectors.
        copied: kinds that are copied; all others of the schema are embedded.
        schema: schema of the new collection.
        losses: what the copied vectors are not any more, one sentence for each loss.
    """

    source: str
    state: CollectionState
    vectors: SourceVectors
    copied: tuple[Kind, ...]
    schema: CollectionSchema
    losses: tuple[str, ...]

    def comparable(self, model: ReindexModel) -> CollectionSchema | None:
        """The schema of the copied vectors that may be those of the model, by their names in the old collection."""
        sizes = {"dense": model.embedder.hidden_size, "colbert": model.embedder.colbert_size, "sparse": None}
        parts: dict[str, Any] = dict.fromkeys(KINDS)
        for kind in self.copied:
            if self.state.description.vectors[self.vectors.names.of(kind)].size == sizes[kind]:
                parts[kind] = getattr(self.schema, kind)
        return replace(self.schema, names=self.vectors.names, **parts) if any(parts.values()) else None


class ReindexPlanner:
    """Plans the copies of the collections of a store. It blocks while it reads a collection.

    Args:
        config: collection config, which describes the new collection.
        catalogue: catalogue of the store of the old collection.
        model: the model; None if nothing can be embedded.
    """

    def __init__(self, config: CollectionConfig, catalogue: Catalogue, model: ReindexModel | None) -> None:
        self._config = config
        self._catalogue = catalogue
        self._model = model

    def plan(self, request: ReindexRequest, source: str, state: CollectionState) -> ReindexPlan:
        """Plan the copy of a collection.

        Args:
            request: the request.
            source: name of the collection.
            state: its state.

        Raises:
            InvalidRequest: vectors are ambiguous, a kind can be neither copied nor embedded, or a vector would be lost
                without being asked for.
            WorkerError: the store fails.
        """
        chosen, is_limited = self._chosen_kinds(request)
        preferred = self._config.schema_for(1, 1).names
        vectors = source_vectors(
            source, state.description, preferred, request.vectors, chosen or KINDS, replaced=request.embed
        )
        present = set(chosen) or {*vectors.kinds, *request.embed}
        kinds = tuple(kind for kind in KINDS if kind in present)
        copied = tuple(kind for kind in kinds if kind not in request.embed)
        self._check_kinds(request, kinds, copied, vectors, state.description)
        if vectors.left and not is_limited:
            raise invalid_field(
                "kinds",
                f"must say which kinds the new collection has, because the vectors {_shown(vectors.left)} of "
                f"{source!r} would be left out",
            )
        schema = reindexed_schema(self._wanted(request, source, kinds, vectors, state), state, vectors, copied)
        return ReindexPlan(
            source, state, vectors, copied, schema, tuple(losses(schema, state.description, vectors, copied))
        )

    def _chosen_kinds(self, request: ReindexRequest) -> tuple[Sequence[Kind], bool]:
        """The kinds of the request or the config, and whether there are any."""
        if request.kinds:
            return request.kinds, True
        if "kinds" in self._config.model_fields_set:
            return self._config.kinds, True
        return (), False

    def _check_kinds(
        self,
        request: ReindexRequest,
        kinds: Sequence[Kind],
        copied: Sequence[Kind],
        vectors: SourceVectors,
        description: CollectionDescription,
    ) -> None:
        if request.embed and self._model is None:
            raise invalid_field("embed", "needs the model, which this process has not loaded")
        for kind in request.embed:
            if kind not in kinds:
                chosen = ", ".join(kinds)
                raise invalid_field(
                    "embed",
                    f"must be among the kinds of the new collection ({chosen}), got {kind!r}; name it there too",
                )
        for kind in copied:
            if kind not in vectors.kinds:
                raise _absent(request, kind, vectors_by_kind(description), "the collection has")
        if not kinds:
            raise invalid_field("collection", "must have a vector that can be copied, and has none")

    def check_present(self, request: ReindexRequest, plan: ReindexPlan, store: Store) -> None:
        """Check that points have vectors of the kinds that the request names, and of any kind that is copied.

        The schema of a collection may have a kind of which no point has a vector. Blocks for the store.

        Raises:
            InvalidRequest: none has.
            WorkerError: the store fails.
        """
        if not plan.copied or not plan.state.points:
            return
        present = present_kinds(store, plan.source, {kind: [plan.vectors.names.of(kind)] for kind in plan.copied})
        for kind in plan.copied:
            if kind in request.kinds and kind not in present:
                others = present_kinds(store, plan.source, vectors_by_kind(plan.state.description))
                raise _absent(request, kind, others, f"points of {plan.source!r} have")
        if not present and not request.embed:
            raise invalid_field(
                "collection",
                f"must have points with vectors of the kinds to copy ({', '.join(plan.copied)}), and no point of "
                f"{plan.source!r} has one; embed them anew",
            )

    def _wanted(
        self,
        request: ReindexRequest,
        source: str,
        kinds: Sequence[Kind],
        vectors: SourceVectors,
        state: CollectionState,
    ) -> CollectionSchema:
        """The schema of the config with these kinds, and with the form of the texts if any are embedded."""
        sizes: dict[Kind, int] = {}
        for kind in vectors.kinds:
            sizes[kind] = state.description.vectors[vectors.names.of(kind)].size or 0
        if self._model is not None:
            model_sizes: dict[Kind, int] = {
                "dense": self._model.embedder.hidden_size,
                "colbert": self._model.embedder.colbert_size,
            }
            sizes |= {kind: size for kind, size in model_sizes.items() if kind in request.embed}
        config = self._config.model_copy(update={"kinds": list(kinds)})
        schema = replace(config.schema_for(sizes.get("dense", 1), sizes.get("colbert", 1)), model=state.model)
        if not request.embed or self._model is None:
            return schema
        form = form_of_texts(self._catalogue, source, request.text_key)
        defaults = default_names(form.layout, kinds)
        names = {
            kind: (schema.names if f"vectorNames.{kind}" in schema.explicit else defaults).of(kind) for kind in KINDS
        }
        return replace(
            schema,
            names=VectorNames(**names),
            layout=form.layout,
            text_key=form.text_key or schema.text_key,
            model=self._model.identity if set(request.embed) == set(kinds) else state.model or self._model.identity,
        )


def _absent(request: ReindexRequest, kind: Kind, present: Iterable[Kind], whose: str) -> InvalidRequest:
    """The error that a kind can be neither copied nor embedded."""
    source = "" if request.kinds else " from the collection config"
    return invalid_field(
        "kinds",
        f"must be kinds that {whose} ({', '.join(present) or 'none'}) or that are embedded, got {kind!r}{source}; "
        "leave it out, or embed it",
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(repr(name or "(unnamed)") for name in names)
