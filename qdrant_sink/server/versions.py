"""Features for which a server may be too old, and the check of its version before they are used.

A server ignores what is newer than itself, mostly without an error. Over gRPC it drops an unknown condition from a
filter, so that a search returns and a deletion removes more than was asked for; an insert-only write overwrites, and
weights have no effect. Therefore the version is asked for before the first such request, and once a minute after that.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from embedder.errors import NotFound
from qdrant_sink.errors import FeatureMissing, NothingTaken
from qdrant_sink.filters import Filter
from qdrant_sink.searching.plan import Fuse, Lacking, Plan

log = logging.getLogger(__name__)

VERSION_MAX_AGE_S: Final = 60.0
"""Maximum age of a remembered version, because a server may be replaced by another one."""

Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Feature:
    """Part of a request, and the first version of Qdrant that understands it."""

    name: str
    since: Version


INSERT_ONLY: Final = Feature("insertOnly", (1, 17, 0))
METADATA: Final = Feature("the record of bulk loads", (1, 16, 0))
"""Metadata of collections."""
RRF_K: Final = Feature("RRF with a chosen k", (1, 16, 0))
RRF_WEIGHTS: Final = Feature("weights of an RRF", (1, 17, 0))
RERANK: Final = Feature("rerank", (1, 14, 0))
"""Formulas, which select the candidates without rows."""
ADD_VECTORS: Final = Feature("adding vectors to an existing collection", (1, 18, 0))

_CONDITIONS: Final = {
    "has_vector": (1, 13, 0),
    "phrase": (1, 15, 0),
    "text_any": (1, 15, 4),
    "prefix": (1, 19, 0),
    "slice": (1, 19, 0),
    "substring": (1, 20, 0),
}
"""First version by the name of a condition or of a match. Older conditions are known to every supported server."""

_FIELD_FLAGS: Final = {"is_empty": (1, 14, 0), "is_null": (1, 14, 0)}
"""The same for conditions that are older as objects (`{"is_empty": {"key": ...}}`) than as flags of a field."""


def filter_features(where: Filter | None) -> Iterator[Feature]:
    """Yield the features that a valid filter needs. All keys in it are names of the API and never a caller's data."""
    return _condition_features(where)


def plan_features(plans: Sequence[Plan]) -> Iterator[Feature]:
    """Yield the features that searches need. A filter that several of them share is looked through once."""
    for where in {id(plan.where): plan.where for plan in plans}.values():
        yield from filter_features(where)
    for plan in plans:
        fuse = plan.query.fuse if isinstance(plan.query, Lacking) else plan.query
        if isinstance(plan.query, Lacking):
            yield RERANK
        if isinstance(fuse, Fuse) and fuse.method == "rrf":
            yield RRF_K
            if fuse.weights is not None:
                yield RRF_WEIGHTS


class ServerVersion:
    """The version of a server. It is thread-safe.

    Args:
        clock: monotonic clock in seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latest: tuple[Version | None, float] | None = None
        self._warned = False

    def require(self, ask: Callable[[], str], features: Iterable[Feature]) -> None:
        """Check that the server understands the features. Without features, the server is not asked.

        A server that does not say its version is trusted, with one warning.

        Args:
            ask: function that asks the server for its version, such as "1.18.3".
            features: features of the next request.

        Raises:
            FeatureMissing: the server is too old.
            WorkerError: the server does not answer; see the table in `qdrant_sink.store`.
        """
        newest = max(features, key=lambda feature: feature.since, default=None)
        if newest is None:
            return
        latest = self._latest  # one read, because another thread may replace it
        if latest is not None and self._clock() - latest[1] < VERSION_MAX_AGE_S:
            version = latest[0]
            if version is None or version >= newest.since:
                return
        version = self._ask(ask)  # again before a refusal, because the server may have been updated
        if version is not None and version < newest.since:
            raise FeatureMissing(
                f"{newest.name} needs Qdrant {_shown(newest.since)}, and the server has {_shown(version)}; update the "
                f"server, or do without it"
            )

    def _ask(self, ask: Callable[[], str]) -> Version | None:
        asked_at = self._clock()
        try:
            version = _parsed(ask())
        except (NotFound, NothingTaken):  # a proxy that forwards or allows only the paths of collections
            version = None
        if version is None and not self._warned:
            self._warned = True
            log.warning(
                "Qdrant does not say its version; a server that is too old for a condition, weights or insertOnly "
                "may ignore it"
            )
        self._latest = version, asked_at
        return version


def _condition_features(part: Any) -> Iterator[Feature]:
    if isinstance(part, Mapping):
        for name, value in part.items():
            if value is None:
                continue
            since = _FIELD_FLAGS.get(name) if isinstance(value, bool) else _CONDITIONS.get(name)
            if since is not None:
                yield Feature(f"the condition {name!r} of the filter", since)
            yield from _condition_features(value)
    elif isinstance(part, list | tuple):
        for item in part:
            yield from _condition_features(item)


def _parsed(text: str) -> Version | None:
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def _shown(version: Version) -> str:
    return ".".join(map(str, version[:2] if version[2] == 0 else version))
