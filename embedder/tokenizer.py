"""Texts to token ids, exactly as the reference tokenizes them, and whether they had to be cut."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedder.blanks import SPACE, LongBlanks
from embedder.cancellation import check_cancelled
from embedder.checkpoint.damage import TOKENIZER_MAX_BYTES, read_bytes, read_object, readable
from embedder.errors import ConfigurationError

# Defaults of XLM-RoBERTa, for a tokenizer_config.json that leaves them out.
_SPECIAL = {"cls_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

_MARK = "\u2581"
"""First character of a vocabulary piece that begins a word."""

_HEAD_CHARACTERS_PER_TOKEN: Final = 16
"""Characters per token of the limit that are read of a text at first: four times what a token of prose has."""

_READ_CHARACTERS_PER_TOKEN: Final = 64
"""Characters per token of the limit beyond which no text is read."""

_READ_MIN_CHARACTERS: Final = 65_536
"""Characters that are read of any text, if the limit needs them."""

_HEAD_MARGIN_TOKENS: Final = 8
"""Tokens beyond the limit that the head of a text must have: its last ones may differ in the whole text."""

_ALONE_MAX_CHARACTERS: Final = 512
"""Characters of texts that are encoded in 0.1 ms, during which no other thread runs Python."""

_ALONE_MAX_TEXTS: Final = 8
"""Most of such texts."""

PORTION_MAX_CHARACTERS: Final = 131_072
"""Characters that are tokenized together: about 30 000 tokens of prose, in 50 ms on two cores.

The library does one portion after another, whichever thread it comes from, so that a short text waits for no more than
that; and it takes up to 300 bytes for each character until the portion is done.
"""

_PLACED_MAX_CHARACTERS: Final = 16_384
"""Characters whose tokens' places are read together: in 3 ms, during which no other thread runs Python."""

_TO_LAST_SPACE: Final = re.compile(rf".*{SPACE}", re.DOTALL)
_VISIBLE: Final = re.compile(r"\S")
_INVISIBLE: Final = [
    chr(code)
    for first, last in (
        (0x0, 0x20),
        (0x7F, 0xA0),
        (0xAD, 0xAD),
        (0x61C, 0x61C),
        (0x1680, 0x1680),
        (0x180E, 0x180E),
        (0x2000, 0x200F),
        (0x2028, 0x202F),
        (0x205F, 0x206F),
        (0x3000, 0x3000),
        (0xFEFF, 0xFEFF),
    )
    for code in range(first, last + 1)
]
"""White space, control and format characters: what a tokenizer may drop, or take for a space."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What token ids mean: sparse vectors of two models can be compared only if this is equal.

    Attributes:
        digest: SHA-256 of the tokenizer's file, in hexadecimal.
        dropped_ids: ids of special tokens, ascending, which carry no sparse weight.
    """

    digest: str
    dropped_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedText:
    """One text as the model sees it.

    Attributes:
        ids: int32 [T], `<s>` ... `</s>`, T >= 2 and at most the limit asked for.
        truncated: whether some of the text was left out to keep to the limit.
    """

    ids: NDArray[np.int32]
    truncated: bool

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class PlacedText:
    """One text as the model sees it, and the span of the text that each token stands for.

    Attributes:
        ids: int32 [T], as in `EncodedText`.
        spans: int32 [T, 2], start and end of each token in characters; both -1 for what no character stands for:
            the tokens around the text, and a bare mark of a word's beginning.
    """

    ids: NDArray[np.int32]
    spans: NDArray[np.int32]

    def span(self, token: int) -> tuple[int, int] | None:
        """Start and end of a token in characters, or None if no character stands for it."""
        start, end = self.spans[token].tolist()
        return None if start < 0 else (start, end)


