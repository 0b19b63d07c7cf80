"""The sections of the report, each a heading, what was done, where, and a table."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from benchmarks.goals import goals_of
from benchmarks.plan import ENTRIES
from benchmarks.ratios import growth_sizes, name, ratios, share_of_ceiling
from benchmarks.results import Outcome, Result, Run

Results = Mapping[str, Result]
Cells = Sequence[str]
_MB = 1e6


def table(head: Cells, rows: Sequence[Cells], *, words: int = 1) -> str:
    """Markdown; all columns but the first `words` are numbers."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * words + "---:|" * (len(head) - words)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def machine(run: Run, results: Results) -> str:
    """Hardware and versions."""
    found: dict[str, dict[str, None]] = {}
    for result in results.values():
        for library, version in result.versions.items():
            found.setdefault(library, {})[version] = None
    devices = {result.device: None for result in results.values() if result.device}
    threads = {str(result.threads): None for result in results.values() if result.threads}
    rows = [
        *run.hardware.items(),
        ("device", ", ".join(devices)),
        ("threads of a matrix product", ", ".join(threads)),
        *((library, ", ".join(versions)) for library, versions in found.items()),
        ("checkpoint", ", ".join(f"{key} {value}" for key, value in run.model.items())),
        ("time of the last call", f"{run.seconds:.0f} s"),
    ]
    body = "\n".join(f"| {key} | {value} |" for key, value in rows if value)
    return f"## Machine\n\n| | |\n|---|---|\n{body}"


def targets(run: Run, results: Results) -> str:
    """Ratios beside what was promised."""
    rows = []
    for ratio in ratios(results, run.model["linear"], goals_of(run.hardware)):
        value = ratio.reason if ratio.value is None else f"{ratio.value:.3g} {ratio.unit}"
        bound = ">=" if ratio.at_least else "<="
        goal = "" if ratio.goal is None else f"{bound} {ratio.goal:g} {ratio.unit}"
        rows.append((ratio.figure, ratio.contender, ratio.against, value, goal, ratio.verdict))
    head = ("figure", "of", "against", "ratio", "goal", "")
    return f"## Ratios\n\n{_where(run, results)}\n\n{table(head, rows, words=3)}"


def contenders(run: Run, results: Results) -> str:
    """The contenders, and the reasons of those that did not run."""
    rows = []
    for key, entry in ENTRIES.items():
        result = results.get(key) or Result(key, "not run", "it was not asked for")
        state = result.status if not result.reason else f"{result.status}: {result.reason}"
        rows.append((entry.title, f"`{key}`", result.dtype, result.date[:16].replace("T", " "), state))
    notes = (
        "The original design keeps four FlagEmbedding models in one process; a request takes a free one for one"
        " `encode` with the library's batch size (256), which runs the first batch twice and pads it. m3serve runs with"
        " its defaults but for its limit of 60 s per request. Neither can stop a request, so beside queries their bulk"
        " work is a chain of small requests; this engine gets whole jobs, which are cancelled when the probe ends."
    )
    del run
    return (
        f"## Contenders\n\n{notes}\n\n{table(('contender', 'name', 'type', 'started (UTC)', 'state'), rows, words=5)}"
    )


def queries(run: Run, results: Results) -> str:
    """Latency of one query, and throughput by concurrency."""
    latency = _rows(results, "query", lambda outcome: (*_spread(outcome), f"{outcome.n}"))
    text = (
        "Short questions of 5 to 12 tokens, 9 on average. One after the other first; then clients that each send the"
        " next query when the last one is answered (1 client: the figures of the first table)."
    )
    head = ("one query", "p50 ms", "p95 ms", "min ms", "n")
    levels = {1: "query", 8: "concurrent-8", 32: "concurrent-32", 128: "concurrent-128"}
    rows = []
    for result in _took_part(results):
        for level, workload in levels.items():
            outcome = result.outcomes.get(workload)
            if outcome is not None:
                cells = _or_reason(
                    outcome, lambda good: (f"{good.calls_per_second:.1f}", *_spread(good), f"{good.n}"), 5
                )
                rows.append((name(result), f"{level}", *cells))
    by_level = table(("concurrent queries", "clients", "queries/s", "p50 ms", "p95 ms", "min ms", "n"), rows)
    return f"## Queries\n\n{text}\n\n{_where(run, results)}\n\n{table(head, latency)}\n\n{by_level}"


