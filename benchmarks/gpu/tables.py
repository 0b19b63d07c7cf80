"""The tables of the page, each from the results of a run and the baseline."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu import baseline
from benchmarks.gpu.baseline import BASELINE
from benchmarks.gpu.goals import GOALS, Goal, ceiling, ratio
from benchmarks.gpu.results import Results, Row
from benchmarks.sections import table

NOT_MEASURED = "not measured yet"
_EMBED_KINDS = ("dense", "dense + sparse", "all, float16 rows", "all, float32 rows")


def machine(results: Results) -> str:
    """The machine and the versions of the run, and which sections ran."""
    facts = [(row["figure"], row["value"]) for row in results.rows("machine")]
    if not facts:
        return f"## Machine\n\nThe baseline: one {baseline.GPU}, 16 cores of its host, Python 3.12, torch 2.11+cu130."
    rows = [
        (
            section.name,
            section.status,
            section.reason or "",
            f"{section.seconds:.1f}",
            _gigabytes(section.device_peak_bytes),
        )
        for section in results.sections.values()
    ]
    return _joined(
        "## Machine",
        table(("", ""), facts, words=2),
        table(("section", "status", "", "seconds", "peak of the GPU's memory, GB"), rows, words=3),
    )


def goals(results: Results) -> str:
    """Each goal beside what was measured."""
    rows = [(goal.figure, goal.before, _limit(goal), _reached(goal, results), goal.verdict(results)) for goal in GOALS]
    verdicts = [row[-1] for row in rows]
    summary = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    return _joined(
        "## Goals",
        f"Shares are of the card's own measured ceiling; the times are goals for an H200. {summary}.",
        table(("figure", f"before ({baseline.DATE})", "goal", "now", ""), rows, words=5),
    )


def ceilings(results: Results) -> str:
    """The rates of the card's products and copies."""
    products = list(dict.fromkeys(row["product"] for row in BASELINE.rows("ceilings") + results.rows("ceilings")))
    rows = []
    for product in products:
        if product == "copy":
            continue
        figures = [
            _tera(source.value("ceilings", "flops_s", product=product, dtype=dtype))
            for dtype in ("float16", "float8")
            for source in (BASELINE, results)
        ]
        rows.append((f"**{product}**" if product == "model" else product, *figures))
    copy = results.value("ceilings", "bytes_s", product="copy")
    tokens = [
        f"{name} {rate / 1e6:.2f} M tokens/s"
        for name in ("float16", "float8")
        if (rate := results.value("ceilings", "tokens_s", product="model", dtype=name))
    ]
    now = f" Now, without attention: {', '.join(tokens)}." if tokens else ""
    copied = f" A copy on the device moves {copy / 1e12:.2f} TB/s, bytes read and written." if copy else ""
    return _joined(
        "## Ceilings",
        "TFLOP/s of the model's four products with 32 768 rows of random numbers, timed by CUDA events, median;"
        " `model` weights them by their shapes; `sustained` is one layer after another for a second, when the power of"
        f" the card limits its clock{_clocks(results)}. float8 is `torch._scaled_mm` with a scale per row and bfloat16"
        f" results.{now}{copied}",
        table(("product", "fp16 before", "fp16 now", "float8 before", "float8 now"), rows),
    )


def _clocks(results: Results) -> str:
    """The clock and power under load, for a sentence."""
    rows = results.rows("ceilings", product="sustained")
    metered = [row for row in rows if "power_w" in row]
    figures = [f"{row['dtype']} {row['clock_mhz']:.0f} MHz at {row['power_w']:.0f} W" for row in metered]
    return f" ({', '.join(figures)})" if figures else ""


def engine(results: Results) -> str:
    """The engine alone, by batch and outputs."""
    keys = [(row["batch"], row["outputs"]) for row in results.rows("engine") or BASELINE.rows("engine")]
    rows = []
    for batch, outputs in keys:
        names = {"batch": batch, "outputs": outputs}
        before, now = BASELINE, results
        flops, old_flops = (source.value("engine", "flops_s", **names) for source in (now, before))
        rows.append(
            (
                batch,
                outputs,
                _ms(before.value("engine", "encode_s", **names)),
                _ms(now.value("engine", "encode_s", **names)),
                _thousand(before.value("engine", "tokens_s", **names)),
                _thousand(now.value("engine", "tokens_s", **names)),
                _percent(ratio(old_flops, ceiling(before, "float16"))),
                _percent(ratio(flops, ceiling(now, "float16"))),
                _percent(ratio(flops, ceiling(now, "float16", "sustained"))),
            )
        )
    flying = {row["in_flight"] for row in results.rows("engine")}
    way = f" (now with {'two batches in flight' if flying == {2} else 'one batch after the other'})" if flying else ""
    return _joined(
        "## The engine alone",
        "`encode` is the time of one batch from token ids to vectors in the memory of the host, median."
        f" Tokens/s are of a stream of batches{way}; the share is of their linear layers"
        " (2 x 302 M operations per token) in the fp16 ceiling, so attention counts as lost; the last column is the"
        " share of the ceiling at the clock that the card sustains under load, as it does here.",
        table(
            (
                "batch",
                "outputs",
                "encode before, ms",
                "encode now, ms",
                "k tokens/s before",
                "k tokens/s now",
                "share before",
                "share now",
                "of the sustained",
            ),
            rows,
            words=2,
        ),
    )


