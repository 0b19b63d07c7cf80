"""This engine beside the original design and m3serve, on one machine, in one run: `make bench`."""
