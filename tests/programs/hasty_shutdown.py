"""The HTTP server with a shutdown that waits one second for a client that does not read its answer."""

from __future__ import annotations

import sys

from service.operations import Operations
from service.settings import Settings
from service.transports.http.server import serve

if __name__ == "__main__":
    sys.exit(serve(Settings.from_environment(), Operations.build, shutdown_timeout_s=1))
