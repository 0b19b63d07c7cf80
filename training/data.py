"""Package descriptions as retrieval pairs: the short description asks for the long one.

Every Debian package has a one-line and a long description, written by its maintainer.
``python -m training.data OUT`` fetches them with apt into a private state under ``OUT/apt`` (the system's
own lists are left alone), pairs them and writes ``OUT/data.json``.

Near-duplicate packages (``foo`` and ``foo-data``) are gathered into clusters first. A cluster is either
trained on or evaluated on, never both, and enters the evaluation pool once.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SEED = 13
POOL_SIZE = 5000
TEST_QUERIES = 1000
DEV_QUERIES = 500

MIN_LONG_WORDS = 15
"""Packages whose long description is shorter are left out."""
MIN_SHORT_WORDS = 3
"""Packages whose short description is shorter are left out."""
MIN_BODY_WORDS = 10
"""A training document has at least this many words once the copied title is cut off."""
MAX_EVALUATED_CLUSTER = 8
"""Larger clusters are families of one upstream project and are only trained on."""
MAX_TRAINED_PER_CLUSTER = 40

GENERIC_TITLE = re.compile(
    r"transitional|dummy|metapackage|meta-package|debug(ging)? symbols|development files|documentation"
    r"|header",
    re.IGNORECASE,
)
"""Short descriptions that name a kind of package rather than its subject; never used as a held-out query."""

Split = Literal["dev", "test"]


@dataclass(frozen=True, slots=True)
class Package:
    """One package as the archive describes it, white space collapsed."""

    name: str
    short: str
    long: str
    section: str
    source: str
    """Name of the source package it is built from."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One training pair."""

    short: str
    """The query."""
    body: str
    """The document: the long description without a copy of ``short`` at its start."""
    cluster: int
    section: str
    name: str


@dataclass(frozen=True, slots=True)
class Query:
    """One held-out query and the only document that answers it."""

    text: str
    answer: int
    """Index into the pool."""
    name: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """The contents of ``data.json``."""

    train: list[Pair]
    pool: list[str]
    dev: list[Query]
    test: list[Query]

    def queries(self, split: Split) -> list[Query]:
        """The held-out queries of one split."""
        return self.dev if split == "dev" else self.test

    def save(self, path: Path) -> None:
        """Write the data set as JSON, records as arrays in the order of their fields."""
        content = {
            "train": [[p.short, p.body, p.cluster, p.section, p.name] for p in self.train],
            "pool": self.pool,
            "test": [[q.text, q.answer, q.name] for q in self.test],
            "dev": [[q.text, q.answer, q.name] for q in self.dev],
        }
        path.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Dataset:
        """Read what :meth:`save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            train=[Pair(*row) for row in content["train"]],
            pool=content["pool"],
            dev=[Query(*row) for row in content["dev"]],
            test=[Query(*row) for row in content["test"]],
        )


# --- fetching -------------------------------------------------------------------------------------


def fetch_lists(state: Path) -> tuple[str, str]:
    """Fetch the package lists of the free Debian archive into a private apt state.

    The sources are the system's own, so this needs a Debian system (a container will do) but no privileges.
    Lists that are already in ``state`` are used as they are. Only the component ``main`` is read: all of it
    is free software.

    Args:
        state: Directory for apt's lists and cache; made if absent.

    Returns:
        The text of all ``Translation-en`` lists, and of all ``Packages`` lists.

    Raises:
        FileNotFoundError: If the sources offer no Debian list.
    """
    lists = state.resolve() / "lists"
    cache = state.resolve() / "cache"
    settings = {
        "Dir::State::Lists": lists,
        "Dir::Cache": cache,
        "Acquire::Languages": "en",
        "Acquire::GzipIndexes": "false",
        "APT::Sandbox::User": "root",  # apt's own user could not write into ``state``
    }
    options = [f"--option={name}={value}" for name, value in settings.items()]
    if not any(lists.glob("*Translation-en")):
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "update", *options], check=True)
    return _read_targets(options, "Translations"), _read_targets(options, "Packages")


def _read_targets(options: list[str], created_by: str) -> str:
    """Join the downloaded lists of one kind, in the order of their file names."""
    wanted = ["Origin: Debian", "Component: main", f"Created-By: {created_by}"]
    command = ["apt-get", "indextargets", *options, "--format=$(FILENAME)", *wanted]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    paths = sorted(line for line in listing.splitlines() if line)
    if not paths:
        raise FileNotFoundError(f"apt knows no Debian list of kind {created_by}: run this on a Debian system")
    return "\n\n".join(Path(path).read_text(encoding="utf-8") for path in paths)


# --- parsing --------------------------------------------------------------------------------------


def parse_packages(translations: str, packages: str) -> Iterator[Package]:
    """Read packages from the two kinds of list; of several versions of a description the first one counts.

    Args:
        translations: Stanzas with ``Package`` and ``Description-en``.
        packages: Stanzas with ``Package``, ``Section`` and, where it differs, ``Source``.
    """
    origins = _section_and_source(packages)
    seen: set[str] = set()
    for stanza in translations.split("\n\n"):
        match = re.match(r"Package: (\S+)\n.*?Description-en: (.*?)\n(.*)", stanza, re.DOTALL)
        if match is None or match[1] in seen:
            continue
        name = match[1]
        seen.add(name)
        without_blank_markers = re.sub(r"^ \.$", "", match[3], flags=re.MULTILINE)
        section, source = origins.get(name, ("misc", name))
        yield Package(name, _collapse(match[2]), _collapse(without_blank_markers), section, source)


def _section_and_source(packages: str) -> dict[str, tuple[str, str]]:
    origins: dict[str, tuple[str, str]] = {}
    for stanza in packages.split("\n\n"):
        name = re.search(r"^Package: (.*)", stanza, re.MULTILINE)
        section = re.search(r"^Section: (.*)", stanza, re.MULTILINE)
        source = re.search(r"^Source: (\S+)", stanza, re.MULTILINE)
        if name is not None:
            origins[name[1]] = (section[1] if section else "misc", source[1] if source else name[1])
    return origins


def _collapse(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def normalise(text: str) -> str:
    """Lower-case letters and digits only, single spaces between words."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def split_off_title(short: str, long: str) -> tuple[str, bool]:
    """Cut a copy of the short description off the start of the long one.

    Many long descriptions open by repeating the short one; left in, they would make the task a string match.

    Returns:
        The long description without the copy, and whether there was one.
    """
    title = normalise(short)
    copies = (title, f"a {title}", f"an {title}", f"the {title}")
    words = long.split()
    for count in range(1, min(len(words), 30) + 1):
        if normalise(" ".join(words[:count])) in copies:
            return " ".join(words[count:]).lstrip(".,:;- "), True
    return long, normalise(long).startswith(title)


