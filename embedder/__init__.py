"""BGE-M3: texts to dense, sparse and ColBERT vectors, from one shared pool of models."""
