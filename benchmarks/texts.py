"""Texts of known lengths in tokens, the same for every contender: seeded words of the bundled corpus."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Self

from tokenizers import Tokenizer

import corpus

QUERY_LENGTHS = (9, 5, 11, 8, 12, 9, 7, 11)
"""Tokens, special ones included: 5 to 12, 9 on average."""
QUERIES = 512
MIXED = 16
MIXED_MEDIAN, MIXED_SPREAD = 88.0, 1.1
"""Parameters of a log-normal distribution: a few long texts hold most tokens, as in real corpora."""
MIXED_LEAST, MIXED_MOST = 8, 512
SHORT_LENGTH = 5
SHORTS = 10_000
PASSAGES = 64
LONGS = 4
_ATTEMPTS = 50


@dataclass(frozen=True)
class Texts:
    """The texts to embed.

    Attributes:
        queries: 5 to 12 tokens each.
        mixed: 8 to 512 tokens.
        passages: 512 tokens each.
        longs: 8192 tokens each; none if the model takes fewer.
        shorts: 5 tokens each.
        lengths: tokens per text of each of these.
    """

    queries: list[str]
    mixed: list[str]
    passages: list[str]
    longs: list[str]
    shorts: list[str]
    lengths: dict[str, list[int]]

    @classmethod
    def make(cls, checkpoint: Path, max_length: int) -> Self:
        """Texts for the tokenizer and the length limit of a checkpoint; the same arguments give the same texts."""
        writer = Writer(checkpoint / "tokenizer.json", seed=0)
        plan = {
            "queries": [QUERY_LENGTHS[n % len(QUERY_LENGTHS)] for n in range(QUERIES)],
            "mixed": [min(length, max_length) for length in mixed_lengths()],
            "passages": [min(512, max_length)] * PASSAGES,
            "longs": [8192] * LONGS if max_length >= 8192 else [],
            "shorts": [SHORT_LENGTH] * SHORTS,
        }
        return cls(**{name: [writer.text(n) for n in lengths] for name, lengths in plan.items()}, lengths=plan)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The texts of a file that `write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """Write a file for the contenders to read."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


class Writer:
    """Writes texts of exactly so many tokens."""

    def __init__(self, tokenizer: Path, seed: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._random = random.Random(seed)

    def length(self, text: str) -> int:
        """Tokens, special ones included."""
        return len(self._tokenizer.encode(text).ids)

    def text(self, tokens: int) -> str:
        """Random words, `tokens` long in all.

        Raises:
            ValueError: the tokenizer knows too few of the corpus's words.
        """
        for _ in range(_ATTEMPTS):
            left = tokens - 2
            words = []
            while left > 0:
                word, length = self._random.choice(self._words)
                if length > left:
                    word, length = self._random.choice(self._small), 1
                words.append(word)
                left -= length
            text = " ".join(words)
            if self.length(text) == tokens:
                return text
        raise ValueError(f"no text of {tokens} tokens can be written with this tokenizer")

    @cached_property
    def _words(self) -> list[tuple[str, int]]:
        found = {
            word
            for passage in corpus.passages()
            if passage.language == "en"
            for word in re.findall(r"[a-z]{2,}", passage.text)
        }
        return [(word, self.length(word) - 2) for word in sorted(found)]

    @cached_property
    def _small(self) -> list[str]:
        small = [word for word, length in self._words if length == 1]
        if not small:
            raise ValueError("no word of the corpus is a single token of this tokenizer")
        return small


def mixed_lengths(count: int = MIXED) -> list[int]:
    """Tokens of the mixed passages: the quantiles of the distribution, in shuffled order."""
    normal = NormalDist(math.log(MIXED_MEDIAN), MIXED_SPREAD)
    quantiles = [math.exp(normal.inv_cdf((n + 0.5) / count)) for n in range(count)]
    lengths = [min(max(round(length), MIXED_LEAST), MIXED_MOST) for length in quantiles]
    random.Random(0).shuffle(lengths)
    return lengths
