"""Program that runs the server double and prints its port: `python -m tests.sink.serve_double DIRECTORY`.

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
