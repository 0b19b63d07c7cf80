"""Jobs with the same document run one after the other."""

from __future__ import annotations

import threading

from qdrant_sink.writing import DocumentLocks

PATIENCE_S = 30.0


def test_a_document_is_held_by_one_job_at_a_time() -> None:
    """A job waits for jobs that hold any of its documents, and not for others."""
    locks = DocumentLocks()
    held = threading.Event()

    def take() -> None:
        with locks.held("c", {"2", "3"}):
            held.set()

    with locks.held("c", {"1", "2"}):
        thread = threading.Thread(target=take)
        thread.start()
        with locks.held("c", {"3"}):
            assert not held.is_set()
        assert not held.wait(0.05)
    assert held.wait(PATIENCE_S)
    thread.join()


def test_the_same_document_in_another_collection_is_another_one() -> None:
    """Documents of different collections can be held at the same time."""
    locks = DocumentLocks()
    with locks.held("c", {"1"}), locks.held("d", {"1"}), locks.held("c", {"2"}):
        pass
