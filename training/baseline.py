"""BM25 over the held-out pool: the figure that a trained model has to beat.

``python -m training.baseline OUT`` reads ``OUT/data.json`` and writes ``OUT/bm25.json``: per split
the 100 best pool indices of every query.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import get_args

import numpy as np

from training.data import Dataset, Split
from training.ranking import Ranks, measure

DEPTH = 100

_STOP_TEXT = (
    "a an and are as at be but by for if in into is it no not of on or such that the "
    "their then there these they this to was will with"
)
STOP_WORDS = frozenset(_STOP_TEXT.split())
"""The English stop words of Apache Lucene."""


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits, stop words left out."""
    return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in STOP_WORDS]


def search(pool: list[str], queries: list[str]) -> Ranks:
    """Rank the pool for each query by Okapi BM25 with rank_bm25's defaults; the best ``DEPTH`` places."""
    from rank_bm25 import BM25Okapi

    index = BM25Okapi([words(text) for text in pool])
    scores = np.stack([index.get_scores(words(query)) for query in queries])  # [Q, N]
    return np.argsort(-scores, axis=1)[:, :DEPTH]


def main() -> None:
    """Rank both splits, print their quality and write ``bm25.json``."""
    parser = argparse.ArgumentParser(prog="python -m training.baseline", description=__doc__)
    parser.add_argument("out", type=Path, help="directory with data.json; receives bm25.json")
    out: Path = parser.parse_args().out
    dataset = Dataset.load(out / "data.json")
    ranks_by_split: dict[str, list[list[int]]] = {}
    for split in get_args(Split):
        queries = dataset.queries(split)
        ranks = search(dataset.pool, [query.text for query in queries])
        print(f"{split:4s}  {measure(ranks, np.array([query.answer for query in queries]))}")
        ranks_by_split[split] = ranks.tolist()
    (out / "bm25.json").write_text(json.dumps(ranks_by_split), encoding="utf-8")


if __name__ == "__main__":
    main()