def small(results: Results) -> str:
    """Small batches with CUDA graphs and without."""
    rows = [
        (row["batch"], row["way"], _ms(row["p50_s"]), _ms(row["p95_s"]), str(row["n"])) for row in results.rows("small")
    ]
    return _part(
        "## Small batches",
        "Time of one `encode` with all outputs.",
        ("batch", "way", "p50, ms", "p95, ms", "n"),
        rows,
        words=2,
    )


def embedder(results: Results) -> str:
    """Passages through the embedder, beside the engine and FlagEmbedding."""
    rows: list[Sequence[str]] = []
    for outputs in _EMBED_KINDS:
        names = {"step": "embed", "outputs": outputs}
        now, engine_rate = (results.value("embedder", key, **names) for key in ("tokens_s", "engine_tokens_s"))
        before = BASELINE.value("embedder", "tokens_s", **names)
        rows.append(
            (outputs, _thousand(before), _thousand(now), _thousand(engine_rate), _percent(ratio(now, engine_rate)))
        )
    tokenize = [
        f"{name} {rate / 1e6:.2f} M tokens/s"
        for name, source in (("before", BASELINE), ("now", results))
        if (rate := source.value("embedder", "tokens_s", step="tokenize"))
    ]
    library = []
    for row in results.rows("flagembedding") or BASELINE.rows("flagembedding"):
        if "tokens_s" in row:
            names = _names(row, "batch_size", "outputs")
            before, now = (source.value("flagembedding", "tokens_s", **names) for source in (BASELINE, results))
            ours = results.value("embedder", "tokens_s", step="embed", outputs=_ours(row["outputs"]))
            cells = (_thousand(before), _thousand(now), _times(ratio(ours, now)))
            library.append((str(row["batch_size"]), row["outputs"], *cells))
    single = results.value("flagembedding", "p50_s", outputs="one query")
    asked = f" One query takes FlagEmbedding {_ms(single)} ms (p50)." if single else ""
    return _joined(
        "## The embedder",
        "2048 mixed passages, 8 to 512 tokens, as one job of `Embedder.embed` with the service's defaults; the"
        " engine gets the same texts in batches of the same token budget. Tokenizing alone: "
        + ", ".join(tokenize)
        + ".",
        table(
            ("outputs", "k tokens/s before", "k tokens/s now", "the engine, k tokens/s", "share of the engine"),
            rows,
        ),
        _part(
            "### Beside FlagEmbedding",
            f"One instance in half precision on the same texts; `all` beside our float16 rows.{asked}",
            ("its batch", "outputs", "its k tokens/s before", "its k tokens/s now", "we are faster"),
            library,
            words=2,
        ),
    )


def queries(results: Results) -> str:
    """Queries by number of clients, and beside passages."""
    rows = []
    for row in results.rows("queries") or BASELINE.rows("queries", lanes=1):
        names = _names(row, "clients", "beside")
        old = [BASELINE.rows("queries", lanes=lanes, **names) for lanes in (1, 4)]
        new = results.rows("queries", **names)
        rows.append(
            (
                f"{row['clients']}" + (f", beside {row['beside']}" if row.get("beside") else ""),
                *(_queried(found) for found in (*old, new)),
                f"{row['bulk_tokens_s'] / 1e3:.0f}" if row.get("bulk_tokens_s") else "",
            )
        )
    return _joined(
        "## Queries through the pool",
        "Clients that each send one query of 5 to 12 tokens after the other, all three outputs; and one client"
        " beside jobs of passages that follow each other.",
        table(("clients", "before, 1 lane", "before, 4 lanes", "now", "passages meanwhile, k tokens/s"), rows, words=4),
    )


def handler(results: Results) -> str:
    """The handler beside the engine."""
    rows = [
        (
            name,
            str(row["texts"]),
            f"{row['tokens']}",
            _ms(row["handler_s"]),
            _ms(row.get("embed_s")),
            _ms(row["engine_s"]),
            _times(row["handler_s"] / row["engine_s"]),
        )
        for name, source in (("before", BASELINE), ("now", results))
        for row in source.rows("handler")
    ]
    return _part(
        "## The handler",
        "Passages as base64 of float16 through the handler of the queue, without Qdrant, beside the engine's time for"
        " the same texts.",
        ("", "texts", "tokens", "handler, ms", "`Embedder.embed`, ms", "engine, ms", "handler / engine"),
        rows,
    )


