"""`bge-m3-qdrant precision`: metrics, verdicts and the command line."""

from __future__ import annotations

import ast
import json
import math
import subprocess
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import precision
from embedder import ModelOptions
from embedder.errors import ConfigurationError, ModelFailure
from embedder.tokenizer import Tokenizer
from embedder.vectors import Embedding, SparseVector
from precision import ranking
from precision import sample as samples
from precision.closeness import Spread, cosines, row_cosines, sparse_difference
from precision.comparison import Comparison, Embedded, Lengths, Quality, compare, embed
from precision.ranking import colbert_scores, dense_scores, fused_scores, ndcg, overlap, sparse_scores, top
from precision.sample import Sample, bundled, read
from precision.verdict import INT8, SIXTEEN_BIT, Check, described, judge, thresholds_for
from tests.command_line import PROGRAM, invoke
from tests.embedder.bench import Bench

ROOT = Path(precision.__file__).parents[1]
TYPES = ("float32", "bfloat16")
LENGTHS = Lengths(passage=64, query=32)


def sparse(weights: dict[int, float]) -> SparseVector:
    """Convert a map from token id to weight."""
    ids = sorted(weights)
    return SparseVector(np.array(ids, dtype=np.uint32), np.array([weights[i] for i in ids], dtype=np.float32))


def matrices(rows: int, columns: int) -> st.SearchStrategy[NDArray[np.float64]]:
    """Draw matrices of one shape in steps of 0.005 within [-1, 1], so that squares do not underflow."""
    number = st.integers(-200, 200).map(lambda whole: whole / 200)
    row = st.lists(number, min_size=columns, max_size=columns)
    return st.lists(row, min_size=rows, max_size=rows).map(np.array)


sparse_vectors = st.dictionaries(
    st.integers(0, 40), st.integers(1, 200).map(lambda whole: whole / 100), max_size=8
).map(sparse)


# Closeness


def test_cosines_by_hand() -> None:
    """Orthogonal vectors have cosine 0 and opposite ones -1; length is ignored; zero equals zero only."""
    reference = np.array([[1, 0], [1, 0], [1, 0], [0, 0], [0, 0]], dtype=np.float32)
    other = np.array([[0, 3], [2, 2], [-1, 0], [0, 0], [1, 0]], dtype=np.float32)
    assert cosines(reference, other) == pytest.approx([0, math.sqrt(0.5), -1, 1, 0])
    assert row_cosines([reference[:2], reference[2:]], [other[:2], other[2:]]) == pytest.approx(
        cosines(reference, other)
    )


@given(matrices(3, 4), matrices(3, 4))
def test_a_cosine_is_symmetric_and_bounded(left: NDArray[np.float64], right: NDArray[np.float64]) -> None:
    """Cosines lie in [-1, 1], are symmetric, and are 1 for a vector with itself."""
    cosine = cosines(left, right)
    assert (np.abs(cosine) <= 1).all()
    assert cosine == pytest.approx(cosines(right, left))
    assert cosines(left, left) == pytest.approx(np.ones(3))


def test_a_spread_of_nothing_is_not_a_number() -> None:
    """The spread of no measurements is NaN."""
    nothing = Spread.of(np.empty(0))
    assert nothing.count == 0
    assert math.isnan(nothing.least)
    assert math.isnan(nothing.largest)
    assert Spread.of(np.arange(101.0)) == Spread(101, 0, 1, 50, 99, 100)


def test_sparse_difference_by_hand() -> None:
    """Large weights are compared relatively, small and missing ones by half of the text's maximum."""
    difference = sparse_difference([sparse({1: 1.0, 2: 0.75, 3: 0.1})], [sparse({1: 1.0, 2: 0.72, 4: 0.01})], floor=0.5)
    # id 1: 0; id 2: 0.03 / 0.75; id 3: 0.1 / 0.5; id 4: 0.01 / 0.5
    assert difference.error.count == 4
    assert difference.error.largest == pytest.approx(0.2)
    assert difference.error.median == pytest.approx(0.03)
    assert difference.own_error.count == 2
    assert difference.own_error.largest == pytest.approx(0.04)
    assert difference.jaccard.median == pytest.approx(2 / 4)
    assert difference.weighted_jaccard.median == pytest.approx(1.72 / 1.86)
    assert difference.one_sided == 2
    assert difference.one_sided_largest == pytest.approx(0.1)


