"""The pings of RunPod's SDK, which go on if the process that sends them ends.

The platform takes a worker without pings for dead: it gives its jobs to another one, while this one goes on with them.
The SDK sends pings from a process that it starts once and does not watch.
"""

from __future__ import annotations

import logging
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from embedder import whereabouts

log = logging.getLogger(__name__)

CHECK_INTERVAL_S: Final = 1.0
"""Time between two looks at the process, and before pings that failed begin again."""


class _JobsInProgress:
    """The jobs of this process, as the SDK's pings ask for them."""

    def get(self) -> str | None:
        """Return the ids of the jobs in progress with commas; None without any."""
        from runpod.serverless.modules.worker_state import JobsProgress

        return ",".join(job.id for job in list(JobsProgress())) or None  # copied, since the event loop changes the set


@contextmanager
def watched_pings() -> Iterator[None]:
    """Send the pings from a thread within the block, from the moment at which the SDK's process ends."""
    ending = threading.Event()
    threading.Thread(target=_watch, args=(ending,), name="pings", daemon=True).start()
    try:
        yield
    finally:
        ending.set()


def _watch(ending: threading.Event) -> None:
    process = None
    while not ending.wait(CHECK_INTERVAL_S):
        if process is None:  # the SDK starts it after its checks, and not at all without an address for pings
            process = next(iter(multiprocessing.active_children()), None)
        elif not process.is_alive():
            break
    if ending.is_set() or process is None:
        return
    log.error("the process of the SDK that pings the platform ended (status %s); pinging from here", process.exitcode)
    _ping(ending)


def _ping(ending: threading.Event) -> None:
    from runpod.serverless.modules.rp_ping import Heartbeat
    from runpod.serverless.modules.worker_state import JobsProgress

    JobsProgress().set_mirror(None)  # it shares a lock with the process, which may have ended while it held that
    while not ending.is_set():
        try:
            Heartbeat.process_loop(_JobsInProgress())
        except Exception as error:  # noqa: BLE001 - a worker without pings would lose its jobs
            log.error("a ping failed: %s", whereabouts(error))
        ending.wait(CHECK_INTERVAL_S)
