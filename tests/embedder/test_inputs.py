"""What the model is given of a batch: texts in order of their length, and where each head finds its tokens."""

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
    """The inputs of a batch of texts by their ids."""
    return Inputs.of(TokenBatch.of([np.array(text, dtype=np.int32) for text in texts]), PAD)


@given(texts_of_ids)
def test_every_token_is_found_again(texts: list[list[int]]) -> None:
    """However texts are ordered for the model, each head finds the tokens of each text in the caller's order."""
    inputs = inputs_of(texts)
    assert sorted(map(len, texts)) == inputs.lengths.tolist()
    assert [inputs.ids[first] for first in inputs.first] == [text[0] for text in texts]
    assert inputs.ids[inputs.rows].tolist() == [token for text in texts for token in text[1:]]
    for number, text in enumerate(texts):
        assert inputs.ids[inputs.texts == number].tolist() == text


@given(texts_of_ids)
def test_positions_are_those_of_the_reference(texts: list[list[int]]) -> None:
    """Position ids are those that transformers gives each text, a literal `<pad>` in it included."""
    inputs = inputs_of(texts)
    for first, text in zip(inputs.first, texts, strict=True):
        expected = XLMRobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([text]), PAD)
        assert inputs.positions[first : first + len(text)].tolist() == expected[0].tolist()


def test_everything_is_an_int32() -> None:
    """What is copied to a GPU is one buffer of one type."""
    inputs = inputs_of([[0, 5, 6, 2], [0, 2], [0, 7, 2]])
    arrays = (inputs.lengths, inputs.ids, inputs.positions, inputs.first, inputs.rows)
    assert {str(array.dtype) for array in arrays} == {"int32"}