def test_texts_without_weights_agree_with_each_other_only() -> None:
    """Two empty sparse vectors are equal; an empty and a non-empty one differ entirely."""
    both = sparse_difference([sparse({})], [sparse({})], floor=0.5)
    assert both.jaccard.least == both.weighted_jaccard.least == 1
    assert both.one_sided == 0
    appeared = sparse_difference([sparse({})], [sparse({7: 0.25})], floor=0.5)
    assert appeared.weighted_jaccard.least == 0
    assert appeared.one_sided_largest == 1
    assert appeared.error.largest == 2


@given(st.lists(st.tuples(sparse_vectors, sparse_vectors), min_size=1, max_size=4))
def test_sparse_difference_is_bounded_and_zero_with_oneself(pairs: list[tuple[SparseVector, SparseVector]]) -> None:
    """All indices lie in [0, 1], and equal vectors have no difference."""
    lefts, rights = [left for left, _ in pairs], [right for _, right in pairs]
    difference = sparse_difference(lefts, rights, floor=0.5)
    for spread in (difference.jaccard, difference.weighted_jaccard):
        assert 0 <= spread.least <= spread.largest <= 1
    assert difference.one_sided <= difference.error.count
    same = sparse_difference(lefts, lefts, floor=0.5)
    assert same.jaccard.least == same.weighted_jaccard.least == 1
    assert not same.error.count or same.error.largest == 0


# Rankings


def test_ndcg_by_hand() -> None:
    """The nDCG sums 1 / log2(rank + 1) per right answer, divided by the best possible sum."""
    relevant = np.array([[True, False, False], [True, True, False], [False, False, True], [False, False, False]])
    values = ndcg(np.array([[1, 0, 2], [2, 0, 1], [0, 1, -1], [0, 1, 2]]), relevant)
    two = (1 / math.log2(3) + 1 / 2) / (1 + 1 / math.log2(3))
    assert values == pytest.approx([1 / math.log2(3), two, 0, 0])


@given(st.permutations(range(6)), st.lists(st.booleans(), min_size=6, max_size=6), st.integers(1, 6))
def test_ndcg_is_1_exactly_for_the_best_order(order: list[int], right: list[bool], depth: int) -> None:
    """The nDCG lies in [0, 1] and is 1 if the right answers come first."""
    relevant = np.array([right])
    assert 0 <= ndcg(np.array([order[:depth]]), relevant)[0] <= 1 + 1e-12
    best = sorted(order, key=lambda passage: not right[passage])[:depth]
    assert ndcg(np.array([best]), relevant)[0] == pytest.approx(1.0 if any(right) else 0.0)


def test_overlap_by_hand() -> None:
    """Overlap ignores the order, counts the length, and skips empty ranks."""
    ranking = np.array([[0, 1, 2], [0, 1, 2], [0, -1, -1], [-1, -1, -1]])
    other_ranking = np.array([[2, 1, 0], [0, 4, 5], [0, 1, -1], [-1, -1, -1]])
    assert overlap(ranking, other_ranking) == pytest.approx([1, 1 / 3, 1 / 2, 1])


def test_the_best_come_first_and_ties_keep_their_order() -> None:
    """Rankings are deterministic and exclude passages whose score does not exceed the bound."""
    scores = np.array([[0.0, 2.0, 1.0, 2.0], [0.0, 0.0, 0.0, 1.0]])
    assert top(scores, 3).tolist() == [[1, 3, 2], [3, 0, 1]]
    assert top(scores, 3, above=0).tolist() == [[1, 3, 2], [3, -1, -1]]
    assert top(scores, 9).shape == (2, 4)


