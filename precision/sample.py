"""The texts of a comparison: the bundled corpus with its right answers, or the user's own files."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import corpus
from embedder.errors import ConfigurationError
from embedder.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MAX_PASSAGES = 5000
MAX_QUERIES = 1000
"""Most texts of a file that are compared: every query is scored against every passage."""
MAX_TOKENS = 300_000
"""Most tokens of a file that are compared: at 1024 dimensions its ColBERT rows take 1.2 GB in each of both types."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The texts that are embedded in both types.

    Attributes:
        passages: at least one.
        queries: none if rankings are not compared.
        answers: per query the positions in `passages` of its right answers; None if they are not known.
    """

    passages: tuple[str, ...]
    queries: tuple[str, ...] = ()
    answers: tuple[frozenset[int], ...] | None = None


def bundled() -> Sample:
    """The passages and questions of `corpus`, with their right answers."""
    passages, questions = corpus.passages(), corpus.questions()
    place = {passage.id: number for number, passage in enumerate(passages)}
    return Sample(
        tuple(passage.text for passage in passages),
        tuple(question.query for question in questions),
        tuple(frozenset(place[answer] for answer in question.answers) for question in questions),
    )


def read(passages: str | None, queries: str | None) -> Sample:
    """The sample that `--passages` and `--queries` name; neither is the bundled one, passages alone have no rankings.

    Raises:
        ConfigurationError: a file cannot be read or holds no text, or queries come without passages.
    """
    if passages is None:
        if queries is not None:
            raise ConfigurationError("--queries: needs --passages, the texts to rank")
        return bundled()
    if passages == queries == "-":
        raise ConfigurationError("--queries: the standard input is read as --passages already")
    return Sample(read_texts(passages, "--passages"), () if queries is None else read_texts(queries, "--queries"))


def read_texts(path: str, argument: str) -> tuple[str, ...]:
    """The texts of a UTF-8 file, one per line; `-` is the standard input. Blank lines and repeated texts are left out.

    Args:
        path: the file.
        argument: names it in messages.

    Raises:
        ConfigurationError: it cannot be read, is not UTF-8 or holds no text.
    """
    try:
        content = (sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{argument}: {path} is not UTF-8 (byte {error.start})") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no valid path"
        raise ConfigurationError(f"{argument}: {path} cannot be read ({reason})") from error
    # Not str.splitlines: a text may hold U+2028 and its like.
    lines = [line.removesuffix("\r") for line in content.split("\n")]
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise ConfigurationError(f"{argument}: {path} holds no text; one text per line is expected")
    unique = tuple(dict.fromkeys(texts))
    if len(unique) < len(texts):
        log.warning("%s: %d repeated texts are left out", argument, len(texts) - len(unique))
    return unique


def fitting(sample: Sample, tokenizer: Tokenizer, *, passage_length: int, query_length: int) -> Sample:
    """The sample, a file of texts cut where it would outgrow the memory or the patience of one machine; it says so.

    The bundled sample is returned as it is.

    Args:
        sample: as read.
        tokenizer: of the checkpoint.
        passage_length: tokens at which a passage is cut.
        query_length: tokens at which a query is cut.
    """
    if sample.answers is not None:
        return sample
    return Sample(
        _first(sample.passages, "--passages", tokenizer, most=MAX_PASSAGES, length=passage_length),
        _first(sample.queries, "--queries", tokenizer, most=MAX_QUERIES, length=query_length),
    )


def _first(texts: tuple[str, ...], argument: str, tokenizer: Tokenizer, *, most: int, length: int) -> tuple[str, ...]:
    tokens = taken = 0
    for encoded in tokenizer.encode(texts[:most], length):
        tokens += len(encoded)
        if taken and tokens > MAX_TOKENS:
            break
        taken += 1
    if taken < len(texts):
        log.warning(
            "%s: the first %d of %d texts are compared (limits: %d texts, %d tokens)",
            argument,
            taken,
            len(texts),
            most,
            MAX_TOKENS,
        )
    return texts[:taken]
