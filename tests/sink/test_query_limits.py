"""A server's limits on queries (its strict mode) are told apart from its other refusals."""

from __future__ import annotations

import numpy as np
import pytest

from qdrant_sink.errors import LimitExceeded, StoreRejected
from qdrant_sink.searching.plan import Nearest, Plan
from qdrant_sink.server import ServerStore
from tests.sink.rest_double import RestDouble, refusal
from tests.sink.samples import SIZE, unit


def test_a_limit_of_the_server_is_told_apart() -> None:
    """The error of an exceeded limit has the limit and the name of the number, and shows both."""
    rest = RestDouble()
    rest.answers["POST /collections/docs/points/query/batch"] = [
        (400, {}, refusal('Bad request: Limit exceeded 3 > 2.5 for "oversampling". Help: Reduce it.'))
    ]
    store = ServerStore(f"http://127.0.0.1:{rest.port}", prefer_grpc=False)
    plan = Plan(Nearest("dense", unit(np.ones(SIZE))), (), 10)
    with pytest.raises(LimitExceeded, match=r'HTTP 400, Limit exceeded 3 > 2\.5 for "oversampling"') as raised:
        store.query("docs", [plan])
    assert (raised.value.field, raised.value.maximum) == ("oversampling", 2.5)
    assert isinstance(raised.value, StoreRejected)
    store.close()
    rest.stop()