def test_fusion_by_hand() -> None:
    """Each ranking adds 1 / (60 + rank) for its passages and nothing for others."""
    fused = fused_scores([np.array([[0, 1]]), np.array([[1, -1]])], passages=3)
    assert fused == pytest.approx(np.array([[1 / 61, 1 / 62 + 1 / 61, 0]]))


@given(st.lists(sparse_vectors, min_size=1, max_size=3), st.lists(sparse_vectors, min_size=1, max_size=4))
def test_sparse_scores_are_inner_products(queries: list[SparseVector], passages: list[SparseVector]) -> None:
    """Sparse scores equal the inner products of the dense form."""

    def full(vector: SparseVector) -> NDArray[np.float64]:
        weights = np.zeros(41)
        weights[vector.indices] = vector.values
        return weights

    wanted = [[full(query) @ full(passage) for passage in passages] for query in queries]
    assert sparse_scores(queries, passages) == pytest.approx(np.array(wanted))


def test_colbert_scores_are_sums_of_best_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    """MaxSim does not depend on how passages are grouped for multiplication."""
    numbers = np.random.default_rng(0)
    queries = [numbers.normal(size=(rows, 5)) for rows in (1, 4)]
    passages = [numbers.normal(size=(rows, 5)) for rows in (3, 1, 7, 2, 2)]
    wanted = np.array([[sum(max(a @ b for b in passage) for a in query) for passage in passages] for query in queries])
    for rows in (1, 4, 7, 1000):
        monkeypatch.setattr(ranking, "ROWS", rows)
        assert colbert_scores(queries, passages) == pytest.approx(wanted)


@given(matrices(2, 3), matrices(4, 3))
def test_dense_scores_are_inner_products(queries: NDArray[np.float64], passages: NDArray[np.float64]) -> None:
    """Dense scores are inner products, row by row."""
    wanted = [[query @ passage for passage in passages] for query in queries]
    assert dense_scores(queries, passages) == pytest.approx(np.array(wanted))


# Verdicts


@pytest.fixture(scope="module")
def small() -> Sample:
    """A few passages and the questions that they answer."""
    whole = bundled()
    assert whole.answers is not None
    selected = [number for number, answers in enumerate(whole.answers) if max(answers) < 40][:12]
    return Sample(
        whole.passages[:40],
        tuple(whole.queries[number] for number in selected),
        tuple(whole.answers[number] for number in selected),
    )


@pytest.fixture(scope="module")
def exact(small: Sample) -> Embedded:
    """The small sample in float32."""
    return embed(small, ModelOptions("mini", dtype="float32", device="cpu"), LENGTHS)


def damaged(embedded: Embedded, noise: float) -> Embedded:
    """Return the sample with noise of this norm on unit vectors and of this size on weights."""
    numbers = np.random.default_rng(3)

    def disturbed(array: NDArray[Any]) -> NDArray[np.float32]:
        step = numbers.normal(size=array.shape)
        moved = array + noise * step / np.linalg.norm(step, axis=-1, keepdims=True)
        unit_rows: NDArray[np.float32] = (moved / np.linalg.norm(moved, axis=-1, keepdims=True)).astype(np.float32)
        return unit_rows

    def one(result: Embedding | ModelFailure) -> Embedding | ModelFailure:
        assert isinstance(result, Embedding)
        assert result.dense is not None
        assert result.sparse is not None
        assert result.colbert is not None
        return replace(
            result,
            dense=disturbed(result.dense),
            sparse=SparseVector(result.sparse.indices, result.sparse.values * np.float32(1 + noise)),
            colbert=disturbed(result.colbert),
        )

    return Embedded([one(text) for text in embedded.passages], [one(text) for text in embedded.queries])


def with_dense_of_the_next(texts: Sequence[Embedding | ModelFailure]) -> list[Embedding | ModelFailure]:
    """Give each text the dense vector of the next one."""
    embeddings = [text for text in texts if isinstance(text, Embedding)]
    return [
        replace(embedding, dense=following.dense)
        for embedding, following in zip(embeddings, embeddings[1:] + embeddings[:1], strict=True)
    ]


