"""Texts become exactly the ids of the checkpoint's tokenizer, from any number of threads."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer

from embedder import tokenizer
from embedder.errors import ConfigurationError
from embedder.tokenizer import Tokenizer
from tests.embedder.bench import Bench
from tests.embedder.checkpoints import edit
from tests.embedder.texts import TEXTS

ROOT = Path(__file__).parents[2]


def test_a_text_within_the_limit_is_whole(mini: Bench) -> None:
    """A text of exactly the limit is not cut and not marked as truncated."""
    (free,) = mini.tokenizer.encode(["one library of many tools"], 512)
    (tight,) = mini.tokenizer.encode(["one library of many tools"], len(free))
    assert tight.ids.tolist() == free.ids.tolist()
    assert not tight.truncated


def test_a_cut_text_keeps_its_first_tokens_and_its_end_token(mini: Bench) -> None:
    """Truncation removes only tokens before the closing `</s>`."""
    (free,) = mini.tokenizer.encode(["one library of many tools"], 512)
    (cut,) = mini.tokenizer.encode(["one library of many tools"], len(free) - 1)
    assert cut.ids.tolist() == [*free.ids[:-2], free.ids[-1]]
    assert cut.truncated


@pytest.mark.parametrize(
    "part",
    [
        "a ",
        "a",
        "word, ",
        "word\n",
        "word\u3000",
        "\n",
        " " * 99 + "word ",
        " \n" * 9000 + "word ",
        "x" * 200 + " ",
        "e\u0301 \u0301",
        "\u4f60\u597d",
        "-",
        "ab1",
        "\ue000" * 300 + " ",
    ],
)
@pytest.mark.parametrize("max_length", [3, 100])
def test_a_long_text_begins_as_it_does_in_full(bench: Bench, part: str, max_length: int) -> None:
    """The first tokens of a truncated text equal those of the whole text, whatever its length and content."""
    text = "The beginning. " + part * (40_000 // len(part))
    (whole,) = bench.tokenizer.encode([text], 1_000_000)
    (cut,) = bench.tokenizer.encode([text], max_length)
    assert cut.truncated == (len(whole) > max_length)
    assert cut.ids[:-1].tolist() == whole.ids[: len(cut) - 1].tolist()
    assert cut.ids[-1] == whole.ids[-1]


def test_a_text_alone_has_the_tokens_that_it_has_among_others(bench: Bench) -> None:
    """A single short text uses another library call than several texts, and gets the same ids."""
    texts = list(TEXTS.values())
    together = bench.tokenizer.encode(texts, 64)
    for text, among_others in zip(texts, together, strict=True):
        (alone,) = bench.tokenizer.encode([text], 64)
        assert (alone.ids.tolist(), alone.truncated) == (among_others.ids.tolist(), among_others.truncated)


def test_many_texts_come_in_their_order(mini: Bench) -> None:
    """More texts than one call tokenizes get the same ids as each alone, in order."""
    texts = [f"number {n} " + "word" * 75_000 for n in range(4)]
    together = mini.tokenizer.encode(texts, 100_000)
    alone = [mini.tokenizer.encode([text], 100_000)[0] for text in texts]
    assert [encoded.ids.tolist() for encoded in together] == [encoded.ids.tolist() for encoded in alone]


HUGE = r"""
import resource, sys
from embedder.checkpoint import MINI
from embedder.tokenizer import Tokenizer

tokenizer = Tokenizer(MINI)
one, many = ["a " * 1_000_000], ["a " * 5_000] * 200
sparse = ["a " + "ab1" * 1_000_000, "\ue000" * 3_000_000, "a" + " " * 3_000_000 + "b", "a" + " \n" * 1_500_000]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokenizer.encode(one, 8192)
tokenizer.encode(sparse, 8192)
tokenizer.encode(sparse, 512)
tokenizer.encode(many, 512)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_a_huge_text_takes_the_memory_of_what_is_kept_of_it() -> None:
    """Millions of characters with few embedded tokens do not exhaust memory, in one text or many."""
    done = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 300_000, "kilobytes; in full it was 900 000"


