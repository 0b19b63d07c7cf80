"""Documents are split into chunks that the model embeds whole and that end where a reader expects it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from semantic_text_splitter import TextSplitter

from embedder.checkpoint import MINI
from embedder.chunking import CHUNK_MIN_TOKENS, Chunk, Chunker
from embedder.errors import InvalidRequest
from embedder.tokenizer import Tokenizer
from tests.embedder.bench import Bench
from tests.embedder.texts import TEXTS

SENTENCES = [f"The library number {n} parses configuration files, and writes them again. " for n in range(400)]
WITHOUT_SPACES = {
    "one word": "a" * 3000,
    "digits and letters": "".join(f"{n:x}" for n in range(3000)),
    "one grapheme": "e" + "\u0301" * 3000,
    "chinese": "\u5411\u91cf\u6570\u636e\u5e93\u652f\u6301\u7a00\u758f\u548c\u7a20\u5bc6\u68c0\u7d22\u3002" * 200,
    "thai": "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22\u0e40\u0e1b\u0e47\u0e19\u0e20\u0e32\u0e29\u0e32" * 200,
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466" * 400,
    "one character for eighteen": "\ufdfa" * 60,
    "special tokens": "<s></s><mask><pad>" * 400,
    "punctuation": ".,;:" * 800,
    "no-break spaces": "word\u00a0" * 800,
}
WITH_SPACES = {
    "arabic": "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645. " * 300,
    "lines": "one line of the log\n" * 400,
    "blank lines": "a paragraph of text\n\n\n" * 400,
    "space between": "start" + " " * 9000 + "\n" * 9000 + "end",
    "blank lines with spaces": "a paragraph of text" + " \n" * 3000 + "and another one",
    "zero-width spaces": "\u200b \n" * 3000 + "a paragraph of text" + "\u200b\n" * 3000,
    "separators that only Python calls space": "a\x1c" * 2000,
}
PARTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from([*TEXTS.values(), *SENTENCES[:5], *WITHOUT_SPACES.values(), *WITH_SPACES.values()]).map(
        lambda text: text[:400]
    ),
    st.sampled_from([" ", "\n", "\r\n", "\n\n", "\t", "\u2028", "\x1c", "\x85", "", ". ", "\u3002"]),
    st.text(alphabet=" \n\r\t\u3000\u200b\x01\x1c", max_size=40),
)
DOCUMENTS = st.lists(PARTS, max_size=30).map("".join)


class Counting(Tokenizer):
    """A tokenizer that counts the characters it tokenizes."""

    characters = 0

    def starts(self, text: str) -> list[int]:
        """Count the characters and return the tokenizer's starts."""
        self.characters += len(text)
        return super().starts(text)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Count the characters and return the tokenizer's lengths."""
        self.characters += sum(map(len, texts))
        return super().lengths(texts)


class Blind(Counting):
    """A tokenizer that reports half of the tokens, so that every estimate is wrong."""

    def starts(self, text: str) -> list[int]:
        """Return the start of every second token."""
        return super().starts(text)[::2]


