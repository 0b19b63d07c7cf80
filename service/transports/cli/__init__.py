"""The command `bge-m3-qdrant`: `main` is the program, `commands` declare arguments, the other files do the work."""
