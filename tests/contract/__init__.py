"""The contract test: requests of every kind, played against the service and compared with recorded answers.

    python -m tests.contract.record            play all requests, print what differs, end with 1 if anything does
    python -m tests.contract.record --write    play all requests and record their answers

`cases/` holds the requests as data, `records/` the answers, and `world.py`, `engine.py` and `faulty.py` are the only
modules that call the code of the service.
"""

import os
from typing import Final

GRPC_VERBOSITY: Final = os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
"""gRPC reads this variable on import. Calls that the double aborts need no log line."""
