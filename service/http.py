"""`python -m service.http`: the HTTP server, see `service.transports.http.server`."""

import sys

from service.transports.http.server import main

if __name__ == "__main__":
    sys.exit(main())
