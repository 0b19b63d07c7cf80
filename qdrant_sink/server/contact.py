"""The first contact with a server, before work begins that would be lost or would wait long for it."""

from __future__ import annotations

import math

from embedder.errors import WorkerError
from qdrant_sink.address import ServerAddress
from qdrant_sink.errors import StoreUnavailable
from qdrant_sink.server.connection import ServerConnection

_COLLECTION = "first-contact"
"""Name of the collection that is asked for. It need not exist."""


def check_answers(address: ServerAddress, api_key: str | None, *, timeout_s: float) -> None:
    """Check that a server answers, also with a refusal. There is no retry.

    Args:
        address: the ports of the server, and which of them are used.
        api_key: API key.
        timeout_s: timeout in seconds; twice as long where gRPC does not answer and REST is asked too.

    Raises:
        StoreUnavailable: it does not answer.
    """
    connection = ServerConnection(
        address,
        api_key,
        timeout_s=math.ceil(timeout_s),
        deadline_s=timeout_s,
        interactive_deadline_s=timeout_s,
        pause_s=0.0,
        retried=lambda: None,
        is_trial=True,
    )
    try:
        connection.try_once(_COLLECTION, lambda transport: transport.client.collection_exists(_COLLECTION))
    except StoreUnavailable as error:
        if error.retry_after_s is None:  # otherwise it has answered that it is busy
            raise
    except WorkerError:  # a key may forbid this call and allow others
        pass
    finally:
        connection.close()
