"""Long documents to chunks that the model takes whole, on boundaries that a reader would choose.

    condense blanks -> window of the document -> splitter, by estimated tokens -> count exactly -> keep, or shorten

The boundaries are those of `semantic-text-splitter`: runs of newlines before sentences before words (Unicode
TR 29), and as much of the text in a chunk as fits. The library tokenizes whatever it weighs, a dozen times the
document where sentences are plain and without bound where they are not: half a million characters without a space
took it 156 s with the tokenizer of `mini`. So it is shown one window after another, and what it asks is answered
from the places of the window's tokens: the same chunks in 1.4 s, since a document is tokenized about twice,
whatever it looks like. Nor does every setting keep a second copy of the tokenizer.

Where chunks overlap, the library goes back over every line of the overlap and looks at all further lines each
time. Blank lines have no tokens, so an overlap holds any number of them: 18 000 characters of them took it 12 s. So
it sees a long run of what has no tokens as the newlines in it, at most eight, which say as much about paragraphs.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from embedder.blanks import LongBlanks
from embedder.cancellation import check_cancelled
from embedder.errors import InvalidRequest
from embedder.tokenizer import Tokenizer

CHUNK_MIN_TOKENS: Final = 32
"""Least limit of tokens per chunk. The longest single character, U+FDFA, normalises to 18 tokens and always fits."""

_SPECIAL_TOKENS: Final = 2  # <s> and </s>, which `Tokenizer` insists on
_WINDOW_CHARACTERS_PER_TOKEN: Final = 64  # of a chunk: the window holds about 16 chunks of English
_RETRY_CHARACTERS_PER_TOKEN: Final = 8  # the same after an estimate has failed, as it may fail again

_NEWLINES: Final = re.compile(r"(?:\r\n){1,8}|\r{1,8}|\n{1,8}")
"""Replacement for a long run of blanks before the splitter sees it. Shorter runs stay as they are."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document: `document[start:end]`, counted in Unicode code points."""

    start: int
    end: int


