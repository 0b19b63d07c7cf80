"""The HTTP server in a process that may open 256 descriptors."""

from __future__ import annotations

import resource
import sys

from service.transports.http.server import main

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    sys.exit(main())
