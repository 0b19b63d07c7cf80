"""The benchmark of the GPU: engine, embedder, pool and handler beside the ceilings of the card."""
