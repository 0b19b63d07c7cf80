"""Collections by name: what a name leads to, and what that collection has.

A collection can be deleted and created again with other vectors at any time, by any client. A search then would be
answered by vectors of another distance without an error. So every use describes the collection anew, a search
concurrently with the embedding of its queries, and concurrent uses share one description. What is remembered is a guess
that is verified: what was recognised holds while the description is equal.

The form of payloads does not show in the description. A sample of points is read once, and again after
`SAMPLE_AGE_MAX_S` or where it was undecided. A write verifies the remembered form by the first points, because it would
otherwise add points that the readers of the collection do not find.

A job resolves its name once, at its start, and uses that collection until it ends, so that moving the alias does not
split the job. A read sends the requested name to the store, which resolves it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from embedder.errors import NotFound
from qdrant_sink.indexes import MissingIndexes
from qdrant_sink.payload_form import PayloadForm, configured_form, is_contradicted, layouts_of_some, recognise_form
from qdrant_sink.recognition import Recognised, decided_layout, recognise
from qdrant_sink.sampling import PAGE_POINTS, Scrolls, sample_points
from qdrant_sink.schema import CollectionSchema, Layout, PayloadIndex
from qdrant_sink.schema_diff import CollectionDescription
from qdrant_sink.shared_calls import SharedCalls

log = logging.getLogger(__name__)

SAMPLE_AGE_MAX_S: Final = 600.0
"""Seconds for which reads use the form of a sample. Points in another form can arrive without any other sign."""

UNDECIDED_AGE_MAX_S: Final = 60.0
"""Seconds for which reads use an undecided form, so that not every search reads a sample."""

REMEMBERED_MAX: Final = 1024
"""Maximum remembered collections. Requests can name any number of them."""


class Describes(Scrolls, Protocol):
    """The part of `Store` that resolves, describes, samples and creates collections."""

    def collection_of(self, name: str, /, *, patient: bool = False) -> str | None:
        """Resolve a name to its collection; None for an unknown name."""
        ...

    def description(self, collection: str, /) -> CollectionDescription:
        """Return the vectors and payload indexes of a collection."""
        ...

    def verify(
        self, collection: str, schema: CollectionSchema, description: CollectionDescription | None = None, /
    ) -> bool:
        """Whether the collection exists and `ensure` would have nothing to create."""
        ...

    def ensure(self, collection: str, schema: CollectionSchema, /) -> None:
        """Create the collection with this schema, or verify the existing one."""
        ...

    def ensure_index(self, collection: str, key: str, index: PayloadIndex, /) -> None:
        """Create a payload index unless the collection has one on this key."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Memory:
    """What was recognised under a name, from which description, and when its sample was read."""

    recognised: Recognised
    description: CollectionDescription
    sampled_at: float