def test_a_text_almost_without_tokens_ends_somewhere(mini: Bench) -> None:
    """A limited number of characters outside the vocabulary is read, and the text is marked as truncated."""
    short, long, blank = (
        "\ue000" * count + " end" + space for count, space in ((60_000, ""), (70_000, ""), (60_000, " " * 99_999))
    )
    whole, cut, padded = mini.tokenizer.encode([short, long, blank], 512)
    assert whole.ids.tolist() == padded.ids.tolist()
    assert not whole.truncated
    assert not padded.truncated
    assert len(cut) < len(whole)
    assert cut.truncated


def test_an_empty_text_is_two_tokens(mini: Bench) -> None:
    """Empty and blank texts are valid: `<s> </s>`."""
    assert [encoded.ids.tolist() for encoded in mini.tokenizer.encode(["", "  \n"], 512)] == [[0, 2], [0, 2]]


def test_nothing_gives_nothing(mini: Bench) -> None:
    """An empty list of texts gives an empty list."""
    assert mini.tokenizer.encode([], 512) == []


def test_lengths_are_those_of_the_uncut_text(bench: Bench) -> None:
    """The length of a text can be measured before embedding and equals the encoder's count."""
    texts = list(TEXTS.values())
    encoded = bench.tokenizer.encode(texts, 1_000_000)
    assert bench.tokenizer.lengths(texts) == [len(tokens) for tokens in encoded]


def test_every_token_starts_somewhere_in_the_text(bench: Bench) -> None:
    """Token starts ascend, count characters, and exist for every token but `<s>` and `</s>`."""
    for name, text in TEXTS.items():
        starts = bench.tokenizer.starts(text)
        assert len(starts) + 2 == bench.tokenizer.lengths([text])[0], name
        assert starts == sorted(starts), name
        assert all(0 <= start < len(text) for start in starts), name


def test_token_starts_count_characters(mini: Bench) -> None:
    """Two words after an emoji start at their Python string indices."""
    assert mini.tokenizer.starts("\U0001f680 one library")[-2:] == [2, 6]


