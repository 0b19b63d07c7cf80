"""`python -m service.ask`: ask a collection from the command line, see `service.transports.cli.ask`."""

import sys

from service.shutdown import uninterrupted
from service.transports.cli.ask import main

if __name__ == "__main__":
    sys.exit(uninterrupted(main))