def failed(comparison: Comparison) -> set[str]:
    """Return the failed checks of 16-bit types."""
    return {check.name for check in judge(comparison, SIXTEEN_BIT) if not check.passed}


@pytest.mark.slow
def test_float32_agrees_with_itself(small: Sample, exact: Embedded) -> None:
    """Compared with itself, a model has cosines of 1, equal weights and equal rankings, and passes."""
    again = embed(small, ModelOptions("mini", dtype="float32", device="cpu"), LENGTHS)
    comparison = compare(exact, again, small.answers, types=("float32", "float32"))
    assert (comparison.passages, comparison.queries, comparison.failed) == (40, 12, 0)
    assert comparison.dense.least == pytest.approx(1)
    assert comparison.colbert.least == pytest.approx(1)
    assert comparison.colbert.count == comparison.tokens - 52
    assert comparison.sparse.error.largest == pytest.approx(0, abs=1e-6)
    assert list(comparison.rankings) == ["dense", "sparse", "colbert", "all three, RRF"]
    for agreement in comparison.rankings.values():
        assert agreement.overlap == agreement.same_first == 1
        assert agreement.quality is not None
        assert 0.3 < agreement.quality.reference == agreement.quality.other
    assert not failed(comparison)


@pytest.mark.slow
def test_bfloat16_differs_as_much_as_it_does(small: Sample, exact: Embedded) -> None:
    """bfloat16 shows rounding, and on the miniature it stays within the vector limits."""
    other = embed(small, ModelOptions("mini", dtype="bfloat16", device="cpu"), LENGTHS)
    comparison = compare(exact, other, small.answers, types=TYPES)
    assert SIXTEEN_BIT.dense_cosine < comparison.dense.least < 1 - 1e-6
    assert SIXTEEN_BIT.colbert_cosine < comparison.colbert.least < 1 - 1e-6
    assert 1e-4 < comparison.sparse.error.largest < SIXTEEN_BIT.sparse_error


@pytest.mark.parametrize(
    ("noise", "wanted"),
    [
        (0.005, set()),
        (0.1, {"dense cosine, least", "ColBERT row cosine, least", "sparse weight error, largest"}),
    ],
)
def test_damage_is_found_by_its_size(small: Sample, exact: Embedded, noise: float, wanted: set[str]) -> None:
    """Errors of 0.5 % pass and errors of 10 % fail, for each of the three kinds."""
    failed_checks = failed(compare(exact, damaged(exact, noise), small.answers, types=TYPES))
    assert {name for name in failed_checks if "nDCG" not in name} == wanted


def test_vectors_of_the_wrong_texts_fail_in_everything(small: Sample, exact: Embedded) -> None:
    """An engine that swaps texts fails the ranking checks, too."""
    mixed = Embedded(with_dense_of_the_next(exact.passages), exact.queries)
    comparison = compare(exact, mixed, small.answers, types=TYPES)
    assert failed(comparison) == {"dense cosine, least", "nDCG@10 loss, dense", "nDCG@10 loss, all three, RRF"}


def test_a_text_that_fails_is_left_out_and_fails_the_verdict(small: Sample, exact: Embedded) -> None:
    """A failed text is named with its error type and fails the verdict; the others are compared."""
    gone = Embedded([ModelFailure("not finite"), *exact.passages[1:]], exact.queries)
    comparison = compare(exact, gone, small.answers, types=TYPES)
    assert (comparison.passages, comparison.failed) == (39, 1)
    assert comparison.failures == {"float32": {}, "bfloat16": {"not finite": 1}}
    assert failed(comparison) == {"texts not embedded"}
    without = compare(gone, gone, small.answers, types=TYPES)
    assert comparison.rankings == without.rankings


def test_a_model_that_embeds_nothing_fails(exact: Embedded) -> None:
    """A model without any vectors fails the verdict."""
    nothing = Embedded([ModelFailure("broken")] * 40, [ModelFailure("broken")] * 12)
    comparison = compare(exact, nothing, None, types=TYPES)
    assert comparison.rankings == {}
    assert failed(comparison) == {
        "texts not embedded",
        "dense cosine, least",
        "ColBERT row cosine, least",
        "sparse weight error, largest",
    }


