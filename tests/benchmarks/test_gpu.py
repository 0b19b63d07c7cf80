"""The GPU benchmark's page shows the raw results, and its sections run without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.baseline import BASELINE
from benchmarks.gpu.bench import Bench, NotRunError
from benchmarks.gpu.engine import pipelined_rate
from benchmarks.gpu.goals import GOALS
from benchmarks.gpu.profile import busy_seconds, kind
from benchmarks.gpu.report import REPORT, render, write_report
from benchmarks.gpu.results import Results, Row, Section
from benchmarks.gpu.run import run_sections
from benchmarks.gpu.sections import SECTIONS, Plan
from benchmarks.gpu.texts import Texts, batches, random_batch, shapes
from embedder import Outputs
from embedder.engines import TokenBatch, YieldPoint
from embedder.tokenizer import EncodedText, Tokenizer
from training.random_checkpoint import build

ROOT = Path(__file__).parents[2]
NO_NOTES = "<!-- notes -->\n<!-- /notes -->"

ALL = "all, float16 rows"
SAMPLE: dict[str, list[Row]] = {
    "machine": [
        {"figure": "date", "value": "2027-01-02"},
        {"figure": "device", "value": "cuda:0"},
        {"figure": "GPU", "value": "Example X1"},
        {"figure": "type", "value": "float16"},
    ],
    "ceilings": [
        {"product": "model", "dtype": "float16", "flops_s": 800e12, "tokens_s": 1.3e6},
        {"product": "sustained", "dtype": "float16", "flops_s": 700e12, "clock_mhz": 1400.0, "power_w": 690.0},
        {"product": "model", "dtype": "float8", "flops_s": 1200e12, "tokens_s": 2e6},
        {"product": "copy", "bytes_s": 4.3e12},
    ],
    "engine": [
        {"batch": batch, "outputs": ALL, "encode_s": 0.033, "tokens_s": 1e6, "flops_s": flops, "in_flight": 2}
        for batch, flops in (("64 x 512", 616e12), ("128 x 256", 640e12))
    ],
    "small": [{"batch": "1 x 16", "way": "graphs", "p50_s": 0.001, "p95_s": 0.002, "n": 50}],
    "embedder": [
        {"step": "tokenize", "tokens_s": 3e6},
        {"step": "embed", "outputs": ALL, "tokens_s": 900e3, "engine_tokens_s": 1000e3},
    ],
    "queries": [
        {"clients": 1, "queries_s": 500.0, "p50_s": 0.002, "p95_s": 0.003, "n": 9},
        {"clients": 512, "queries_s": 7000.0, "p50_s": 0.07, "p95_s": 0.1, "n": 9},
        {"clients": 1, "beside": "64 x 512", "bulk_tokens_s": 5e5, "p50_s": 0.004, "p95_s": 0.007, "n": 9},
        {"clients": 1, "beside": "mixed", "bulk_tokens_s": 5e5, "p50_s": 0.004, "p95_s": 0.009, "n": 9},
    ],
    "handler": [{"texts": 512, "tokens": 71_000, "handler_s": 0.15, "embed_s": 0.1, "engine_s": 0.1, "n": 3}],
    "flagembedding": [
        {"batch_size": 256, "outputs": "all", "tokens_s": 115e3},
        {"batch_size": 32, "outputs": "all", "tokens_s": 60e3},
        {"batch_size": 1, "outputs": "one query", "p50_s": 0.025},
    ],
}
VERDICTS = ["met", "met", "met", "met", "met", "not measured yet", "met", "missed", "missed", "met"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A directory with the raw results of a run on a GPU that has no float8 products."""
    for name, rows in SAMPLE.items():
        Section(name, seconds=1.0, device_peak_bytes=5 * 10**9, rows=rows).write(tmp_path)
    Section("float8", "not run", "the GPU has no float8 products").write(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A tiny checkpoint on the CPU."""
    path = tmp_path_factory.mktemp("gpu") / "checkpoint"
    build(path, hidden=32, layers=1, heads=2, intermediate=64, positions=1026, dtype="float16")
    bench = Bench("cpu", path, quick=True)
    yield bench
    bench.close()


def test_goals_are_judged_by_the_worse_figure(results: Path) -> None:
    """The lowest share and the longest p95 decide; an unmeasured goal is neither met nor missed."""
    run = Results.read(results)
    assert [goal.verdict(run) for goal in GOALS] == VERDICTS
    sustained, share, *_, beside, handler = (goal.measure(run) for goal in GOALS)
    assert [sustained, share, beside, handler] == pytest.approx([88, 77, 9, 1.5])


@pytest.mark.slow
def test_the_page_stands_the_run_beside_the_baseline(results: Path, tmp_path: Path) -> None:
    """The page shows the machine, verdicts, both columns, and why a section did not run."""
    write_report(results, tmp_path / "docs" / "page.md")
    text = (tmp_path / "docs" / "page.md").read_text(encoding="utf-8")
    assert "on 2027-01-02, one Example X1" in text
    assert "another card than this one (Example X1): compare shares" in text
    assert "| one query through the pool, p50 | 8-12 ms | 2.5 ms | 2 ms | met |" in text
    assert "| **model** | 718 | 800 | 1149 | 1200 |" in text
    assert f"| 64 x 512 | {ALL} |  | 33.0 |  | 1000 |  | 77 % | 88 % |" in text
    assert "| 512 | 2907 /s | 2407 /s | 7000 /s; p50 70.0, p95 100 ms |  |" in text
    assert "| 256 | all | 115 | 115 | 7.8 x |" in text
    assert "| float8 | not run | the GPU has no float8 products |" in text


def test_without_a_run_the_page_is_the_dated_baseline() -> None:
    """Without a run the page shows the baseline and claims nothing about the present code."""
    text = render(Results(), notes=NO_NOTES, picture="")
    assert "*Before* is the code of 2026-11-26 on one NVIDIA H200" in text
    assert text.count("| not measured yet |") == len(GOALS)
    assert "| before | 512 | 71000 | 1073 |  | 110 | 9.8 x |" in text


def test_the_page_in_docs_is_that_of_the_code() -> None:
    """The committed page has every goal, the baseline and the handwritten notes."""
    text = REPORT.read_text(encoding="utf-8")
    assert all(goal.figure in text for goal in GOALS)
    assert "What was tried" in text


@pytest.mark.slow
def test_notes_by_hand_stay(results: Path, tmp_path: Path) -> None:
    """A new run replaces the tables and keeps the handwritten notes."""
    page = tmp_path / "page.md"
    page.write_text("old\n<!-- notes -->\nRead this.\n<!-- /notes -->\nold\n", encoding="utf-8")
    write_report(results, page)
    text = page.read_text(encoding="utf-8")
    assert "<!-- notes -->\nRead this.\n<!-- /notes -->" in text
    assert "old" not in text.split()


@pytest.mark.slow
def test_the_plots_are_the_same_for_the_same_results(results: Path, tmp_path: Path) -> None:
    """Plots of the same figures are identical files, with and without a run."""
    pytest.importorskip("matplotlib")
    from benchmarks.gpu.plot import draw

    for run in (Results.read(results), Results()):
        for name in ("a.svg", "b.svg"):
            draw(run, tmp_path / name)
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_baseline_has_the_form_of_a_run() -> None:
    """The baseline has the sections of a run."""
    assert set(BASELINE.sections) <= set(SECTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["machine", "ceilings", "small", "embedder", "queries", "handler", "profile"])
def test_a_section_runs_on_a_cpu(bench: Bench, tmp_path: Path, name: str) -> None:
    """Every section that needs no GPU yields figures and writes them."""
    run_sections(bench, tmp_path, [name], limit_s=60)
    section = Results.read(tmp_path).sections[name]
    assert (section.status, section.reason) == ("ok", "")
    assert section.rows


@pytest.mark.parametrize("name", ["float8", "memory"])
def test_a_section_that_needs_a_gpu_says_so(bench: Bench, tmp_path: Path, name: str) -> None:
    """A section that needs a GPU is skipped with a reason and does not fail."""
    run_sections(bench, tmp_path, [name], limit_s=60)
    section = Results.read(tmp_path).sections[name]
    assert section.status == "not run"
    assert "GPU" in section.reason


def test_a_failure_is_a_result_and_the_rest_goes_on(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failure keeps earlier rows, a cap ends a section, and a spent time limit starts no further section."""

    def fails(_: Bench) -> Iterator[Row]:
        yield {"first": 1.0}
        raise ValueError("no such kernel")

    def endless(_: Bench) -> Iterator[Row]:
        while True:
            yield {"n": 1}

    def absent(_: Bench) -> Iterator[Row]:
        raise NotRunError("not here")
        yield {}

    for name, measure in (("engine", fails), ("small", endless), ("float8", absent)):
        monkeypatch.setitem(SECTIONS, name, Plan(measure, 0.05))
    run_sections(bench, tmp_path, ["engine", "small", "float8"], limit_s=60)
    run_sections(bench, tmp_path, ["profile"], limit_s=0)
    sections = Results.read(tmp_path).sections
    assert (sections["engine"].status, sections["engine"].reason) == ("failed", "ValueError: no such kernel")
    assert sections["engine"].rows == [{"first": 1.0}]
    assert sections["small"].status == "ok"
    assert "its cap is" in sections["small"].reason
    assert (sections["float8"].status, sections["float8"].reason) == ("not run", "not here")
    assert sections["profile"].status == "not run"
    assert "engine: failed: ValueError: no such kernel" in capsys.readouterr().out


def test_a_missing_device_is_refused_plainly() -> None:
    """A missing device is refused by name before any work."""
    with pytest.raises(SystemExit, match="cuda:99 is not there"):
        main(["--device", "cuda:99"])


def test_two_batches_are_in_flight() -> None:
    """If the engine can launch, the next batch is launched before the previous one is awaited."""
    log: list[str] = []

    class Pending:
        def wait(self) -> None:
            log.append("wait")

    class Launching:
        def launch(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint) -> Pending:
            log.append("launch")
            return Pending()

    rate = pipelined_rate(Launching(), [random_batch([9], 100)], Outputs(), seconds=0, least=2)  # type: ignore[arg-type]
    assert rate > 0
    assert log == ["launch", "wait", *["launch"] * 2, "wait", "launch", "wait", "wait"]


def test_batches_hold_every_text_within_the_budget(bench: Bench) -> None:
    """Batches hold all texts in order; a text over the budget goes alone."""
    texts = [EncodedText(random_batch([length], 100).ids, truncated=False) for length in (5, 5, 30, 4, 4)]
    cut = list(batches(texts, 12))
    assert [batch.lengths.tolist() for batch in cut] == [[5, 5], [30], [4, 4]]


def test_texts_have_the_lengths_that_the_page_states(bench: Bench) -> None:
    """Queries have 5 to 12 tokens, passages 512, mixed ones 8 to 512; full batches have their stated size."""
    texts, tokenizer = Texts.make(bench.checkpoint, quick=True), Tokenizer(bench.checkpoint)
    assert {len(text) for text in tokenizer.encode(texts.queries, 512)} <= set(range(5, 13))
    assert {len(text) for text in tokenizer.encode(texts.passages, 1024)} == {512}
    assert max(len(text) for text in tokenizer.encode(texts.mixed, 1024)) == 512
    assert {name: len(lengths) for name, lengths in shapes(quick=False).items()}["1024 mixed"] == 1024


def test_kernels_are_classified_by_their_names() -> None:
    """Kernels are classified by torch's and its libraries' names; overlapping spans count once."""
    names = {
        "nvjet_hsh_128x256_64x4_2x1_v_bz_coopB_bias_TNN": "products",
        "void pytorch_flash::flash_fwd_kernel<cutlass::half_t>": "attention",
        "void at::native::vectorized_layer_norm_kernel<c10::Half>": "norms",
        "void at::native::vectorized_elementwise_kernel<4, GeluCUDAKernelImpl>": "GELU",
        "_add_norm_quantise": "norms",
        "_quantise": "quantisation",
        "_attend": "attention",
        "_normalised_rows": "heads",
        "Memcpy DtoH (Device -> Pinned)": "copies",
        "void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel": "heads",
        "void at::native::elementwise_add": "other",
    }
    assert {name: kind(name) for name in names} == names
    assert busy_seconds([(0, 2), (1, 3), (5, 6)]) == pytest.approx(4)


@pytest.mark.slow
def test_one_command_measures_and_writes_the_page(bench: Bench, tmp_path: Path) -> None:
    """The command measures and writes a page end to end without changing docs/benchmarks-gpu.md."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--out", str(tmp_path)]
    command += ["--checkpoint", str(bench.checkpoint), "--only", "machine", "ceilings", "small", "memory"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "memory: not run" in done.stdout
    out = tmp_path / "gpu" / "quick"
    assert json.loads((out / "ceilings.json").read_text(encoding="utf-8"))["status"] == "ok"
    assert "**A small checkpoint or no GPU" in (out / REPORT.name).read_text(encoding="utf-8")
