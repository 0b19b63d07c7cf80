"""The tables of docs/planning.md: formulas beside measurements, and plans of three sizes.

The measurements are in `collection_sizes.jsonl`; `python -m benchmarks.planning_tables` writes the tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.collection_size_cases import CASES, Case
from service.planning import Passages, Plan, Resources, StoredColbert, StoredDense, StoredSparse, StoredVectors, plan
from service.planning.collection_size import CollectionSize, collection_size
from service.planning.stored_vectors import STORAGE_TYPES
from service.transports.cli.plan_report import amount, count

MEASUREMENTS: Final = Path(__file__).with_name("collection_sizes.jsonl")
PAGE: Final = Path(__file__).parents[1] / "docs" / "planning.md"

COUNTS: Final = (1_000_000, 50_000_000, 1_000_000_000)
TOKENS: Final = 512

_EVERYTHING: Final = StoredVectors(dense=StoredDense(), sparse=StoredSparse(), colbert=StoredColbert())
_TEXTS: Final = StoredVectors(dense=StoredDense(), sparse=StoredSparse())
_INT8: Final = replace(_TEXTS, dense=StoredDense(on_disk=True, quantization="int8"))
_POOLED: Final = replace(_INT8, colbert=StoredColbert(pooling=4))
_TURBO: Final = replace(_INT8, colbert=StoredColbert(datatype="turbo4"))

MEMORY_PAIRS: Final = (
    ("dense-float32", "dense-float32-large", ("anonymous", "file")),
    ("dense-int8", "dense-int8-large", ("anonymous",)),
    ("sparse-100", "sparse-100-large", ("anonymous",)),
)
"""Cases that differ in the number of points, and the memory that is compared: vectors in RAM are mapped files, while
copies and indexes are in the server's own memory. The pages of the write-ahead log are mapped files, too."""

