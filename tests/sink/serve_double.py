"""The double as a process of its own: `python -m tests.sink.serve_double DIRECTORY` prints its port.

It serves until its standard input ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.sink.grpc_double import GrpcDouble

if __name__ == "__main__":
    double = GrpcDouble(Path(sys.argv[1]))
    sys.stdout.write(f"{double.port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    double.stop()