def test_token_starts_of_a_long_text_are_those_of_its_parts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is divided where that changes no token; only a word of more than half a part may have one more."""
    short = [word for text in TEXTS.values() for word in re.split(r"(\s+)", text) if len(word) < 32]
    text = " ".join(short)
    long = "a" * 1000
    whole, whole_long = bench.tokenizer.starts(text), bench.tokenizer.starts(long)
    monkeypatch.setattr(tokenizer, "_PLACED_MAX_CHARACTERS", 64)
    assert bench.tokenizer.starts(text) == whole
    starts = bench.tokenizer.starts(long)
    assert starts == sorted(starts)
    assert len(whole_long) <= len(starts) <= len(whole_long) + 2 * 1000 // 64


@pytest.mark.parametrize("max_length", [3, 20, 8192])
def test_spans_are_parts_of_the_text(bench: Bench, max_length: int) -> None:
    """A located text has the ids of an encoded one and spans without white space at either end."""
    for name, text in TEXTS.items():
        (encoded,) = bench.tokenizer.encode([text], max_length)
        (placed,) = bench.tokenizer.place([text], max_length)
        assert placed.ids.tolist() == encoded.ids.tolist(), name
        assert len(placed.spans) == len(placed.ids), name
        spans = [placed.span(token) for token in range(len(placed.ids))]
        assert spans[0] is None, name
        assert spans[-1] is None, name
        for start, end in filter(None, spans):
            assert 0 <= start < end <= len(text), name
            assert text[start:end] == text[start:end].strip(), name


def test_a_span_is_the_word_of_its_token(mini: Bench) -> None:
    """A span of a lower-cased or normalised token covers the original text."""
    text = "\U0001f680  RSYNC\n\tcopies \ufb01les."
    (placed,) = mini.tokenizer.place([text], 512)
    spans = [placed.span(token) for token in range(len(placed.ids))]
    words = [(mini.tokenizer.word(i), s and text[slice(*s)]) for i, s in zip(placed.ids, spans, strict=True)]
    assert ("rsync", "RSYNC") in words
    assert ("copie", "copie") in words
    assert ("files", "\ufb01les") in words
    assert words[0] == ("<s>", None)
    assert words[-1] == ("</s>", None)
    assert all(span is None for word, span in words if word == "\u2581")


def test_special_tokens_carry_no_sparse_weight(mini: Bench) -> None:
    """`<s>`, `<pad>`, `</s>` and `<unk>` are dropped from sparse vectors; `<mask>` is not, as in FlagEmbedding."""
    assert {mini.tokenizer.token(token_id) for token_id in mini.tokenizer.dropped_ids} == {
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
    }


def test_threads_share_a_tokenizer(mini: Bench) -> None:
    """Sixteen threads with different limits get the same tokens as each would alone."""
    texts = list(TEXTS.values())
    limits = [3 + 30 * n for n in range(16)]
    alone = [[text.ids.tolist() for text in mini.tokenizer.encode(texts, limit)] for limit in limits]
    with ThreadPoolExecutor(len(limits)) as threads:
        for _ in range(3):
            results = threads.map(lambda limit: mini.tokenizer.encode(texts, limit), limits)
            assert [[text.ids.tolist() for text in encoded] for encoded in results] == alone


def test_a_lone_surrogate_is_refused(mini: Bench) -> None:
    """A lone surrogate is invalid Unicode, and the error does not quote the text."""
    with pytest.raises(UnicodeEncodeError) as caught:
        mini.tokenizer.encode(["fine", "secret \ud800 words"], 512)
    assert "secret" not in str(caught.value)


def test_limits_in_the_file_do_not_cut_or_pad(small_checkpoint: Path) -> None:
    """A tokenizer.json saved with truncation and padding switched on still gives all ids and no more."""
    path = small_checkpoint / "tokenizer.json"
    plain = Tokenizer(small_checkpoint).encode(["a", "one library of many tools"], 64)
    limited = FastTokenizer.from_file(str(path))
    limited.enable_truncation(max_length=4)
    limited.enable_padding(length=32)
    limited.save(str(path))
    encoded = Tokenizer(small_checkpoint).encode(["a", "one library of many tools"], 64)
    assert [text.ids.tolist() for text in encoded] == [text.ids.tolist() for text in plain]
    assert not any(text.truncated for text in encoded)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    """A checkpoint without tokenizer.json refuses to load and says so."""
    with pytest.raises(ConfigurationError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_named(small_checkpoint: Path, name: str, content: bytes) -> None:
    """An unreadable tokenizer file is refused, naming the file but not its folder."""
    (small_checkpoint / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=name) as caught:
        Tokenizer(small_checkpoint)
    assert str(small_checkpoint) not in str(caught.value)


def test_a_tokenizer_without_special_tokens_is_refused(small_checkpoint: Path) -> None:
    """A tokenizer that lacks a special token of XLM-RoBERTa names it."""
    edit(small_checkpoint / "tokenizer_config.json", lambda config: config.update({"cls_token": "[CLS]"}))
    with pytest.raises(ConfigurationError, match=r"\[CLS\]"):
        Tokenizer(small_checkpoint)


def test_a_tokenizer_of_another_model_is_refused(small_checkpoint: Path) -> None:
    """A tokenizer that does not put `<s>` and `</s>` around a text would give wrong vectors, and is refused."""
    edit(small_checkpoint / "tokenizer.json", lambda content: content.update(post_processor=None))
    with pytest.raises(ConfigurationError, match="encodes an empty text"):
        Tokenizer(small_checkpoint)


def test_special_tokens_are_read_in_every_notation(small_checkpoint: Path) -> None:
    """A tokenizer_config.json may give its tokens as strings or objects, or omit them."""
    plain = Tokenizer(small_checkpoint).dropped_ids
    edit(
        small_checkpoint / "tokenizer_config.json",
        lambda config: config.update(cls_token={"content": "<s>", "lstrip": False}),
    )
    assert Tokenizer(small_checkpoint).dropped_ids == plain
    (small_checkpoint / "tokenizer_config.json").unlink()
    assert Tokenizer(small_checkpoint).dropped_ids == plain
