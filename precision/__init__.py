"""How far a faster type moves the vectors and rankings of a checkpoint from float32: `python -m precision --help`."""
