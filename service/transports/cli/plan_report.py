"""A plan as a person reads it, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from service.bulk.file_sample import FileSample
from service.planning import Plan


def amount(number: float) -> str:
    """A number of bytes in the unit that gives it one to three digits before the point: 1.05 MB."""
    for unit, size in (("PB", 10**15), ("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}" if number < 999.5 * size else f"{number / size:,.0f} {unit}"
    return f"{number:.0f} B"


def count(number: float) -> str:
    """A number with a space between thousands."""
    return f"{number:,.0f}".replace(",", " ")


def counted(number: float, noun: str) -> str:
    """A number of things: 1 file, 2 files."""
    return f"{count(number)} {noun}" if number == 1 else f"{count(number)} {noun}s"


def short(number: float) -> str:
    """A large number in words: 25.6 billion."""
    for word, size in (("trillion", 10**12), ("billion", 10**9), ("million", 10**6)):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return count(number)


def duration(hours: float) -> str:
    """A time in hours, or in minutes or seconds if it is short."""
    for unit, size in (("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= 2 * size:
            return f"{hours / size:.3g} {unit}" if hours < 999.5 * size else f"{count(hours / size)} {unit}"
    return "less than 1 second" if hours * 3600 < 1 else counted(round(hours * 3600), "second")


def show(result: Plan, sample: FileSample | None, console: Console) -> None:
    """Print a plan for a person."""
    passages, kinds = result.passages, ", ".join(result.stored.kinds)
    console.print(f"{counted(passages.count, 'passage')} of {passages.tokens:.3g} tokens: {kinds}")
    if sample is not None:
        console.print(_described(sample))
    console.print()
    console.print(_sizes(result))
    console.print()
    for name, text in _facts(result):
        console.print(f"{name:<11}{text}")
    if result.alternatives:
        console.print()
        console.print(_alternatives(result))
    console.print()
    for text in result.assumptions:
        console.print(f"- {text}")


def _described(sample: FileSample) -> str:
    documents = counted(sample.documents, "document")
    documents = documents if sample.exact else f"about {documents}"
    bad = f", {count(sample.bad_lines)} of the lines that were read are wrong" if sample.bad_lines else ""
    files = counted(sample.files, "file")
    return f"{documents} in {files}: {count(sample.read_documents)} were read, {count(sample.tokenized)} tokenized{bad}"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _sizes(result: Plan) -> Table:
    table = _table("one copy", "per passage", "disk", "RAM")
    for part in result.size.parts:
        ram = amount(part.ram_bytes) if part.ram_bytes else "-"
        table.add_row(part.name, amount(part.point_bytes), amount(part.disk_bytes), ram)
    total = result.size
    table.add_row("total", amount(total.disk_bytes / total.points), amount(total.disk_bytes), amount(total.ram_bytes))
    return table


def _facts(result: Plan) -> Iterator[tuple[str, str]]:
    servers, embedding, costs = result.servers, result.embedding, result.costs
    nodes, shards = counted(servers.nodes, "node"), counted(servers.shards, "shard")
    copies = "1 copy" if servers.replication == 1 else f"{servers.replication} copies"
    yield (
        "server",
        f"{nodes}, {shards}, {copies}: {amount(servers.ram_bytes)} of RAM, {amount(servers.disk_bytes)} of disk in all",
    )
    if result.rerank_read_bytes:
        yield "rerank", f"a search reads {amount(result.rerank_read_bytes)} of rows to rerank 100 candidates"
    yield (
        "embedding",
        (
            f"{short(embedding.tokens)} tokens at {count(embedding.tokens_per_s)} tokens/s: "
            f"{duration(embedding.gpu_hours)} of one GPU, {duration(embedding.hours)} by the clock"
        ),
    )
    yield (
        "network",
        (
            f"{amount(embedding.point_sent_bytes)} per passage, {amount(embedding.sent_bytes)} in all; "
            f"{amount(embedding.sent_bytes_per_s)}/s keep the GPUs at work"
        ),
    )
    prices = {
        "embedding": costs.embedding,
        "RAM per month": costs.ram_month,
        "disk per month": costs.disk_month,
    }
    given = [f"{name} {price:,.2f}".replace(",", " ") for name, price in prices.items() if price is not None]
    if given:
        yield "costs", ", ".join(given)


def _alternatives(result: Plan) -> Table:
    table = _table("one copy, with another choice", "disk", "RAM")
    for choice in result.alternatives:
        table.add_row(choice.name, amount(choice.size.disk_bytes), amount(choice.size.ram_bytes))
    return table


def as_json(result: Plan, sample: FileSample | None) -> dict[str, Any]:
    """The plan as JSON, in bytes, hours and the currency of the prices."""
    servers, embedding, costs, passages = result.servers, result.embedding, result.costs, result.passages
    report: dict[str, Any] = {
        "passages": passages.count,
        "tokensPerPassage": round(passages.tokens, 2),
        "kinds": list(result.stored.kinds),
        "parts": [
            {
                "owner": part.owner,
                "name": part.name,
                "bytesPerPassage": round(part.point_bytes, 1),
                "diskBytes": part.disk_bytes,
                "ramBytes": part.ram_bytes,
            }
            for part in result.size.parts
        ],
        "diskBytes": result.size.disk_bytes,
        "ramBytes": result.size.ram_bytes,
        "servers": {
            "nodes": servers.nodes,
            "shards": servers.shards,
            "replication": servers.replication,
            "ramBytes": servers.ram_bytes,
            "diskBytes": servers.disk_bytes,
        },
        "rerankReadBytes": result.rerank_read_bytes,
        "embedding": {
            "tokens": embedding.tokens,
            "tokensPerSecond": round(embedding.tokens_per_s),
            "gpuHours": round(embedding.gpu_hours, 4),
            "hours": round(embedding.hours, 4),
            "sentBytesPerPassage": embedding.point_sent_bytes,
            "sentBytes": embedding.sent_bytes,
            "sentBytesPerSecond": embedding.sent_bytes_per_s,
        },
        "costs": {"embedding": costs.embedding, "ramMonth": costs.ram_month, "diskMonth": costs.disk_month},
        "alternatives": [
            {"name": choice.name, "diskBytes": choice.size.disk_bytes, "ramBytes": choice.size.ram_bytes}
            for choice in result.alternatives
        ],
        "assumptions": list(result.assumptions),
    }
    if sample is not None:
        report["sample"] = {
            "files": sample.files,
            "documents": sample.documents,
            "readDocuments": sample.read_documents,
            "tokenized": sample.tokenized,
            "badLines": sample.bad_lines,
            "exact": sample.exact,
        }
    return report
