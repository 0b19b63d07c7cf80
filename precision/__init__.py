"""How far a faster type moves vectors and rankings from float32: `bge-m3-qdrant precision --help`."""