def passages(run: Run, results: Results) -> str:
    """Mixed lengths, 512 and 8192 tokens, and the share of the ceiling."""

    def cells(outcome: Outcome) -> Cells:
        spread = (f"{outcome.p50:.2f}", f"{outcome.p95:.2f}", f"{outcome.least:.2f}", f"{outcome.n}")
        return (f"{outcome.texts} / {outcome.tokens:.0f}", f"{outcome.tokens_per_second:.0f}", *spread)

    head = ("texts / tokens", "tokens/s", "p50 s", "p95 s", "min s", "n")
    parts = [
        table((title, *head), _rows(results, workload, cells))
        for title, workload in (
            ("mixed lengths", "mixed"),
            ("512 tokens", "passages-512"),
            ("8192 tokens", "passages-8192"),
        )
    ]
    return f"## Passages\n\n{_where(run, results)}\n\n" + "\n\n".join([*parts, _ceiling(run, results)])


def _ceiling(run: Run, results: Results) -> str:
    text = (
        f"Share of the ceiling: 2 x {run.model['linear'] / 1e6:.0f} M x tokens / time of the 512-token passages,"
        " attention not counted, over the rate of a 2048 x 1024 x 4096 product in the same type, measured in the same"
        " process immediately before and after; the best way of multiplying and the better of the two count."
    )
    rows = []
    for result in _took_part(results):
        outcome = result.good("passages-512")
        share = share_of_ceiling(result, run.model["linear"])
        if outcome is None or share is None:
            continue
        reached = 2 * run.model["linear"] * outcome.tokens_per_second
        ways = {key.removeprefix("ceiling, "): rate for key, rate in outcome.figures.items() if "ceiling" in key}
        products = ", ".join(f"{way} {rate / 1e9:.0f}" for way, rate in ways.items())
        rows.append((name(result), f"{reached / 1e9:.0f}", products, f"{100 * share:.0f} %"))
    return f"{text}\n\n{table(('share of the ceiling', 'GFLOP/s reached', 'GFLOP/s of the product', 'share'), rows)}"


def beside(run: Run, results: Results) -> str:
    """Queries while passages are embedded."""

    def cells(outcome: Outcome) -> Cells:
        idle = outcome.figures["idle p50"]
        ratio = (f"{outcome.p50 / idle:.1f}", f"{outcome.p95 / idle:.1f}")
        return (f"{idle * 1000:.0f}", *_spread(outcome), *ratio, f"{outcome.n}")

    head = ("idle p50 ms", "p50 ms", "p95 ms", "min ms", "p50 / idle", "p95 / idle", "n")
    parts = [
        table((f"beside {tokens}-token passages", *head), _rows(results, f"beside-{tokens}", cells))
        for tokens in (512, 8192)
    ]
    text = "One query at a time, with pauses, while a bulk job runs in the same process."
    return f"## Queries beside a bulk job\n\n{text}\n\n{_where(run, results)}\n\n" + "\n\n".join(parts)


def startup(run: Run, results: Results) -> str:
    """Seconds from the start of the process."""
    phases = ("imported", "loaded", "answered")
    rows = [
        (name(result), *(f"{result.startup[phase]:.1f}" if phase in result.startup else "" for phase in phases))
        for result in _took_part(results)
    ]
    details = [f"- {name(result)}: {result.detail}" for result in _took_part(results) if result.detail]
    text = (
        "Seconds from the start of the process until its libraries are imported, its weights are loaded (this engine:"
        " warmed and calibrated too) and a first query is answered. All files are in the page cache. On its very first"
        " start this engine may make copies of weights that later starts find."
    )
    head = ("start-up", "imported", "loaded", "first answer")
    return "\n\n".join(["## Start-up", text, _where(run, results), table(head, rows), "\n".join(details)]).rstrip()


def memory(run: Run, results: Results) -> str:
    """Resident memory."""
    columns = ["ready rss", "ready uss", "peak when ready", "peak after passages-512"]
    rows = []
    for result in _took_part(results):
        peaks = [value for key, value in result.memory.items() if key.startswith("peak")]
        cells = [f"{result.memory[key] / _MB:.0f}" if key in result.memory else "" for key in columns]
        device = result.memory.get("device peak")
        overall = f"{max(peaks) / _MB:.0f}" if peaks else ""
        rows.append((name(result), *cells, overall, f"{device / _MB:.0f}" if device else ""))
    text = (
        "MB (10^6 bytes). Resident memory counts pages of mapped weight files; uss is what belongs to the process"
        " alone. The fourth column compares: by then everyone has done the same work (queries, 32 concurrent, mixed"
        " lengths, 512 tokens). The fifth includes whatever else a contender could run."
    )
    head = ("memory", "ready, rss", "ready, uss", "ready, peak", "same work, peak", "in all, peak", "on the GPU, peak")
    return f"## Memory\n\n{text}\n\n{_where(run, results)}\n\n{table(head, rows)}"


