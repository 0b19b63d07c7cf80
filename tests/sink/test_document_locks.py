"""Of two jobs with the same document, one follows the other."""

from __future__ import annotations

import threading

from qdrant_sink.writing import DocumentLocks

PATIENCE_S = 30.0


def test_a_document_is_held_by_one_at_a_time() -> None:
    """Who holds some of the documents that another wants is waited for; others are not."""
    locks = DocumentLocks()
    held = threading.Event()

    def take() -> None:
        with locks.held("c", "s", {2, 3}):
            held.set()

    with locks.held("c", "s", {1, 2}):
        thread = threading.Thread(target=take)
        thread.start()
        with locks.held("c", "s", {3}):
            assert not held.is_set()
        assert not held.wait(0.05)
    assert held.wait(PATIENCE_S)
    thread.join()


def test_the_same_id_elsewhere_is_another_document() -> None:
    """Collections and scopes keep documents apart; nobody waits here."""
    locks = DocumentLocks()
    with locks.held("c", "s", {1}), locks.held("d", "s", {1}), locks.held("c", "t", {1}):
        pass
