"""The model receives a batch's texts ordered by length, and each head finds its tokens in it."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings

from embedder.engines import TokenBatch
from embedder.engines.inputs import Inputs

PAD = 1
texts_of_ids = st.lists(st.lists(st.integers(0, 30), min_size=2, max_size=9), min_size=1, max_size=12)


def inputs_of(texts: list[list[int]]) -> Inputs:
    """Return the model inputs for texts given as ids."""
    return Inputs.of(TokenBatch.of([np.array(text, dtype=np.int32) for text in texts]), PAD)


@given(texts_of_ids)
def test_every_token_is_found_again(texts: list[list[int]]) -> None:
    """However texts are ordered for the model, each head reads each text's tokens in the caller's order."""
    inputs = inputs_of(texts)
    assert sorted(map(len, texts)) == inputs.lengths.tolist()
    assert [inputs.ids[first] for first in inputs.first] == [text[0] for text in texts]
    assert inputs.ids[inputs.rows].tolist() == [token for text in texts for token in text[1:]]
    for number, text in enumerate(texts):
        assert inputs.ids[inputs.texts == number].tolist() == text


@given(texts_of_ids)
def test_positions_are_those_of_the_reference(texts: list[list[int]]) -> None:
    """Position ids equal those of transformers for each text, even with a literal `<pad>` in it."""
    inputs = inputs_of(texts)
    for first, text in zip(inputs.first, texts, strict=True):
        expected = XLMRobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([text]), PAD)
        assert inputs.positions[first : first + len(text)].tolist() == expected[0].tolist()


def test_everything_is_an_int32() -> None:
    """All inputs are int32, so that one buffer is copied to a GPU."""
    inputs = inputs_of([[0, 5, 6, 2], [0, 2], [0, 7, 2]])
    arrays = (inputs.lengths, inputs.ids, inputs.positions, inputs.first, inputs.rows)
    assert {str(array.dtype) for array in arrays} == {"int32"}
