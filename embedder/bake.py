"""`python -m embedder.bake ORGANISATION/NAME [REVISION]`: prefetch a model into the image that is being built."""

from __future__ import annotations

import sys

from embedder.checkpoint.prefetch import prefetch
from embedder.errors import ConfigurationError


def main(arguments: list[str]) -> int:
    """Prefetch the model that the arguments name.

    Returns:
        The exit status: 0, or 2 if the arguments or the model cannot be used.
    """
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m embedder.bake ORGANISATION/NAME [REVISION]", file=sys.stderr)  # noqa: T201
        return 2
    try:
        prefetch(*arguments)
    except ConfigurationError as error:
        print(f"refusing to bake: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