class Chunker:
    """Splits documents by the tokens of a checkpoint. Stateless, hence safe to share by threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def split(self, text: str, *, max_tokens: int, overlap: int) -> list[Chunk]:
        """Chunks in the order of the text, at least one; every character but white space is in one of them.

        A document that fits is one chunk, all of it; so is a blank one. Otherwise no chunk begins with white space,
        and each ends further on than the one before. Blocking, about two seconds per million characters.

        Args:
            text: the document.
            max_tokens: most tokens of a chunk when it is encoded, special tokens included.
            overlap: most tokens that a chunk repeats of the one before, whole sentences where they fit; at most
                half of `max_tokens`, since more would multiply the chunks rather than join them.

        Raises:
            InvalidRequest: `max_tokens` or `overlap` is out of range.
            UnicodeEncodeError: the text holds a lone surrogate.
            Cancelled: nobody waits for the chunks any more. It is asked before each window and each look of the library
                at a part of it.
        """
        if max_tokens < CHUNK_MIN_TOKENS:
            raise InvalidRequest(f"chunk.maxTokens must be at least {CHUNK_MIN_TOKENS}, got {max_tokens}")
        if not 0 <= overlap <= max_tokens // 2:
            most = max_tokens // 2
            raise InvalidRequest(f"chunk.overlap must be from 0 to half of maxTokens, {most}, got {overlap}")
        condensed = _condensed(text, self._tokenizer.blanks)
        chunks = [condensed.original(chunk) for chunk in self._split(condensed.text, max_tokens, overlap)]
        return list(_complete(text, chunks)) or [Chunk(0, len(text))]

    def _split(self, text: str, max_tokens: int, overlap: int) -> list[Chunk]:
        """The chunks of a text without long runs of blanks; none if the text fits or is blank."""
        chunks: list[Chunk] = []
        start, size = 0, _WINDOW_CHARACTERS_PER_TOKEN * max_tokens
        widest = self._tokenizer.max_characters(max_tokens) // max_tokens
        while True:
            check_cancelled()
            window = text[start : start + size]
            last = start + size >= len(text)
            starts = self._tokenizer.starts(window)
            if last and not start and max(len(starts), len(window) // widest) + _SPECIAL_TOKENS <= max_tokens:
                return []
            pieces = _pieces(window, _counter(window, starts, widest), max_tokens - _SPECIAL_TOKENS, overlap)
            resume = len(window)
            if not last:
                if len(pieces) < 2:  # no chunk that ends before the window does
                    size *= 2
                    continue
                resume = pieces.pop().start
            kept = self._proven(window, pieces, max_tokens)
            size = min(2 * size, _WINDOW_CHARACTERS_PER_TOKEN * max_tokens)
            if kept != pieces:
                last, resume, size = False, kept[-1].end, _RETRY_CHARACTERS_PER_TOKEN * max_tokens
            for chunk in kept:
                if not chunks or start + chunk.end > chunks[-1].end:
                    chunks.append(Chunk(start + chunk.start, start + chunk.end))
            if last:
                return chunks
            start += resume

    def _proven(self, window: str, pieces: list[Chunk], max_tokens: int) -> list[Chunk]:
        """`pieces` if all of it fits; otherwise up to the first chunk that does not, and of that what fits."""
        lengths = self._tokenizer.lengths([window[chunk.start : chunk.end] for chunk in pieces])
        for index, length in enumerate(lengths):
            if length > max_tokens:
                return [*pieces[:index], self._shortened(window, pieces[index], max_tokens)]
        return pieces

    def _shortened(self, window: str, chunk: Chunk, max_tokens: int) -> Chunk:
        text = window[chunk.start : chunk.end]
        end = _pieces(text, self._tokens, max_tokens - _SPECIAL_TOKENS, 0)[0].end
        while end > 1 and self._tokens(text[:end]) + _SPECIAL_TOKENS > max_tokens:
            end //= 2  # what has fewer bytes than a chunk has tokens, the library takes to fit
        return Chunk(chunk.start, chunk.start + end)

    def _tokens(self, text: str) -> int:
        check_cancelled()
        return self._tokenizer.lengths([text])[0] - _SPECIAL_TOKENS


@dataclass(frozen=True, slots=True)
class _Condensed:
    """A text in which some runs of blank characters are shorter.

    Attributes:
        text: what is left of it.
        ends: where each run that was shortened ends in `text`, ascending.
        gone: characters that are missing from the text before the first of these places, before the second, and
            so on; one more than `ends`.
    """

    text: str
    ends: list[int]
    gone: list[int]

    def original(self, chunk: Chunk) -> Chunk:
        """The span of a chunk of `text` in the whole text."""
        return Chunk(self._offset(chunk.start), self._offset(chunk.end - 1) + 1)

    def _offset(self, character: int) -> int:
        return character + self.gone[bisect_right(self.ends, character)]


def _condensed(text: str, blanks: LongBlanks) -> _Condensed:
    """Every long run that separates words is as many newlines as it has in a row, or else a space."""
    parts: list[str] = []
    ends: list[int] = []
    gone = [0]
    end = read = 0
    for run in blanks.runs(text):
        short = max(_NEWLINES.findall(run[0]), key=_count, default=" ")
        parts += text[read : run.start()], short
        end += run.start() - read + len(short)
        read = run.end()
        ends.append(end)
        gone.append(read - end)
    return _Condensed("".join([*parts, text[read:]]), ends, gone)


def _count(newlines: str) -> int:
    return len(newlines.replace("\r\n", "\n"))


def _complete(text: str, chunks: list[Chunk]) -> Iterator[Chunk]:
    """The chunks, including what is blank to the tokenizer without being white space."""
    for number, chunk in enumerate(chunks):
        start, end = chunk.start, chunk.end
        if not number:
            start -= len(text[:start].lstrip())
        following = chunks[number + 1].start if number + 1 < len(chunks) else len(text)
        yield Chunk(start, end + len(text[end:following].rstrip()))


def _pieces(text: str, size: Callable[[str], int], capacity: int, overlap: int) -> list[Chunk]:
    from semantic_text_splitter import TextSplitter

    splitter = TextSplitter.from_callback(size, capacity, overlap)
    return [Chunk(start, start + len(piece)) for start, piece in splitter.chunk_indices(text)]


def _counter(window: str, starts: list[int], widest: int) -> Callable[[str], int]:
    """Estimates the tokens of a part of the window from where the window's tokens start.

    A part that begins or ends within a word has other tokens there than the window; one more for each is
    nearly always enough. No token counts for more than `widest` characters: of a text with fewer, the end is not read.
    """

    def size(part: str) -> int:
        check_cancelled()  # the library asks up to hundreds of thousands of times for one window
        start = window.find(part)  # equal texts have equal tokens, so any occurrence serves
        end = start + len(part)
        cut = (start > 0 and not window[start - 1].isspace()) + (end < len(window) and not window[end].isspace())
        return max(bisect_left(starts, end) - bisect_left(starts, start) + cut, len(part) // widest)

    return size