@pytest.fixture(scope="module")
def blind_to_controls(polyglot_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tokenizer that, like BGE-M3's, reads zero-width spaces as spaces and drops control characters."""
    path = shutil.copytree(polyglot_tokenizer, tmp_path_factory.mktemp("tokenizer") / "blind") / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    replaced = [
        {"type": "Replace", "pattern": {"Regex": "[\u200b\u200e\u200f\ufeff]"}, "content": " "},
        {"type": "Replace", "pattern": {"Regex": "[\\x01-\\x08\\x0e-\\x1f\\x7f]"}, "content": ""},
    ]
    content["normalizer"] = {"type": "Sequence", "normalizers": [*replaced, content["normalizer"]]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path.parent


@pytest.fixture(scope="module")
def tokenizers(mini: Bench, polyglot_tokenizer: Path, blind_to_controls: Path) -> list[Tokenizer]:
    """Three tokenizers: the miniature's (few scripts), one that knows most scripts, one that drops characters."""
    return [mini.tokenizer, Tokenizer(polyglot_tokenizer), Tokenizer(blind_to_controls)]


@cache
def chunker(tokenizer: Tokenizer) -> Chunker:
    """Return one chunker per tokenizer."""
    return Chunker(tokenizer)


def uncovered(text: str, chunks: Sequence[Chunk]) -> str:
    """Return the parts of the text that no chunk covers."""
    gaps, end = [], 0
    for chunk in chunks:
        gaps.append(text[end : max(end, chunk.start)])
        end = max(end, chunk.end)
    return "".join([*gaps, text[end:]])


def check(tokenizer: Tokenizer, text: str, max_tokens: int, overlap: int) -> list[Chunk]:
    """Assert the promises that hold for every document."""
    chunks = chunker(tokenizer).split(text, max_tokens=max_tokens, overlap=overlap)
    assert chunks
    for encoded in tokenizer.encode([text[chunk.start : chunk.end] for chunk in chunks], max_tokens):
        assert not encoded.truncated
    assert not uncovered(text, chunks).strip()
    for chunk, following in pairwise(chunks):
        assert chunk.start < following.start
        assert chunk.end < following.end
        assert overlap or chunk.end <= following.start
    assert chunks[0].start >= 0
    assert chunks[-1].end <= len(text)
    return chunks


@settings(max_examples=150)
@given(text=DOCUMENTS, max_tokens=st.integers(CHUNK_MIN_TOKENS, 90), data=st.data())
def test_every_chunk_is_encoded_whole_and_nothing_is_lost(
    tokenizers: list[Tokenizer], text: str, max_tokens: int, data: st.DataObject
) -> None:
    """The model truncates no chunk, every character is in a chunk, and chunking is deterministic."""
    overlap = data.draw(st.integers(0, max_tokens // 2))
    for tokenizer in tokenizers:
        chunks = check(tokenizer, text, max_tokens, overlap)
        assert chunker(tokenizer).split(text, max_tokens=max_tokens, overlap=overlap) == chunks


@pytest.mark.parametrize("overlap", [0, 16])
@pytest.mark.parametrize("name", [*WITHOUT_SPACES, *WITH_SPACES])
def test_texts_without_sentences_are_split_all_the_same(tokenizers: list[Tokenizer], name: str, overlap: int) -> None:
    """Texts without spaces, in foreign scripts or of one endless word are split into chunks that fit."""
    text = {**WITHOUT_SPACES, **WITH_SPACES}[name]
    for tokenizer in tokenizers:
        check(tokenizer, text, CHUNK_MIN_TOKENS, overlap)


def test_chunks_end_where_sentences_end(mini: Bench) -> None:
    """A chunk holds as many whole sentences as fit, without white space around them."""
    text = "".join(SENTENCES)
    chunks = check(mini.tokenizer, text, 128, 0)
    parts = [text[chunk.start : chunk.end] for chunk in chunks]
    assert all(part.startswith("The library") and part.endswith("again.") for part in parts)
    longest = max(mini.tokenizer.lengths(SENTENCES))
    assert min(mini.tokenizer.lengths(parts[:-1])) > 128 - longest


def test_paragraphs_are_kept_together(mini: Bench) -> None:
    """A chunk prefers to end with a paragraph rather than to be full."""
    paragraph = "A first sentence here. A second one follows. And a third."
    text = "\n\n".join([paragraph] * 10)
    [length] = mini.tokenizer.lengths([paragraph])
    chunks = check(mini.tokenizer, text, max(CHUNK_MIN_TOKENS, length + length // 2), 0)
    assert {text[chunk.start : chunk.end] for chunk in chunks} == {paragraph}


def test_neighbours_share_whole_sentences(mini: Bench) -> None:
    """Chunks overlap by at most the requested tokens, and by whole sentences if one fits."""
    text = "".join(SENTENCES)
    chunks = check(mini.tokenizer, text, 128, 40)
    shared = [text[following.start : chunk.end] for chunk, following in pairwise(chunks)]
    assert all(part.startswith("The library") and part.endswith("again.") for part in shared)
    assert max(mini.tokenizer.lengths(shared)) - 2 <= 40


@pytest.mark.parametrize("text", ["", " \n\t ", "\u2003", "\x1c", "short", "  short, with space around it \n"])
def test_a_document_that_fits_is_one_chunk(mini: Bench, text: str) -> None:
    """A short, empty or blank document is stored once and unchanged."""
    assert check(mini.tokenizer, text, CHUNK_MIN_TOKENS, 8) == [Chunk(0, len(text))]


def test_a_document_of_exactly_the_limit_is_one_chunk(mini: Bench) -> None:
    """The limit counts what the encoder counts, special tokens included."""
    text = "".join(SENTENCES[:20])
    [length] = mini.tokenizer.lengths([text])
    assert check(mini.tokenizer, text, length, 0) == [Chunk(0, len(text))]
    assert len(check(mini.tokenizer, text, length - 1, 0)) == 2


def test_offsets_count_characters(mini: Bench) -> None:
    """`document[start:end]` is the chunk in every language that counts code points."""
    text = "\U0001f680\u00e9\u5411 " + "".join(SENTENCES[:40])
    for chunk in check(mini.tokenizer, text, 64, 0)[1:]:
        assert text[chunk.start : chunk.end].startswith("The library")


@pytest.mark.parametrize("overlap", [0, 12])
def test_a_long_document_leaves_no_slivers(mini: Bench, overlap: int) -> None:
    """Chunks in the middle of a long document are as full as at its start."""
    text = "".join(SENTENCES)
    chunks = check(mini.tokenizer, text, 48, overlap)
    lengths = mini.tokenizer.lengths([text[chunk.start : chunk.end] for chunk in chunks])
    assert len(chunks) > 100
    assert min(lengths[:-1]) >= 24


@pytest.mark.parametrize("overlap", [0, 12])
def test_a_long_document_is_split_as_the_library_splits_it(mini: Bench, overlap: int) -> None:
    """Internal windows and the way of counting tokens do not affect the chunks."""
    text = "".join(SENTENCES)
    splitter = TextSplitter.from_callback(lambda part: mini.tokenizer.lengths([part])[0] - 2, 46, overlap)
    wanted = [Chunk(start, start + len(part)) for start, part in splitter.chunk_indices(text)]
    assert check(mini.tokenizer, text, 48, overlap) == wanted


@pytest.mark.parametrize(("words", "max_tokens"), [(5, 38), (11, 41)])
def test_no_chunk_repeats_what_the_one_before_has(mini: Bench, words: int, max_tokens: int) -> None:
    """If a window ends within an overlap, the next chunk still extends beyond the previous one."""
    lines = ["a few words " * (n % words) + "and an end." + "\n" * (n % 2) + " " for n in range(300)]
    check(mini.tokenizer, "".join(lines), max_tokens, 16)


def test_sentences_stay_whole_where_the_estimate_fails() -> None:
    """A chunk that exceeds its limit is shortened by whole sentences, and the rest goes into the next one."""
    text, tokenizer = "".join(SENTENCES), Blind(MINI)
    chunks = check(tokenizer, text, 64, 16)
    parts = [text[chunk.start : chunk.end].strip() for chunk in chunks]
    assert all(part.startswith("The library") and part.endswith("again.") for part in parts)
    assert tokenizer.characters < 30 * len(text)


def test_a_blank_document_is_one_chunk_for_every_tokenizer(small_checkpoint: Path) -> None:
    """A long blank document is exactly one chunk, even if white space counts as tokens."""
    path = small_checkpoint / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    path.write_text(json.dumps(content), encoding="utf-8")
    tokenizer = Tokenizer(small_checkpoint)
    assert tokenizer.lengths([" " * 500]) > [CHUNK_MIN_TOKENS]
    assert Chunker(tokenizer).split(" " * 500, max_tokens=CHUNK_MIN_TOKENS, overlap=0) == [Chunk(0, 500)]


@pytest.mark.parametrize(
    "text",
    [
        "".join(SENTENCES),
        "no end of the sentence " * 2000 + "\n\n\nend",
        "word " * 5000,
        "a" * 30_000,
        "\u5411\u91cf\u6570\u636e\u5e93" * 5000,
        WITHOUT_SPACES["digits and letters"],
        WITH_SPACES["separators that only Python calls space"],
    ],
    ids=["sentences", "a distant newline", "words", "one word", "chinese", "digits and letters", "separators"],
)
def test_the_work_grows_with_the_document_and_not_with_its_square(text: str) -> None:
    """A hostile document cannot block a worker: each character is tokenized only a few times."""
    tokenizer = Counting(MINI)
    Chunker(tokenizer).split(text, max_tokens=64, overlap=16)
    assert tokenizer.characters < 6 * len(text)


@pytest.mark.parametrize(
    "blank", [" \n", "\n", " ", "\r\n", "\t\n", "\u2003\n", "\u200b\n", "\x01 \n", "\u200b\x01\x02\n"]
)
def test_blank_lines_are_no_work(blind_to_controls: Path, blank: str) -> None:
    """The splitter reads few lines without tokens, however many there are: no overlap goes back over them."""
    tokenizer = Counting(blind_to_controls)
    few, many = ("".join(SENTENCES[:40]) + blank * count + "".join(SENTENCES[40:80]) for count in (20, 20_000))
    chunks = check(tokenizer, many, 64, 16)
    tokenizer.characters = 0
    assert Chunker(tokenizer).split(many, max_tokens=64, overlap=16) == chunks
    assert tokenizer.characters < 6 * len(few)
    words = [re.findall(r"\w+", many[chunk.start : chunk.end]) for chunk in chunks]
    assert words == [re.findall(r"\w+", few[chunk.start : chunk.end]) for chunk in check(tokenizer, few, 64, 16)]


def test_paragraphs_stay_paragraphs_however_much_white_space_is_between(mini: Bench) -> None:
    """Spaces around the newlines, or hundreds of newlines, give the same chunks as two newlines."""
    paragraph = "A first sentence here.\nA second one follows.\nAnd a third."
    [length] = mini.tokenizer.lengths([paragraph])
    for between in ("\n" * 300, " " * 20 + "\n\n" + "\t" * 20, "\r\n" * 50, "\n\n \n\t\n\n\n \n"):
        text = between.join([paragraph] * 10)
        chunks = check(mini.tokenizer, text, max(CHUNK_MIN_TOKENS, length + length // 2), 0)
        assert {text[chunk.start : chunk.end] for chunk in chunks} == {paragraph}


@pytest.mark.parametrize("unknown", ["\ue000" * 150_000, ("\ue000" * 4999 + " ") * 30], ids=["a word", "words"])
def test_characters_without_tokens_of_their_own_fill_chunks_too(mini: Bench, unknown: str) -> None:
    """A word outside the vocabulary is one token; its chunks stay as short as the embedded part."""
    assert mini.tokenizer.lengths([unknown]) < [100]
    assert len(check(mini.tokenizer, f"{unknown}\n{SENTENCES[0]}", 256, 16)) > 2


def test_threads_share_a_chunker(mini: Bench) -> None:
    """Jobs that split concurrently with different limits get the same chunks as each would alone."""
    shared, text = Chunker(mini.tokenizer), "".join(SENTENCES[:100])
    limits = [32 + 8 * n for n in range(8)]
    alone = [shared.split(text, max_tokens=limit, overlap=limit // 4) for limit in limits]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda n: shared.split(text, max_tokens=n, overlap=n // 4), limits)) == alone


def test_what_cannot_be_split_so_is_refused(mini: Bench) -> None:
    """The error message names the field, the limit and the value."""
    splits = chunker(mini.tokenizer)
    with pytest.raises(InvalidRequest, match=r"^chunk\.maxTokens must be at least 32, got 31$"):
        splits.split("text", max_tokens=31, overlap=0)
    for overlap in (-1, 33):
        with pytest.raises(InvalidRequest, match=rf"^chunk\.overlap must be from 0 to .* 32, got {overlap}$"):
            splits.split("text", max_tokens=64, overlap=overlap)
    with pytest.raises(UnicodeEncodeError):
        splits.split("secret \ud800", max_tokens=64, overlap=0)
