"""The sizes of a model's vectors are known without its weights."""

from __future__ import annotations

import pytest

from embedder import ConfigurationError, Embedder, ModelOptions
from embedder.checkpoint import VectorSizes, vector_sizes


def test_the_sizes_are_those_of_the_loaded_model() -> None:
    """What is read of the checkpoint is what its embedder computes."""
    loaded = Embedder.load(ModelOptions(model_id="mini", device="cpu", dtype="float32", token_budget=4096))
    try:
        sizes = VectorSizes(loaded.hidden_size, loaded.colbert_size, loaded.revision)
    finally:
        loaded.close()
    assert vector_sizes("mini") == sizes


def test_a_missing_checkpoint_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A folder without a model is an error in words."""
    with pytest.raises(ConfigurationError, match="MODEL_ID"):
        vector_sizes(str(tmp_path_factory.mktemp("empty")))