CHOICES: Final[Mapping[str, StoredVectors]] = {
    "the default schema: dense float32 in RAM, sparse, ColBERT float16": _EVERYTHING,
    "the same without ColBERT": _TEXTS,
    "dense on disk with an int8 copy, sparse": _INT8,
    "the same with ColBERT, rows averaged by 4": _POOLED,
    "the same with ColBERT in turbo4": _TURBO,
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One part of a case.

    Attributes:
        case: name of the case.
        part: what the files are.
        formula: bytes per point by the formula.
        measured: bytes per point on disk.
    """

    case: str
    part: str
    formula: float
    measured: float

    @property
    def error(self) -> float:
        """Relative difference of the formula."""
        return self.formula / self.measured - 1


def measurements() -> list[dict[str, Any]]:
    """The measured cases."""
    return [json.loads(line) for line in MEASUREMENTS.read_text(encoding="utf-8").splitlines()]


def comparisons() -> Iterator[Comparison]:
    """Every part of every case that a formula describes."""
    cases = {case.name: case for case in CASES}
    for measured in measurements():
        name = measured["case"]
        case = cases.get(name) or edge_case(name)
        if not case.uuids:
            continue  # the formula is that of UUIDs
        formulas = {part.name: part.point_bytes for part in formula_size(case, measured).parts}
        for label, starts, files in _FILES[_group(case)]:
            formula = next((size for part, size in formulas.items() if part.startswith(starts)), None)
            size = sum(size for file, size in measured["disk_bytes"].items() if re.fullmatch(files, file))
            if formula is not None and size:
                yield Comparison(name, label, formula, size / measured["points"])


def memory_comparisons() -> Iterator[Comparison]:
    """RAM per point: what the larger of two cases takes more than the smaller."""
    cases = {case.name: case for case in CASES}
    by_name = {measured["case"]: measured for measured in measurements()}
    for small, large, kinds in MEMORY_PAIRS:
        more = by_name[large]["points"] - by_name[small]["points"]
        resident = [sum(by_name[name]["memory_bytes"][kind] for kind in kinds) for name in (small, large)]
        measured = (resident[1] - resident[0]) / more
        formula = (
            formula_size(cases[large], by_name[large]).ram_bytes - formula_size(cases[small], by_name[small]).ram_bytes
        ) / more
        yield Comparison(large, "RAM", formula, measured)


def edge_case(name: str) -> Case:
    """The case of a measurement in Qdrant Edge."""
    datatype = next(known for known in STORAGE_TYPES if known == name.rpartition("-")[2])
    return Case(name=name, points=400, kind="colbert", per_point=256, datatype=datatype, on_disk=True, m=0)


def formula_size(case: Case, measured: Mapping[str, Any]) -> CollectionSize:
    """What the formulas say of a case, for a segment of its size."""
    passages = Passages(
        count=case.points,
        tokens=case.per_point + 1 if case.kind == "colbert" else 100,
        distinct=case.per_point,
        text_bytes=measured.get("payload_bytes", 0),
    )
    stored = StoredVectors(
        dense=StoredDense(
            size=case.size,
            datatype=case.datatype,
            quantization=_quantization(case),
            m=case.m,
            on_disk=case.on_disk,
        )
        if case.kind == "dense"
        else None,
        sparse=StoredSparse(datatype="float16" if case.datatype == "float16" else "float32", on_disk=case.on_disk)
        if case.kind == "sparse"
        else None,
        colbert=StoredColbert(
            size=case.size, datatype=case.datatype, quantization=_quantization(case), on_disk=case.on_disk
        )
        if case.kind == "colbert"
        else None,
        payload_indexes=0 if case.index is None else 1,
        shards=measured.get("segments"),
    )
    return collection_size(stored, passages)


def _quantization(case: Case) -> Any:
    match case.quantization:
        case None:
            return "none"
        case {"turbo": {"bits": bits}}:
            return f"turbo{bits.removeprefix('bits')}"
        case {"product": _}:
            return "product-x16"
        case {"scalar": _}:
            return "int8"
    return "binary"


def _group(case: Case) -> str:
    return "ids" if case.name.startswith("ids") else case.kind


_VECTORS: Final = r"vector_storage-v/(matrix\.dat|chunk_\d+\.mmap)"
_COPY: Final = r"vector_storage-v/quantized\.data"
_FILES: Final[Mapping[str, Sequence[tuple[str, str, str]]]] = {
    "ids": (("ids and versions", "ids", r"(mutable_)?id_tracker\..*"),),
    "dense": (
        ("vectors", "dense vectors", _VECTORS),
        ("quantized copy", "their copy", _COPY),
        ("graph", "their graph", r"vector_index-v/links_compressed\.bin"),
    ),
    "colbert": (("rows", "ColBERT rows", _VECTORS), ("quantized copy", "their copy", _COPY)),
    "sparse": (
        ("vectors", "sparse vectors", r"vector_storage-v/(page_\d+|tracker|bitmask)\.dat"),
        ("index", "sparse index", r"vector_index-v/inverted_index\.dat"),
    ),
    "payload": (
        ("payload", "text and payload", r"payload_storage/.*"),
        ("payload index", "1 payload index", r"payload_index/.*"),
    ),
}
"""Parts of a group of cases: a label, the beginning of the name of the part in the formulas, and its files."""


def compared_table() -> str:
    """Formula, measurement and difference of every part."""
    rows = ["| case | part | formula, bytes per point | measured | difference |", "|---|---|---:|---:|---:|"]
    rows += [
        f"| `{row.case}` | {row.part} | {row.formula:,.1f} | {row.measured:,.1f} | {100 * row.error:+.1f} % |".replace(
            ",", " "
        )
        for row in comparisons()
    ]
    return "\n".join(rows)


def memory_table() -> str:
    """Formula, measurement and difference of RAM."""
    rows = ["| case | formula, bytes of RAM per point | measured | difference |", "|---|---:|---:|---:|"]
    rows += [
        f"| `{row.case}` | {count(row.formula)} | {count(row.measured)} | {100 * row.error:+.1f} % |"
        for row in memory_comparisons()
    ]
    return "\n".join(rows)


def plans_table() -> str:
    """Plans of three sizes with five choices."""
    rows = [
        "| passages | choice | disk | RAM | nodes | shards | GPU hours | sent to the server |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for number in COUNTS:
        passages = Passages.of_tokens(number, TOKENS)
        for name, stored in CHOICES.items():
            result = plan(stored, passages, Resources())
            rows.append(
                f"| {count(number)} | {name} | {amount(result.size.disk_bytes)} | {amount(result.size.ram_bytes)} | "
                f"{result.servers.nodes} | {result.servers.shards} | {_hours(result)} | "
                f"{amount(result.embedding.sent_bytes)} |"
            )
    return "\n".join(rows)


def _hours(result: Plan) -> str:
    return f"{result.embedding.gpu_hours:.3g}"


def parts_table() -> str:
    """Bytes per passage of 512 tokens by part, of the default schema."""
    size = collection_size(_EVERYTHING, Passages.of_tokens(COUNTS[1], TOKENS))
    rows = ["| part | bytes per passage | 50 million passages | of it in RAM |", "|---|---:|---:|---:|"]
    for part in size.parts:
        ram = amount(part.ram_bytes) if part.ram_bytes else "-"
        rows.append(f"| {part.name} | {count(part.point_bytes)} | {amount(part.disk_bytes)} | {ram} |")
    return "\n".join(rows)


def choices_table() -> str:
    """What other choices save, of 50 million passages."""
    result = plan(_EVERYTHING, Passages.of_tokens(COUNTS[1], TOKENS), Resources())
    rows = ["| choice | disk | RAM |", "|---|---:|---:|"]
    rows.append(f"| the default schema | {amount(result.size.disk_bytes)} | {amount(result.size.ram_bytes)} |")
    rows += [
        f"| {choice.name} | {amount(choice.size.disk_bytes)} | {amount(choice.size.ram_bytes)} |"
        for choice in result.alternatives
    ]
    return "\n".join(rows)


TABLES: Final = {
    "parts": parts_table,
    "choices": choices_table,
    "plans": plans_table,
    "compared": compared_table,
    "memory": memory_table,
}


def with_tables(page: str) -> str:
    """The page with its tables as the code has them, each between `<!-- table: NAME -->` and `<!-- /table -->`."""
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)",
        lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
