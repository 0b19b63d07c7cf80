"""Float32 vectors equal FlagEmbedding's for any text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.vectors import KINDS, Kind, Outputs
from tests.embedder.bench import Bench
from tests.embedder.oracle import assert_same, assert_well_formed, embed
from tests.embedder.texts import LONGER_THAN_512, TEXTS

any_texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=4)
few = settings(max_examples=20, deadline=None, derandomize=True)


def test_a_batch_of_every_kind_of_text_equals_flagembedding(bench: Bench) -> None:
    """Texts of all scripts and lengths in one batch give FlagEmbedding's dense, sparse and ColBERT vectors."""
    texts = list(TEXTS.values())
    ours = embed(bench.packed, bench.tokenizer, texts, 512)
    assert_same(ours, bench.oracle.encode(texts, 512))
    for embedding in ours:
        assert_well_formed(embedding)


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_alone_equals_flagembedding(mini: Bench, name: str) -> None:
    """A single text gets FlagEmbedding's vectors, with one ColBERT row less than tokens.

    `test_precision` shows for the other checkpoints that a single text has the vectors that it has in a batch.
    """
    (ours,) = embed(mini.packed, mini.tokenizer, [TEXTS[name]], 512)
    assert_same([ours], mini.oracle.encode([TEXTS[name]], 512))
    assert ours.colbert is not None
    assert len(ours.colbert) == ours.tokens - 1


@pytest.mark.parametrize("max_length", [3, 4, 17, 512])
def test_a_long_text_is_cut_where_flagembedding_cuts_it(bench: Bench, max_length: int) -> None:
    """A text over the limit is embedded by its first tokens and marked as truncated; a shorter one is not."""
    texts = [TEXTS["many words"], ""]
    cut, whole = embed(bench.packed, bench.tokenizer, texts, max_length)
    assert_same([cut, whole], bench.oracle.encode(texts, max_length))
    assert (cut.tokens, cut.truncated) == (max_length, True)
    assert (whole.tokens, whole.truncated) == (2, False)


@pytest.mark.slow
def test_a_text_of_8192_tokens_equals_flagembedding(long: Bench) -> None:
    """The full length of the model is used: 8192 tokens, as FlagEmbedding gives when asked for them."""
    text = " ".join(f"library {n} {name}" for n in range(900) for name in ("tools", "data"))
    (ours,) = embed(long.packed, long.tokenizer, [text], 8192)
    assert (ours.tokens, ours.truncated) == (8192, True)
    assert_same([ours], long.oracle.encode([text], 8192))


def test_a_text_is_whole_where_512_tokens_would_cut_it(long: Bench) -> None:
    """A text between 512 and 8192 tokens is embedded whole and reports no truncation."""
    texts = [TEXTS[name] for name in LONGER_THAN_512]
    for ours in embed(long.packed, long.tokenizer, texts, 8192):
        assert ours.tokens > 512
        assert not ours.truncated


@few
@given(texts=any_texts)
def test_any_unicode_equals_flagembedding(long: Bench, texts: list[str]) -> None:
    """Every valid Unicode string gets FlagEmbedding's vectors."""
    assert_same(embed(long.packed, long.tokenizer, texts, 64), long.oracle.encode(texts, 64))


@few
@given(texts=any_texts)
def test_any_unicode_equals_flagembedding_on_the_miniature(mini: Bench, texts: list[str]) -> None:
    """The miniature's normalising tokenizer, which yields many `<unk>`, also equals FlagEmbedding."""
    assert_same(embed(mini.packed, mini.tokenizer, texts, 64), mini.oracle.encode(texts, 64))


def test_the_two_engines_agree(bench: Bench) -> None:
    """`ENGINE=flagembedding` and `ENGINE=packed` give the same vectors for the same batch."""
    texts = list(TEXTS.values())
    ours = embed(bench.packed, bench.tokenizer, texts, 512)
    theirs = embed(bench.flagembedding, bench.tokenizer, texts, 512)
    assert_same(ours, theirs)
    for embedding in theirs:
        assert_well_formed(embedding)


def test_the_two_engines_describe_a_checkpoint_alike(bench: Bench) -> None:
    """Sizes and limits do not depend on the engine."""
    sizes = [
        (engine.hidden_size, engine.colbert_size, engine.max_length) for engine in (bench.packed, bench.flagembedding)
    ]
    assert sizes[0] == sizes[1]


@few
@given(texts=any_texts)
def test_the_two_engines_agree_on_any_unicode(mini: Bench, texts: list[str]) -> None:
    """Both engines give the same vectors for every valid Unicode string."""
    assert_same(embed(mini.packed, mini.tokenizer, texts, 64), embed(mini.flagembedding, mini.tokenizer, texts, 64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["packed", "flagembedding"])
def test_one_kind_alone_is_what_it_is_among_all(bench: Bench, engine: str, kind: Kind) -> None:
    """A request for one kind of vector returns that kind unchanged, and no other."""
    texts = list(TEXTS.values())[:12]
    chosen = getattr(bench, engine)
    alone = embed(chosen, bench.tokenizer, texts, 512, Outputs.of((kind,)))
    among = embed(chosen, bench.tokenizer, texts, 512)
    for embedding, all_three in zip(alone, among, strict=True):
        assert [name for name in KINDS if getattr(embedding, name) is not None] == [kind]
        if kind == "sparse":
            assert embedding.sparse is not None
            assert all_three.sparse is not None
            assert embedding.sparse.indices.tolist() == all_three.sparse.indices.tolist()
            assert embedding.sparse.values.tolist() == all_three.sparse.values.tolist()
        else:
            assert (getattr(embedding, kind) == getattr(all_three, kind)).all()
