"""Paths of URLs: the form that the server matches, and the known path that an unknown one is probably meant for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, unquote

from starlette.types import Scope

PROBES: Final = ("/ping", "/health", "/livez", "/readyz")
"""Paths that platforms ask, by any host name and also while all connections are in use."""

_SLASHES = re.compile(rb"/{2,}")

_SIMILARITY_MIN: Final = 0.7
"""Minimum similarity of a path to the known one, as `difflib` measures it; `/nowhere` and `/score` have 0.57."""

_COMPARED_MAX: Final = 64
"""Maximum characters of a path that is compared."""


def normalized(scope: Scope) -> Scope:
    """The scope of a request with single slashes in its path and none at its end.

    Clients join a base URL and a path, of which either may have the slash. A percent-encoded slash belongs to a name
    and stays.
    """
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    if b"//" not in raw and (not raw.endswith(b"/") or raw == b"/"):
        return scope
    raw = _SLASHES.sub(b"/", raw).removesuffix(b"/") or b"/"
    return {**scope, "path": unquote(raw.decode("ascii", "replace")), "raw_path": raw}


def nearest(path: str, paths: Iterable[str]) -> str | None:
    """The path that an unknown one was probably meant for; None if none is similar.

    Args:
        path: the unknown path.
        paths: the known paths; templates such as `/collections/{name}` are not compared.
    """
    if len(path) > _COMPARED_MAX:
        return None
    path = path.lower()
    candidates = [candidate for candidate in paths if "{" not in candidate and candidate != "/"]
    if suffixes := [candidate for candidate in candidates if path.endswith(candidate)]:  # behind a prefix like `/api`
        return max(suffixes, key=len)
    return next(iter(difflib.get_close_matches(path, candidates, n=1, cutoff=_SIMILARITY_MIN)), None)
