"""`python -m service.healthcheck`: whether this container serves, see `service.transports.cli.healthcheck`."""

import os
import sys

from service.transports.cli.healthcheck import status

if __name__ == "__main__":
    sys.exit(status(os.environ))