def float8(results: Results) -> str:
    """float8 beside float16."""
    rows = [
        (
            row["dtype"],
            row["batch"],
            row["outputs"],
            _ms(row["encode_s"]),
            _thousand(row["tokens_s"]),
            _percent(ratio(row["flops_s"], ceiling(results, row["dtype"]))),
            f"{row['cosine_mean']:.4f} / {row['cosine_min']:.4f}" if "cosine_mean" in row else "",
        )
        for row in results.rows("float8")
    ]
    return _part(
        "## float8",
        "The share is of the ceiling of the same type; the cosine is that of dense vectors to fp16's, on random weights"
        " and random tokens, mean and least. How float8 ranks is judged on the miniature by `bge-m3-qdrant precision`.",
        ("type", "batch", "outputs", "encode, ms", "k tokens/s", "share", "cosine"),
        rows,
        words=3,
    )


def profile(results: Results) -> str:
    """The share of a batch's time by class of kernel."""
    classes = ("products", "attention", "norms", "GELU", "quantisation", "heads", "copies", "other")
    cases = [
        (name, row)
        for name, source in (("before", BASELINE), ("now", results))
        for row in source.rows("profile")
        if "shares" in row
    ]
    rows = [
        (
            name,
            row["dtype"],
            row["batch"],
            row["outputs"],
            *(_percent(row["shares"].get(each)) for each in classes),
            _ms(row.get("busy_s")),
            _ms(row.get("wall_s")),
        )
        for name, row in cases
    ]
    kernels = [
        (row["dtype"], row["batch"], "`" + row["kernel"].replace("|", "/") + "`", row["class"], _percent(row["share"]))
        for row in results.rows("profile")
        if row.get("share", 0) >= 0.01
    ]
    longest = table(("type", "batch", "kernel", "class", "share"), kernels, words=4)
    folded = f"<details><summary>The kernels that take longest</summary>\n\n{longest}\n\n</details>" if kernels else ""
    return _part(
        "## Where the time goes",
        "Shares of the device's time by class of kernel, and the device's busy time beside the time by the clock, of"
        " one `encode`, under torch's profiler.",
        ("", "type", "batch", "outputs", *classes, "busy, ms", "clock, ms"),
        rows,
        words=4,
        after=folded,
    )


def memory(results: Results) -> str:
    """The GPU's memory."""
    rows = [
        (f"before, {row['lanes']} lane" + "s" * (row["lanes"] > 1), _gigabytes(row["peak_bytes"]))
        for row in BASELINE.rows("memory")
    ]
    peaks = [section.device_peak_bytes for section in results.sections.values()]
    if any(peaks):
        rows.append(("now, the most of any section", _gigabytes(max(peaks))))
    rows += [("now, reserved at the end", _gigabytes(row["reserved_bytes"])) for row in results.rows("memory")]
    return _part("## Memory of the GPU", "Peaks in GB.", ("", "GB"), rows)


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _part(
    title: str, text: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1, after: str = ""
) -> str:
    body = table(header, rows, words=words) if rows else f"{NOT_MEASURED.capitalize()}."
    return _joined(title, text, body, after)


def _reached(goal: Goal, results: Results) -> str:
    value = goal.measure(results)
    return "" if value is None else _with_unit(value, goal.unit)


def _limit(goal: Goal) -> str:
    return _with_unit(goal.goal, goal.unit)


def _with_unit(value: float, unit: str) -> str:
    return f"{value:.0f} {unit}" if unit in ("%", "/s") else f"{value:.3g} {unit}"


def _queried(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    row = rows[0]
    parts = [f"{row['queries_s']:.0f} /s"] if "queries_s" in row else []
    if "p50_s" in row:
        parts.append(f"p50 {_ms(row['p50_s'])}" + (f", p95 {_ms(row['p95_s'])}" if "p95_s" in row else "") + " ms")
    return "; ".join(parts)


def _names(row: Row, *keys: str) -> Row:
    return {key: row.get(key) for key in keys}


def _ours(outputs: str) -> str:
    return "all, float16 rows" if outputs == "all" else outputs


def _ms(seconds: float | None) -> str:
    return (
        ""
        if seconds is None
        else f"{1e3 * seconds:.2f}"
        if seconds < 0.01
        else f"{1e3 * seconds:.{1 if seconds < 0.1 else 0}f}"
    )


def _thousand(rate: float | None) -> str:
    return "" if rate is None else f"{rate / 1e3:.0f}" if rate >= 10e3 else f"{rate / 1e3:.2g}"


def _tera(rate: float | None) -> str:
    return "" if rate is None else f"{rate / 1e12:.0f}" if rate >= 10e12 else f"{rate / 1e12:.2g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _times(quotient: float | None) -> str:
    return "" if quotient is None else f"{quotient:.1f} x"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f}" if size else ""