def test_without_right_answers_rankings_are_judged_by_their_overlap(exact: Embedded) -> None:
    """With user queries, the top ten passages must nearly coincide."""
    assert not failed(compare(exact, exact, None, types=TYPES))
    mixed = Embedded(exact.passages, with_dense_of_the_next(exact.queries))
    failed_checks = failed(compare(exact, mixed, None, types=TYPES))
    assert failed_checks == {"dense cosine, least", "overlap@10, dense", "overlap@10, all three, RRF"}


def test_a_better_ranking_is_no_loss() -> None:
    """The nDCG change is signed, and only a decrease counts as a loss."""
    assert Quality(0.5, 0.6).change == pytest.approx(0.2)
    assert Quality(0.5, 0.4).change == pytest.approx(-0.2)
    assert Quality(0, 0).change == 0
    assert Quality(0, 0.1).change == math.inf


@pytest.mark.parametrize("relation", [">", ">=", "<="])
def test_what_is_not_a_number_passes_no_check(relation: Any) -> None:
    """A value of NaN fails its check."""
    assert not Check("x", float("nan"), relation, 0.5).passed
    assert Check("x", 0.5, relation, 0.5).passed is (relation != ">")


def test_thresholds_depend_on_the_type() -> None:
    """16-bit types have strict limits, int8 has looser ones, and the report lists the applied limits."""
    assert thresholds_for("bfloat16") == thresholds_for("float16") == SIXTEEN_BIT
    assert (SIXTEEN_BIT.dense_cosine, SIXTEEN_BIT.colbert_cosine) == (0.9995, 0.9995)
    assert (SIXTEEN_BIT.sparse_error, SIXTEEN_BIT.ndcg_loss) == (0.02, 0.005)
    assert thresholds_for("int8") == thresholds_for("float8") == INT8
    for field in fields(INT8):
        loose, strict = getattr(INT8, field.name), getattr(SIXTEEN_BIT, field.name)
        assert loose > strict if field.name in {"sparse_error", "ndcg_loss"} else loose < strict
    assert described("int8", INT8) == "the defaults of int8"
    assert described("float8", INT8) == "the defaults of float8"
    assert described("float16", replace(SIXTEEN_BIT, overlap=0.5)) == "the defaults of 16-bit types, but for overlap"


# Texts and the command line


def test_texts_are_read_line_by_line(tmp_path: Path) -> None:
    """Byte order marks and line endings are stripped, and blank or repeated lines are skipped."""
    file = tmp_path / "texts"
    file.write_bytes("\ufeffone\r\ntwo\u2028still two\n\n  \none\nthree".encode())
    assert read(str(file), None) == Sample(("one", "two\u2028still two", "three"))


def test_the_bundled_sample_has_answers() -> None:
    """Without files, the bundled texts, questions and answers are used."""
    sample = read(None, None)
    assert sample.answers is not None
    assert len(sample.answers) == len(sample.queries) > 0
    assert max(max(answers) for answers in sample.answers) < len(sample.passages)


