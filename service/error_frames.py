"""The memory that an answered error would keep: the local variables of every call that it went through.

A task or a future has the error that it ended with, and the error has the call that waits for it, so that all of them
stay until the garbage collector finds the circle. A refused read kept its last portion so: four megabytes each time.
"""

from __future__ import annotations


def forget_frames(error: BaseException) -> None:
    """Release the calls that an error and its causes went through, with their local variables.

    The tracebacks are let go, and no frame is cleared: several callers may have the same error, as of a call that they
    share, and its traceback then has calls of others, which a cleared frame would end.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        cause = waiting.pop()
        if cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            cause.__traceback__ = None
            waiting += [cause.__cause__, cause.__context__]
