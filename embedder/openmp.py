"""The number of OpenMP's threads, which multiply matrices on a CPU; it is read from the environment as torch loads.

oneDNN divides a product among as many threads as OpenMP says there are. If a team then has fewer, because OpenMP may
choose or limit its size, parts of the product are never computed, and memory is returned as it was. So what would make
teams smaller is turned into a number of threads, which OpenMP keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from embedder.cpu_quota import cpu_quota, present_processors, usable_processors
from embedder.errors import ConfigurationError

_DYNAMIC = "OMP_DYNAMIC"
_LEVELS = "OMP_MAX_ACTIVE_LEVELS"
_SIZE = "OMP_THREAD_LIMIT"
_THREADS = "OMP_NUM_THREADS"


def configure(
    environment: MutableMapping[str, str], *, quota: float | None = None, processors: int | None = None
) -> None:
    """Set `OMP_NUM_THREADS` where fewer threads may compute than there are processors, unless the user has set less.

    OpenMP itself counts processors and knows no quota: more threads than it allows are stopped by the system in the
    middle of a product, for which the others wait. `OMP_THREAD_LIMIT` and `OMP_MAX_ACTIVE_LEVELS=0` bound the number,
    and `OMP_DYNAMIC=true` is removed: the engine itself leaves cores to others. It has an effect until torch is
    imported. Processes that this one starts inherit it.

    Args:
        environment: variables of this process, which are changed.
        quota: CPU quota in processors; None reads that of the control groups.
        processors: number of processors that this process may run on; None asks the system.
    """
    processors = present_processors() if processors is None else processors
    limit = _team_limit(environment)
    if environment.get(_THREADS):
        threads = _number(environment[_THREADS].partition(",")[0]) or processors
    else:
        quota = cpu_quota() if quota is None else quota
        threads = usable_processors(processors, quota)
        if threads < processors:
            environment[_THREADS] = str(threads)
    if limit is not None and limit < threads:
        environment[_THREADS] = str(limit)
    for name in (_LEVELS, _SIZE):
        environment.pop(name, None)
    if _is_dynamic(environment):
        del environment[_DYNAMIC]


def require_whole_teams(environment: Mapping[str, str]) -> None:
    """Check that OpenMP gives as many threads as it says: after `configure`, unless torch was imported before it.

    Args:
        environment: variables of this process.

    Raises:
        ConfigurationError: a variable makes teams smaller, and vectors would be wrong.
    """
    named = [name for name in (_LEVELS, _SIZE) if name in environment] + [_DYNAMIC] * _is_dynamic(environment)
    if named:
        raise ConfigurationError(
            f"{named[0]} was set when torch was imported, and makes products wrong on a CPU; import embedder before "
            "torch, or use OMP_NUM_THREADS"
        )


def _team_limit(environment: Mapping[str, str]) -> int | None:
    """Most threads of a team; None without a limit."""
    if environment.get(_LEVELS, "").strip() == "0":
        return 1
    return _number(environment.get(_SIZE, ""))


def _number(text: str) -> int | None:
    """A number above 0; what else it is, OpenMP ignores with a warning."""
    text = text.strip()
    return int(text) or None if text.isascii() and text.isdigit() else None


def _is_dynamic(environment: Mapping[str, str]) -> bool:
    return environment.get(_DYNAMIC, "").strip().lower() == "true"
