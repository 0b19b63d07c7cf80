"""`python -m service.healthcheck`: exit status 0 if this container serves, for Docker's HEALTHCHECK.

Asks the HTTP server, which answers 204 while the model loads and 503 while it shuts down. A process without one
is healthy as long as it runs. Imports nothing but the standard library, since it starts every few seconds.
"""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Mapping


def status(environment: Mapping[str, str], *, timeout: float = 3.0) -> int:
    """The exit status: 0 healthy, 1 not (yet).

    Args:
        environment: `PORT`, and whether a RunPod queue is served instead.
        timeout: seconds.
    """
    port = environment.get("PORT")
    if not port or environment.get("RUNPOD_WEBHOOK_GET_JOB"):
        return 0
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=timeout)
    try:
        connection.request("GET", "/ping")
        return 0 if connection.getresponse().status == http.HTTPStatus.OK else 1
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(status(os.environ))
