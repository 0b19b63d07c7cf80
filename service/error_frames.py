"""The memory that an answered error would keep: the local variables of every call that it went through.

A task or a future has the error that it ended with, and the error has the call that waits for it, so that all of them
stay until the garbage collector finds the circle. A refused read kept its last portion so: four megabytes each time.
"""

from __future__ import annotations

from traceback import clear_frames


def forget_frames(error: BaseException) -> None:
    """Release the local variables of the calls that an error has ended, and those of its causes.

    Calls that are still running keep theirs. The traceback still shows where the error comes from.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        cause = waiting.pop()
        if cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            clear_frames(cause.__traceback__)
            waiting += [cause.__cause__, cause.__context__]