class Catalogue:
    """Collections of one store. It is thread-safe, and its methods block while they call the store.

    Every method accepts an alias and raises the errors of the store; see the table in `qdrant_sink.store`.

    Args:
        open_store: function that returns the store and opens it if necessary.
        wanted: schema of the config: of new collections, and of what existing ones must match.
        clock: monotonic clock in seconds.

    Attributes:
        indexes: adds the payload indexes of the schema that collections lack.
    """

    def __init__(
        self,
        open_store: Callable[[], Describes],
        wanted: CollectionSchema,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_store = open_store
        self._wanted = wanted
        self._clock = clock
        self.indexes = MissingIndexes(wanted)
        self._reads: SharedCalls[Recognised] = SharedCalls()
        self._lock = threading.Lock()  # guards the next attribute
        self._memories: OrderedDict[str, _Memory] = OrderedDict()  # the most recently used last

    def resolve(self, name: str) -> str:
        """Resolve a name to its collection. A name that is neither a collection nor an alias is returned unchanged.

        The call is retried for as long as a write.
        """
        return self._open_store().collection_of(name, patient=True) or name

    def guess(self, name: str) -> Recognised | None:
        """Return what was recognised last, without a call to the store; None if nothing is remembered."""
        with self._lock:
            memory = self._memories.get(name)
        return None if memory is None else memory.recognised

    def recognised(self, name: str) -> Recognised:
        """Return what a collection has, to read it. Missing payload indexes are created if that is possible.

        Raises:
            NotFound: the collection does not exist.
            SchemaMismatch: see `recognise`.
        """
        return self._reads(name, lambda: self._recognised(name))

    def to_write(self, name: str, collection: str | None = None) -> Recognised | None:
        """Return what a collection has, to write to it; None if the collection does not exist.

        Args:
            name: name in the request, for errors and as the key of what is remembered.
            collection: the collection that the name was resolved to; None for the name itself. An alias that is moved
                between two calls would give the vectors of one collection and the payloads of another.

        Raises:
            SchemaMismatch: see `recognise`.
        """
        store, collection = self._open_store(), collection or name
        try:
            description = store.description(collection)
            memory = self._memory(name, description)
            is_decided = memory is not None and memory.recognised.form.is_decided
            if memory is None or not is_decided or not self._still_has(store, collection, memory):
                return self._recognise(store, name, description, collection)
        except NotFound:
            return None
        return memory.recognised

    def layouts(self, collection: str) -> tuple[Layout, ...]:
        """Return the layouts that payloads of a collection may have, whatever vectors it has.

        Where the operator has not set the layout, this is "plain" beside those of the first points, because a request
        with a text key writes plain payloads into any collection.

        Raises:
            NotFound: the collection does not exist.
            SchemaMismatch: the layout is ambiguous.
        """
        configured = configured_form(self._wanted)
        if configured is not None:
            return (configured.layout,)
        sample = list(sample_points(self._open_store(), collection).values())
        decided_layout(collection, recognise_form(self._wanted, sample))
        return ("plain", *layouts_of_some(sample))

    def form(self, name: str) -> PayloadForm:
        """Return the form of the payloads of a collection, whatever vectors it has.

        Raises:
            NotFound: the collection does not exist.
        """
        return configured_form(self._wanted) or recognise_form(self._wanted, self._sample(self._open_store(), name))

    def exists(self, name: str) -> bool:
        """Whether a collection exists that can be used. Nothing is created.

        Raises:
            SchemaMismatch: see `recognise`.
        """
        try:
            self.recognised(name)
        except NotFound:
            return False
        return True

    def ensure(self, name: str, schema: CollectionSchema | None = None) -> CollectionSchema:
        """Create the collection, or verify it and create missing payload indexes. Returns its schema.

        Args:
            name: name of the collection.
            schema: schema that the collection must have; None for the one that it has, or the wanted one if it is new.

        Raises:
            SchemaMismatch: the collection has another schema.
        """
        if schema is None:
            existing = self.to_write(name)
            schema = self._wanted if existing is None else existing.schema
        self._open_store().ensure(name, schema)
        return schema

    def _recognised(self, name: str) -> Recognised:
        store = self._open_store()
        try:
            description = store.description(name)
        except NotFound:
            raise NotFound(f"collection {name!r} does not exist") from None
        memory = self._memory(name, description)
        is_current = memory is not None and self._is_current(memory)
        recognised = memory.recognised if memory and is_current else self._recognise(store, name, description)
        if not store.verify(name, recognised.schema, description):
            self.indexes.add(store, name)
        return recognised

    def _is_current(self, memory: _Memory) -> bool:
        form, age = memory.recognised.form, self._clock() - memory.sampled_at
        if form.source == "default":
            return False  # there were no points, and one call shows whether there are any
        return form.source == "config" or age < (SAMPLE_AGE_MAX_S if form.is_decided else UNDECIDED_AGE_MAX_S)

    def _memory(self, name: str, description: CollectionDescription) -> _Memory | None:
        """What is remembered, if it holds for this description."""
        with self._lock:
            memory = self._memories.get(name)
            if memory is None or memory.description != description:
                return None
            self._memories.move_to_end(name)
            return memory

    def _still_has(self, store: Describes, collection: str, memory: _Memory) -> bool:
        """Whether the first points have the remembered form."""
        form = memory.recognised.form
        if form.source == "config":
            return True
        sample = sample_points(store, collection, points=PAGE_POINTS)
        return form.fits(list(sample.values())) if sample else form.source == "default"

    def _recognise(
        self, store: Describes, name: str, description: CollectionDescription, collection: str | None = None
    ) -> Recognised:
        sampled_at = self._clock()
        sample = [] if configured_form(self._wanted) else self._sample(store, collection or name)
        recognised = recognise(name, self._wanted, description, sample)
        with self._lock:
            before = self._memories.pop(name, None)
            self._memories[name] = _Memory(recognised, description, sampled_at)
            while len(self._memories) > REMEMBERED_MAX:
                self._memories.popitem(last=False)
        if recognised.taken and (before is None or before.recognised.taken != recognised.taken):
            log.info("collection %r is used as it is: %s", name, recognised.taken)
        return recognised

    def _sample(self, store: Describes, name: str) -> list[Mapping[str, Any]]:
        return list(sample_points(store, name, suffices=is_contradicted).values())
