"""`python -m service.demo`: the main job on the bundled corpus, see `service.transports.cli.demo`."""

import sys

from service.shutdown import uninterrupted
from service.transports.cli.demo import main

if __name__ == "__main__":
    sys.exit(uninterrupted(main))