class Tokenizer:
    """The tokenizer of a checkpoint. Stateless after construction, hence safe to share by threads.

    Truncation is done here rather than in the library, whose own is mutable state on the shared
    object (`Already borrowed` under threads); the result is the same: the last token stays `</s>`.

    Args:
        checkpoint: a folder in the published layout.
        portion_characters: characters that are tokenized together, at most; a single text may be more.

    Raises:
        ConfigurationError: a file is missing, damaged or unreadable, or is the tokenizer of another kind of model.
    """

    def __init__(self, checkpoint: Path, *, portion_characters: int = PORTION_MAX_CHARACTERS) -> None:
        from tokenizers import Tokenizer as FastTokenizer

        path = checkpoint / "tokenizer.json"
        if not path.is_file():
            raise ConfigurationError("MODEL_ID: the checkpoint has no tokenizer.json")
        content = read_bytes(path, TOKENIZER_MAX_BYTES)
        with readable(path.name, ValueError):
            self._tokenizer = FastTokenizer.from_buffer(content)
        self._portion_characters = portion_characters
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        names = _SPECIAL | _special_names(checkpoint / "tokenizer_config.json")
        looked_up = {role: self._tokenizer.token_to_id(token) for role, token in names.items()}
        ids = {role: token_id for role, token_id in looked_up.items() if token_id is not None}
        missing = [name for role, name in names.items() if role not in ids]
        if missing:
            raise ConfigurationError(f"MODEL_ID: tokenizer.json lacks the special tokens {missing}")
        empty = self._tokenizer.encode("").ids
        if empty != [ids["cls_token"], ids["eos_token"]]:
            raise ConfigurationError(
                f"MODEL_ID: tokenizer.json encodes an empty text as {empty}, "
                f"not as [{ids['cls_token']}, {ids['eos_token']}] (<s> </s>)"
            )
        self.dropped_ids = frozenset(ids.values())
        """Ids of `<s>`, `</s>`, `<pad>` and `<unk>`, which carry no sparse weight."""
        self.vocabulary = Vocabulary(hashlib.sha256(content).hexdigest(), tuple(sorted(self.dropped_ids)))
        self.vocabulary_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._bos, self._eos = ids["cls_token"], ids["eos_token"]
        self.blanks = self._blanks()
        """Long runs of blanks; no run is one where white space itself has tokens."""

    def encode(self, texts: Sequence[str], max_length: int) -> list[EncodedText]:
        """Tokenize, cutting each text to `max_length` tokens (>= 3), special tokens included.

        Of a long text only the head is read, as far as the limit needs it: what a text takes in time and memory
        depends on the limit, not on its length. The tokens are those of the whole text, with two exceptions:

        - A word that is longer than 8 characters for each token of the limit may be cut where the head ends. If it
          repeats one pattern all along, such as `000...`, it may be divided elsewhere than in full: a piece near its
          beginning is longer or shorter, and those behind it are moved by a few characters.
        - A text that has not enough tokens in 64 characters for each of the limit, and 65 536 in all, ends there,
          and is `truncated` if more follows (see `max_characters`). Long runs of white space are not counted; what has
          so few tokens beside them are characters that the vocabulary lacks, a whole word of which is one token.

        Raises:
            UnicodeEncodeError: a text holds a lone surrogate.
        """
        return [text for portion in self.portions(texts, max_length) for text in portion]

    def max_characters(self, max_length: int) -> int:
        """Characters of a text, its long runs of blanks counted as one, beyond which `encode` does not read it."""
        return max(_READ_CHARACTERS_PER_TOKEN * max_length, _READ_MIN_CHARACTERS)

    def portions(
        self, texts: Sequence[str], max_length: int, *, first_characters: int | None = None
    ) -> Iterator[list[EncodedText]]:
        """The same texts as `encode`, portion by portion.

        Args:
            texts: as `encode` takes them.
            max_length: the same.
            first_characters: of the first portion, at most; each next one has up to twice as many, until they are as
                many as are tokenized together. None gives every portion as many as that.

        Raises:
            UnicodeEncodeError: a text holds a lone surrogate; before the first portion.
            Cancelled: nobody waits for the texts any more; before any portion.
        """
        check_unicode(texts)
        first = most = self._portion_characters
        if first_characters is not None:
            first = min(first_characters, most)
        for portion in _portions(texts, _HEAD_CHARACTERS_PER_TOKEN * max_length, first, most):
            check_cancelled()
            yield self._heads(portion, max_length)

    def wrapped(self, ids: Sequence[int]) -> EncodedText:
        """Token ids from the caller as a text, between `<s>` and `</s>` unless they stand there already.

        Raises:
            ValueError: an id is not in the vocabulary; the message gives its index and the size of the vocabulary.
        """
        for index, token_id in enumerate(ids):
            if not 0 <= token_id < self.vocabulary_size:
                raise ValueError(f"[{index}] must be a token id from 0 to {self.vocabulary_size - 1}")
        framed = len(ids) >= 2 and (ids[0], ids[-1]) == (self._bos, self._eos)
        whole = ids if framed else [self._bos, *ids, self._eos]
        return EncodedText(np.array(whole, dtype=np.int32), truncated=False)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before `encode` cuts it, special tokens included.

        Raises:
            UnicodeEncodeError: a text holds a lone surrogate.
        """
        check_unicode(texts)
        return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)]

    def starts(self, text: str) -> list[int]:
        """The start of each token in characters, ascending; without the special tokens around the text.

        A long text is divided before spaces. There it may have a token or two more: within a word of thousands of
        characters, and in a run of blanks.

        Raises:
            UnicodeEncodeError: the text holds a lone surrogate.
            Cancelled: nobody waits for them any more.
        """
        check_unicode([text])
        starts: list[int] = []
        for place, part in _parts(text, _PLACED_MAX_CHARACTERS):
            check_cancelled()
            [encoding] = self._tokenizer.encode_batch([part], add_special_tokens=False)
            starts += accumulate((place + start for start, _ in encoding.offsets), max)  # neighbours can be swapped
        return starts

    def place(self, texts: Sequence[str], max_length: int) -> list[PlacedText]:
        """The ids that `encode` gives, with the span of every token in its text.

        Raises:
            UnicodeEncodeError: a text holds a lone surrogate.
        """
        check_unicode(texts)
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=True)
        return [self._placed(text, encoding, max_length) for text, encoding in zip(texts, encodings, strict=True)]

    def token(self, token_id: int) -> str:
        """The vocabulary's piece of an id."""
        return str(self._tokenizer.id_to_token(token_id))

    def word(self, token_id: int) -> str:
        """The piece of an id for a person, without the mark of a word's beginning where it has more than that."""
        piece = self.token(token_id)
        return piece.replace(_MARK, " ").strip() or piece

    def _heads(self, texts: Sequence[str], max_length: int, size: int | None = None) -> list[EncodedText]:
        """The texts by their first `size` characters; by more where these have too few tokens."""
        size = size or _HEAD_CHARACTERS_PER_TOKEN * max_length
        most = self.max_characters(max_length)
        heads = [_head(text, size) for text in texts]
        encodings = self._encodings(heads)
        encoded = []
        for text, head, encoding in zip(texts, heads, encodings, strict=True):
            if len(head) == len(text) or len(encoding) >= max_length + _HEAD_MARGIN_TOKENS:
                encoded.append(self._cut(encoding.ids, max_length))
            elif size >= most:
                more = _VISIBLE.search(text, len(head)) is not None
                encoded.append(self._cut(encoding.ids, max_length, more=more))
            else:
                encoded += self._heads([self.blanks.shortened(text, most)], max_length, min(4 * size, most))
        return encoded

    def _encodings(self, heads: list[str]) -> Sequence[Any]:
        """The library's encodings.

        A batch waits in the library behind those of other threads. It lets other threads run Python meanwhile, and is
        then late to be let in again: for a few short texts that takes longer than the encoding does.
        """
        if len(heads) <= _ALONE_MAX_TEXTS and sum(map(len, heads)) <= _ALONE_MAX_CHARACTERS:
            return [self._tokenizer.encode(head, add_special_tokens=True) for head in heads]
        return self._tokenizer.encode_batch_fast(heads, add_special_tokens=True)

    def _blanks(self) -> LongBlanks:
        words, *lengths = self.lengths(["a a", *(f"a {character} \n{character * 2} a" for character in _INVISIBLE)])
        blank = "".join(character for character, length in zip(_INVISIBLE, lengths, strict=True) if length == words)
        return LongBlanks(blank if {" ", "\n"} <= set(blank) else "")

    def _placed(self, text: str, encoding: Any, max_length: int) -> PlacedText:
        cut = self._cut(encoding.ids, max_length)
        spans = np.full((len(cut), 2), -1, dtype=np.int32)
        kept = len(cut) - 1  # the last token stands around the text, cut or not
        offsets = zip(encoding.tokens[:kept], encoding.offsets[:kept], strict=True)
        for index, (token, (start, end)) in enumerate(offsets):
            if token != _MARK:
                spans[index] = _trimmed(text, start, end) or (-1, -1)
        return PlacedText(cut.ids, spans)

    def _cut(self, ids: list[int], max_length: int, *, more: bool = False) -> EncodedText:
        if len(ids) > max_length:
            ids, more = [*ids[: max_length - 1], self._eos], True
        return EncodedText(np.array(ids, dtype=np.int32), more)