# --- clustering -----------------------------------------------------------------------------------


class DisjointSets:
    """Union-find over ``range(size)``, with path halving."""

    def __init__(self, size: int) -> None:
        """Start with every item in a set of its own."""
        self._parent = list(range(size))

    def find(self, item: int) -> int:
        """The item that stands for the set of ``item``."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def union(self, item: int, other: int) -> None:
        """Put the set of ``item`` into that of ``other``."""
        self._parent[self.find(item)] = self.find(other)


def shingle_hashes(words: list[str]) -> NDArray[np.int64]:
    """Sorted CRC-32 values of the distinct runs of three words, int64 ``[S]``."""
    runs = (" ".join(words[start : start + 3]) for start in range(max(1, len(words) - 2)))
    return np.array(sorted({zlib.crc32(run.encode()) for run in runs}), dtype=np.int64)


def jaccard(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Size of the intersection over size of the union, of two arrays of distinct values."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def minhash_signer(seed: int, bands: int, rows: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """A MinHash function (Broder 1997): sets that overlap agree in many places of their signatures.

    Returns:
        A function from shingle hashes ``[S]`` to a signature ``[bands, rows]``.
    """
    prime = 2**31 - 1
    rng = np.random.default_rng(seed)
    factor = rng.integers(1, prime, bands * rows, dtype=np.int64) | 1
    offset = rng.integers(0, prime, bands * rows, dtype=np.int64)

    def sign(hashes: NDArray[np.int64]) -> NDArray[np.int64]:
        values = (hashes[:, None] % prime * factor + offset) % prime  # [S, bands * rows]
        signature: NDArray[np.int64] = values.min(0).reshape(bands, rows)
        return signature

    return sign


def cluster(packages: list[Package], *, threshold: float = 0.5, bands: int = 16, rows: int = 4) -> list[int]:
    """Gather near duplicates.

    Two packages share a cluster if they are built from one source package, if their long descriptions open
    with the same ten words, or if the Jaccard similarity of their three-word shingles reaches ``threshold``
    (candidates are found by banded MinHash). The relation is closed transitively.

    Returns:
        For each package the label of its cluster, an index into ``packages``.
    """
    sets = DisjointSets(len(packages))
    sign = minhash_signer(SEED, bands, rows)
    last_with_key: dict[str | tuple[str, str], int] = {}
    shingles: list[NDArray[np.int64]] = []
    buckets: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, package in enumerate(packages):
        words = normalise(package.long).split()
        for key in (" ".join(words[:10]), ("source", package.source)):
            if key in last_with_key:
                sets.union(index, last_with_key[key])
            last_with_key[key] = index
        hashes = shingle_hashes(words)
        shingles.append(hashes)
        for band, values in enumerate(sign(hashes)):
            buckets[(band, *values.tolist())].append(index)
    for first, *others in buckets.values():
        for other in others:
            apart = sets.find(other) != sets.find(first)
            if apart and jaccard(shingles[first], shingles[other]) >= threshold:
                sets.union(other, first)
    return [sets.find(index) for index in range(len(packages))]


# --- splitting ------------------------------------------------------------------------------------


def is_usable(package: Package) -> bool:
    """Whether both descriptions are long enough to make a query and a document."""
    long_enough = len(normalise(package.long).split()) >= MIN_LONG_WORDS
    return long_enough and len(normalise(package.short).split()) >= MIN_SHORT_WORDS


def hold_out(
    packages: list[Package],
    groups: dict[int, list[int]],
    order: list[int],
    rng: random.Random,
) -> tuple[list[str], list[Query], set[int]]:
    """Take the evaluation pool from the first clusters in ``order``, one random member of each.

    A member whose long description repeats its short one, or whose short one is generic, joins the pool as a
    distractor but asks no query.

    Returns:
        The pool, the queries in random order, and the labels of the clusters used.
    """
    pool: list[str] = []
    queries: list[Query] = []
    used: set[int] = set()
    for label in order:
        if len(pool) == POOL_SIZE:
            break
        if len(groups[label]) > MAX_EVALUATED_CLUSTER:
            continue
        package = packages[rng.choice(groups[label])]
        _, repeats_title = split_off_title(package.short, package.long)
        if not repeats_title and not GENERIC_TITLE.search(package.short):
            queries.append(Query(package.short, len(pool), package.name))
        pool.append(package.long)
        used.add(label)
    rng.shuffle(queries)
    return pool, queries, used


def training_pairs(
    packages: list[Package],
    groups: dict[int, list[int]],
    labels: Iterable[int],
) -> list[Pair]:
    """Pairs of the given clusters; within a cluster no two share a short description."""
    pairs: list[Pair] = []
    for label in labels:
        seen: set[str] = set()
        for index in groups[label][:MAX_TRAINED_PER_CLUSTER]:
            package = packages[index]
            body, _ = split_off_title(package.short, package.long)
            title = normalise(package.short)
            if len(body.split()) >= MIN_BODY_WORDS and title not in seen:
                seen.add(title)
                pairs.append(Pair(package.short, body, label, package.section, package.name))
    return pairs


def build_dataset(packages: list[Package]) -> Dataset:
    """Cluster the packages, hold some clusters out, and pair up the rest."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(cluster(packages)):
        groups[label].append(index)
    order = sorted(groups)
    rng = random.Random(SEED)
    rng.shuffle(order)
    pool, queries, used = hold_out(packages, groups, order, rng)
    train = training_pairs(packages, groups, (label for label in order if label not in used))
    return Dataset(
        train=train,
        pool=pool,
        dev=queries[TEST_QUERIES : TEST_QUERIES + DEV_QUERIES],
        test=queries[:TEST_QUERIES],
    )


def main() -> None:
    """Fetch, split and write ``data.json``."""
    parser = argparse.ArgumentParser(prog="python -m training.data", description=__doc__)
    parser.add_argument("out", type=Path, help="directory for data.json and the private apt state")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    packages = [package for package in parse_packages(*fetch_lists(out / "apt")) if is_usable(package)]
    dataset = build_dataset(packages)
    dataset.save(out / "data.json")
    print(
        f"{len(packages)} packages -> {len(dataset.train)} training pairs "
        f"in {len({pair.cluster for pair in dataset.train})} clusters; held out: "
        f"pool of {len(dataset.pool)}, {len(dataset.test)} test and {len(dataset.dev)} dev queries"
    )


if __name__ == "__main__":
    main()
