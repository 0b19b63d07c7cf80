"""Request values validate themselves for callers in Python; requests in JSON are validated before."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from embedder import Kind
from service.operations import Chunking, EmbedRequest, IngestRequest, RerankRequest, ScoreRequest, Weights

DENSE: tuple[Kind, ...] = ("dense",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (EmbedRequest, "texts or token_ids must have items, got 0 and 0"),
        (lambda: EmbedRequest(["a"], [[5]]), "texts or token_ids"),
        (lambda: EmbedRequest(["a"], max_length=0), "at least 1 token, got 0"),
        (lambda: EmbedRequest(["a"], batch_size=-1), "batch_size must be at least 0, got -1"),
        (lambda: ScoreRequest([]), "pairs must have at least 1 item, got 0"),
        (lambda: ScoreRequest([("a", "b"), ("a",)]), r"pairs\[1\] must have 2 texts, .* got 1"),
        (lambda: ScoreRequest([("a", "b")], max_passage_length=-3), "at least 1 token, got -3"),
        (lambda: Weights(dense=-1), "at least 0, got -1"),
        (lambda: Weights(colbert=float("nan")), "at least 0, .* nan"),
        (lambda: Weights(sparse=float("inf")), "finite and at least 0, .* inf"),
        (lambda: Weights(0, 0, 0), "above 0 for at least one kind of vector, got 0 for all"),
        (lambda: ScoreRequest([("a", "b")], Weights(0, 0, 1)), "above 0 for dense or sparse, got 0 for both"),
        (lambda: RerankRequest("a", [], Weights()), "documents must have at least 1 item, got 0"),
        (lambda: RerankRequest("a", ["b"], Weights(), max_document_length=0), "at least 1 token, got 0"),
        (lambda: Chunking(0, 0), "max_tokens must be at least 1, got 0"),
        (lambda: Chunking(64, 33), r"half of max_tokens \(32\), got 33"),
        (lambda: Chunking(64, -1), "got -1"),
        (lambda: IngestRequest([], DENSE), "texts must have at least 1 item, got 0"),
        (lambda: IngestRequest(["a", "b"], DENSE, ids=[1]), r"ids must have one item per text \(2\), got 1"),
        (lambda: IngestRequest(["a"], DENSE, payloads=[{}, {}]), r"payloads must .* \(1\), got 2"),
        (lambda: IngestRequest(["a"], DENSE, max_length=0), "at least 1 token, got 0"),
        (lambda: IngestRequest(["a"], DENSE, batch_size=-2), "batch_size must be at least 0, got -2"),
        (
            lambda: IngestRequest(["a"], DENSE, return_vectors=True, chunk=Chunking(64, 8)),
            "return_vectors must be False with chunk, got True",
        ),
    ],
)
def test_an_invalid_value_is_an_error(make: Callable[[], object], message: str) -> None:
    """The error names the field, the limit and the value."""
    with pytest.raises(ValueError, match=message):
        make()


def test_the_limits_are_valid() -> None:
    """Values at their limits are valid."""
    assert EmbedRequest(token_ids=[[5]], max_length=1).texts == ()
    assert ScoreRequest([("", "")], Weights(0, 1, 0)).weights.dense == 0
    assert Chunking(64, 32).overlap == 32
    assert IngestRequest([""], DENSE, ids=[1], payloads=[{}], chunk=Chunking(1, 0)).ids == [1]
