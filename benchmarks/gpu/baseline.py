"""The figures of the code of 2026-11-26, before the work on the GPU path, in the form of the results of a run.

One NVIDIA H200, 16 cores of its host, Python 3.12, torch 2.11+cu130, float16, random weights of full size. The pool ran
with 1 and with 4 worker threads (`lanes`). Where a range was noted, its middle stands here.
"""

from __future__ import annotations

from benchmarks.gpu.results import Results, Row, Section

DATE = "2026-11-26"
GPU = "NVIDIA H200"
_ALL = "all, float32 rows"


def _ceilings() -> list[Row]:
    tera = {
        "1024 -> 3072": (706, 1061),
        "1024 -> 1024": (677, 1010),
        "1024 -> 4096": (690, 1092),
        "4096 -> 1024": (770, 1351),
        "model": (718, 1149),
    }
    rows: list[Row] = [
        {"product": product, "dtype": dtype, "flops_s": rate * 1e12}
        for product, rates in tera.items()
        for dtype, rate in zip(("float16", "float8"), rates, strict=True)
    ]
    rows[-2]["tokens_s"], rows[-1]["tokens_s"] = 1.19e6, 1.90e6
    return rows


def _engine() -> list[Row]:
    thousands = {
        "64 x 128": (706, 622),
        "512 x 128": (698, 678),
        "64 x 512": (636, 610),
        "1024 mixed": (674, 646),
        "1 x 8192": (245, 238),
    }
    rates: list[Row] = [
        {"batch": batch, "outputs": outputs, "tokens_s": rate * 1e3, "flops_s": 2.0 * 302e6 * rate * 1e3}
        for batch, pair in thousands.items()
        for outputs, rate in zip(("dense", _ALL), pair, strict=True)
    ]
    return [
        {"batch": "1 x 9", "outputs": "dense", "encode_s": 0.0045},
        {"batch": "1 x 9", "outputs": _ALL, "encode_s": 0.0054},
        {"batch": "128 x 9", "outputs": "dense", "encode_s": 0.00625},
        {"batch": "128 x 9", "outputs": _ALL, "encode_s": 0.0057},
        *rates,
    ]


def _queries() -> list[Row]:
    rows: list[Row] = []
    for lanes, p50_s, rates, beside in (
        (1, 0.0080, (452, 2214, 2907), (0.335, 0.388)),
        (4, 0.0113, (226, 1619, 2407), (0.0133, 0.027)),
    ):
        rows.append({"lanes": lanes, "clients": 1, "p50_s": p50_s, "queries_s": 1 / p50_s})
        rows += [
            {"lanes": lanes, "clients": clients, "queries_s": float(rate)}
            for clients, rate in zip((8, 128, 512), rates, strict=True)
        ]
        rows.append({"lanes": lanes, "clients": 1, "beside": "64 x 512", "p50_s": beside[0], "p95_s": beside[1]})
    return rows


_SHARES = {"products": 0.60, "attention": 0.16, "GELU": 0.10, "norms": 0.09, "other": 0.05}
_ROWS: dict[str, list[Row]] = {
    "ceilings": _ceilings(),
    "engine": _engine(),
    "small": [
        {"batch": "1 x 16", "way": "eager", "p50_s": 0.0055},
        {"batch": "128 x 8", "way": "eager", "p50_s": 0.0074},
    ],
    "embedder": [
        {"step": "tokenize", "tokens_s": 3.05e6},
        {"step": "embed", "outputs": "dense", "tokens_s": 538e3},
        {"step": "embed", "outputs": "dense + sparse", "tokens_s": 528e3},
        {"step": "embed", "outputs": "all, float16 rows", "tokens_s": 255e3},
        {"step": "embed", "outputs": _ALL, "tokens_s": 245e3},
    ],
    "queries": _queries(),
    "handler": [{"texts": 512, "tokens": 71_000, "handler_s": 1.073, "engine_s": 0.110}],
    "profile": [{"dtype": "float16", "batch": "64 x 512", "outputs": "dense", "shares": _SHARES}],
    "flagembedding": [
        {"batch_size": 256, "outputs": "all", "tokens_s": 115e3},
        {"batch_size": 256, "outputs": "dense", "tokens_s": 286e3},
        {"batch_size": 32, "outputs": "all", "tokens_s": 46e3},
        {"batch_size": 32, "outputs": "dense", "tokens_s": 225e3},
        {"batch_size": 1, "outputs": "one query", "p50_s": 0.025},
    ],
    "memory": [{"lanes": 1, "peak_bytes": 7.6e9}, {"lanes": 4, "peak_bytes": 19.8e9}],
}
BASELINE = Results({name: Section(name, rows=rows) for name, rows in _ROWS.items()})