def _portions(texts: Sequence[str], counted: int, first: int, most: int) -> Iterator[list[str]]:
    """The texts in their order: `first` characters, then twice as many each time, up to `most`.

    Of each text at most `counted` characters count.
    """
    portion: list[str] = []
    size, limit = 0, first
    for text in texts:
        length = min(len(text), counted)
        if portion and size + length > limit:
            yield portion
            portion, size, limit = [], 0, min(2 * limit, most)
        portion.append(text)
        size += length
    if portion:
        yield portion


def _head(text: str, size: int) -> str:
    """The text, or about `size` characters of its beginning: whole words, unless one fills the second half."""
    if len(text) <= size:
        return text
    words = _TO_LAST_SPACE.match(text, size // 2, size)
    return text[: words.end() if words else size]


def _parts(text: str, size: int) -> Iterator[tuple[int, str]]:
    """Divide a text into parts of at most `size` characters, before a space if one is in the second half.

    Yields:
        The place of each part in the text, and the part; one for an empty text.
    """
    start = 0
    while len(text) - start > size:
        words = _TO_LAST_SPACE.match(text, start + size // 2, start + size)
        end = words.end() - 1 if words else start + size
        yield start, text[start:end]
        start = end
    yield start, text[start:]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    """The span without the white space around it, or None where nothing is left."""
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    end = start + len(part.strip())
    return (start, end) if start < end else None


def check_unicode(texts: Iterable[str]) -> None:
    """Look for what no text may hold.

    Raises:
        UnicodeEncodeError: a text holds a lone surrogate.
    """
    for text in texts:
        text.encode("utf-8")  # the library reports a lone surrogate as a TypeError without a place


def _special_names(path: Path) -> dict[str, str]:
    """The special tokens a tokenizer_config.json names: plain strings or AddedToken objects."""
    if not path.is_file():
        return {}
    config = read_object(path)
    names = {}
    for role in _SPECIAL:
        value = config.get(role)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            names[role] = value
    return names