def growth(run: Run, results: Results) -> str:
    """Time and memory against the number of texts."""
    rows = []
    remarks = []
    for result in _took_part(results):
        outcome = result.outcomes.get("growth")
        if outcome is None:
            continue
        if outcome.status != "ok":
            rows.append((name(result), *_or_reason(outcome, lambda _: (), 5)))
            continue
        remarks += [f"{name(result)}: {outcome.reason}"] if outcome.reason else []
        for size in growth_sizes(outcome):
            seconds, peak = outcome.figures[f"seconds of {size}"], outcome.figures[f"peak rss of {size}"]
            each = f"{seconds / size * 1000:.2f}"
            calls = f"{outcome.figures[f'calls of {size}']:.0f}"
            rows.append((name(result), f"{size}", f"{seconds:.2f}", each, f"{peak / _MB:.0f}", calls))
    text = (
        "One job of short texts, dense vectors only; the quickest call of each size, and the most memory that was"
        f" resident meanwhile. The vectors of 10 000 texts are {10_000 * run.model['hidden'] * 4 / _MB:.0f} MB of it."
    )
    head = ("growth", "texts", "seconds", "ms per text", "peak MB", "n")
    return "\n\n".join(["## Growth", text, _where(run, results), table(head, rows), "\n".join(remarks)]).rstrip()


def lengths(run: Run) -> str:
    """The lengths of the mixed passages."""
    found = run.lengths["mixed"]
    edges = [8, 16, 32, 64, 128, 256, 513]
    rows = []
    for low, high in itertools.pairwise(edges):
        count = sum(low <= length < high for length in found)
        rows.append((f"{low} to {high - 1}", f"{count}", "#" * count))
    text = (
        f"{len(found)} texts, {sum(found)} tokens with special ones: the quantiles of a log-normal distribution, cut at"
        f" 8 and 512. In order: {', '.join(map(str, sorted(found)))}."
    )
    lines = "\n".join(f"| {row[0]} | {row[1]} | {row[2]} |" for row in rows)
    return f"## Lengths of the mixed passages\n\n{text}\n\n| tokens | texts | |\n|---|---:|---|\n{lines}"


def _where(run: Run, results: Results) -> str:
    """The machine in one line, to stand beside every table."""
    versions: dict[str, str] = {}
    for result in results.values():
        versions |= result.versions
    shown = ", ".join(f"{key} {versions[key]}" for key in ("torch", "FlagEmbedding", "m3serve") if key in versions)
    devices = ", ".join({result.device: None for result in results.values() if result.device})
    cpu = f"{run.hardware.get('CPU', 'CPU unknown')}, {run.hardware.get('cores', '?')} cores"
    return f"*{cpu}; device: {devices or run.device}; {shown}; types in brackets.*"


def _rows(results: Results, workload: str, cells: Callable[[Outcome], Cells]) -> list[Cells]:
    width = 0
    found: list[tuple[str, Outcome]] = []
    for result in results.values():
        outcome = result.outcomes.get(workload)
        if result.status not in {"ok", "not run"} and outcome is None:
            outcome = Outcome(result.status, result.reason)
        if outcome is not None:
            found.append((name(result), outcome))
            width = max(width, len(cells(outcome))) if outcome.status == "ok" else width
    return [(title, *_or_reason(outcome, cells, width)) for title, outcome in found]


def _or_reason(outcome: Outcome, cells: Callable[[Outcome], Cells], width: int) -> Cells:
    if outcome.status == "ok":
        return cells(outcome)
    details = (
        outcome.status
        if not outcome.reason or outcome.status in outcome.reason
        else f"{outcome.status}: {outcome.reason}"
    )
    return (details, *[""] * max(width - 1, 0))


def _spread(outcome: Outcome) -> Cells:
    return tuple(f"{seconds * 1000:.0f}" for seconds in (outcome.p50, outcome.p95, outcome.least))


def _took_part(results: Results) -> list[Result]:
    return [result for result in results.values() if result.startup.get("answered")]