def test_more_texts_than_fit_are_cut_and_it_is_said(
    mini: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file over the limit is compared up to the limit, and the report says so."""
    tokenizer: Tokenizer = mini.tokenizer
    sample = Sample(("one text", "another text", "a third text"), ("query",))
    limits = {"passage_length": 8, "query_length": 8}
    assert samples.fitting(sample, tokenizer, **limits) == sample
    monkeypatch.setattr(samples, "MAX_PASSAGES", 2)
    assert samples.fitting(sample, tokenizer, **limits).passages == sample.passages[:2]
    monkeypatch.setattr(samples, "MAX_TOKENS", 1)
    assert samples.fitting(sample, tokenizer, **limits).passages == sample.passages[:1]
    assert "the first 1 of 3 texts" in caplog.text
    assert samples.fitting(bundled(), tokenizer, **limits) == bundled()


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "holds no text"), (b" \n\n", "holds no text"), (b"a\xff", "is not UTF-8 (byte 1)")]
)
def test_a_file_without_texts_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """The error message names the argument and what is wrong with its file."""
    file = tmp_path / "texts"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"^--passages: ") as caught:
        read(str(file), None)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "--model: must be `mini`, an existing directory"),
        (["--model", "mini", "--passages", "nowhere"], "--passages: nowhere cannot be read (No such file"),
        (["--model", "mini", "--passages", "a\0b"], "cannot be read (no valid path)"),
        (["--model", "mini", "--queries", "nowhere"], "--queries: needs --passages"),
        (["--model", "mini", "--passages", "-", "--queries", "-"], "--queries: the standard input is read"),
        (["--model", "mini", "--max-length", "2"], "--max-length: must be from 3 to the model's 512, got 2"),
        (["--model", "mini", "--device", "tpu"], "--device: 'tpu' is an unknown device"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    """Invalid usage exits with status 2, one line that names the argument, and an empty standard output."""
    ended = invoke("precision", *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert message in ended.err


@pytest.mark.slow
def test_limits_on_the_command_line_override(tmp_path: Path) -> None:
    """A limit that cannot be met fails the verdict with status 1, and the table shows which."""
    file = tmp_path / "texts"
    file.write_text("one text\nanother text\n", encoding="utf-8")
    arguments = ["--model", "mini", "--dtype", "float32", "--device", "cpu", "--passages", str(file)]
    ended = invoke("precision", *arguments, "--min-dense-cosine", "1")
    assert ended.status == 1
    out = ended.out
    assert "the defaults of 16-bit types, but for dense_cosine" in out
    assert "2 passages and 0 queries of your files" in out
    assert "FAIL  dense cosine, least" in out
    assert "PASS  ColBERT row cosine, least" in out
    assert "overlap@10" not in out
    assert out.splitlines()[-1].startswith("FAIL: float32 against float32")


def run(*arguments: str, texts: str = "") -> subprocess.CompletedProcess[str]:
    """Run the program with `texts` on its standard input."""
    return subprocess.run(
        [*PROGRAM, "precision", *arguments],
        cwd=ROOT,
        input=texts,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_the_program_prints_one_json_object(tmp_path: Path) -> None:
    """With --json the standard output is one object, whatever is logged, and status 0 is its verdict PASS."""
    queries = tmp_path / "queries"
    queries.write_text("a text\n", encoding="utf-8")
    done = run(
        *("--model", "mini", "--dtype", "float16", "--device", "cpu", "--passages", "-", "--queries", str(queries)),
        *("--max-length", "5", "--json"),
        texts="one text with a few more words\nanother one\n",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["model"], report["engine"], report["device"], report["dtype"]) == (
        "mini",
        "packed",
        "cpu",
        "float16",
    )
    assert (report["passages"], report["queries"], report["truncated"]) == (2, 1, 1)
    assert report["max_length"] == {"passage": 5, "query": 5}
    assert report["rankings"]["dense"]["quality"] is None
    assert report["verdict"] == "PASS"
    assert all(check["passed"] for check in report["checks"])
    assert "float16" in done.stderr


def test_the_program_refuses_without_a_traceback() -> None:
    """A mistake in the arguments prints one line and exits with status 2."""
    done = run("--model", "mini", "--passages", "nowhere.txt")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "bge-m3-qdrant precision: --passages: nowhere.txt cannot be read (No such file or directory)"
    ]


def test_the_command_knows_the_embedder_and_the_corpus_only() -> None:
    """The command imports neither Qdrant nor the service, and neither imports the command."""
    ours = {"embedder", "qdrant_sink", "service", "corpus", "precision", "training", "tests"}

    def imported(path: Path) -> set[str]:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        return {name.partition(".")[0] for name in names} & ours

    for path in (ROOT / "precision").glob("*.py"):
        assert imported(path) <= {"embedder", "corpus", "precision"}
    for package in ("embedder", "qdrant_sink", "service", "corpus"):
        for path in (ROOT / package).glob("*.py"):
            assert "precision" not in imported(path)
