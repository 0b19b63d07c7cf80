"""A plan gives the sizes that a server has, grows with what is planned, and loads no model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.planning_tables import (
    MEMORY_PAIRS,
    PAGE,
    comparisons,
    measurements,
    memory_comparisons,
    with_tables,
)
from qdrant_sink import ColbertSchema, CollectionSchema, DenseSchema, Placement, SparseSchema
from service.bulk.formats import FORMATS
from service.planning import (
    Passages,
    Resources,
    StoredColbert,
    StoredDense,
    StoredSparse,
    StoredVectors,
    collection_size,
    plan,
)
from service.planning.embedding_time import LONG_TOKENS_PER_S, tokens_per_second
from service.planning.stored_vectors import QUANTIZED_TYPES, STORAGE_TYPES
from service.transports.cli.commands import plan as command
from service.transports.cli.plan_report import duration
from tests.command_line import invoke

TOLERANCES = {
    "vectors": (-0.02, 0.05),
    "rows": (-0.02, 0.02),
    "quantized copy": (-0.02, 0.05),
    "graph": (-0.05, 0.3),
    "index": (-0.25, 0.05),
    "payload": (-0.02, 0.02),
    "payload index": (-0.02, 0.02),
    "ids and versions": (-0.05, 0.05),
}
"""Least and greatest relative error of the formulas. Graphs of vectors that are alike have fewer edges (uint8), and in
small collections the sparse index has more short lists of rare tokens."""

EVERYTHING = StoredVectors(dense=StoredDense(), sparse=StoredSparse(), colbert=StoredColbert())

storages = st.builds(
    StoredVectors,
    dense=st.builds(
        StoredDense,
        datatype=st.sampled_from(STORAGE_TYPES),
        quantization=st.sampled_from(QUANTIZED_TYPES),
        m=st.sampled_from([0, 8, 16, 64]),
        on_disk=st.booleans(),
    ),
    sparse=st.none() | st.builds(StoredSparse, on_disk=st.booleans()),
    colbert=st.none()
    | st.builds(
        StoredColbert,
        datatype=st.sampled_from(STORAGE_TYPES),
        quantization=st.sampled_from(QUANTIZED_TYPES),
        on_disk=st.booleans(),
        pooling=st.integers(1, 64),
    ),
    payload_on_disk=st.booleans(),
    payload_indexes=st.integers(0, 5),
    replication=st.integers(1, 3),
)
lengths = st.floats(2, 8192)
counts = st.integers(1, 10**10)


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL_ID", "QDRANT_COLLECTION_CONFIG", "QDRANT_URL", "QDRANT_PATH"):
        monkeypatch.delenv(name, raising=False)


def planned(*arguments: str) -> dict[str, Any]:
    """Run the command with --json and return its plan."""
    ended = invoke("plan", *arguments, "--json")
    assert ended.status == 0, ended.err
    answer: dict[str, Any] = json.loads(ended.out)
    return answer


def test_the_formulas_give_what_a_server_has_on_its_disk() -> None:
    """Every part of a collection is within a few percent of what a Qdrant server and Qdrant Edge wrote."""
    rows = list(comparisons())
    assert {row.part for row in rows} >= {"vectors", "quantized copy", "graph", "rows", "index", "payload"}
    assert {row.case for row in rows} == {case["case"] for case in measurements()} - {"ids-integer"}
    for row in rows:
        low, high = TOLERANCES[row.part]
        assert low <= row.error <= high, row
    assert {row.case for row in memory_comparisons()} == {large for _, large, _ in MEMORY_PAIRS}
    for row in memory_comparisons():
        assert abs(row.error) <= 0.15, row


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    """A reader of docs/planning.md sees the figures that the command prints."""
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- table: ") == 5
    assert with_tables(page) == page, "run python -m benchmarks.planning_tables"


def test_a_million_passages_with_colbert_take_a_terabyte() -> None:
    """ColBERT in float16 has 2048 bytes per token, 1 MB per passage of 512 tokens; pooling and turbo4 divide it."""
    passages = Passages.of_tokens(50_000_000, 512)

    def rows(**changes: Any) -> int:
        colbert = replace(StoredColbert(), **changes)
        return collection_size(replace(EVERYTHING, colbert=colbert), passages).by_kind()["colbert"]

    assert rows() / 50e6 == pytest.approx(511 * 2048, rel=1e-3)
    assert rows(pooling=4) == pytest.approx(rows() / 4, rel=1e-3)
    assert rows(datatype="turbo4") == pytest.approx(rows() / 4, rel=0.01)
    assert "colbert" not in collection_size(EVERYTHING.only(("dense", "sparse")), passages).by_kind()


@given(storages, lengths, lengths, counts, counts)
def test_more_is_never_smaller(stored: StoredVectors, short: float, long: float, few: int, many: int) -> None:
    """More or longer passages need no less disk, RAM, time, traffic or nodes."""
    short, long = sorted((short, long))
    few, many = sorted((few, many))
    small, large = (
        plan(stored, Passages.of_tokens(number, tokens), Resources()) for number, tokens in ((few, short), (many, long))
    )
    assert small.size.disk_bytes <= large.size.disk_bytes
    assert small.size.ram_bytes <= large.size.ram_bytes
    assert small.servers.nodes <= large.servers.nodes
    assert small.embedding.gpu_hours <= large.embedding.gpu_hours
    assert small.embedding.sent_bytes <= large.embedding.sent_bytes


@given(storages, lengths, counts)
def test_parts_add_up(stored: StoredVectors, tokens: float, number: int) -> None:
    """The total is that of the parts, vectors need no more RAM than disk, and copies multiply the servers."""
    size = collection_size(stored, Passages.of_tokens(number, tokens))
    assert (
        sum(size.by_kind().values())
        + sum(part.disk_bytes for part in size.parts if part.owner in {"payload", "points"})
        == size.disk_bytes
    )
    assert all(part.ram_bytes <= part.disk_bytes for part in size.parts if part.owner in {"dense", "colbert"})
    once, twice = (
        plan(replace(stored, replication=copies), Passages.of_tokens(number, tokens), Resources()).servers
        for copies in (1, 2)
    )
    assert twice.ram_bytes == pytest.approx(2 * once.ram_bytes, abs=2)
    assert twice.nodes >= max(once.nodes, 2)


@given(storages, lengths, counts)
def test_other_choices_save(stored: StoredVectors, tokens: float, number: int) -> None:
    """No ColBERT and fewer rows never need more; a choice that is made already is not offered again."""
    result = plan(stored, Passages.of_tokens(number, tokens), Resources())
    for choice in result.alternatives:
        if "ColBERT" in choice.name and "turbo4" not in choice.name:
            assert choice.size.disk_bytes <= result.size.disk_bytes
            assert choice.size.ram_bytes <= result.size.ram_bytes
        assert choice.size != result.size or "averaged" in choice.name


def test_a_point_is_sent_as_large_as_it_was_measured() -> None:
    """32 points of a dense vector, 100 weights and 256 ColBERT rows are the 33.8 MB of docs/benchmarks-sink.md."""
    passages = Passages(count=32, tokens=257, distinct=100, text_bytes=0)
    assert plan(EVERYTHING, passages, Resources()).embedding.sent_bytes == pytest.approx(33.8e6, rel=0.01)


@given(lengths)
def test_long_passages_take_longer_per_token(tokens: float) -> None:
    """The rate falls from that of mixed passages to that of passages of 8192 tokens."""
    rate = tokens_per_second(tokens, ("dense", "sparse"))
    assert LONG_TOKENS_PER_S * 0.999 <= rate <= tokens_per_second(2, ("dense", "sparse"))


def test_a_schema_is_planned_as_it_is_created() -> None:
    """Datatypes, quantization, graph, places, indexes and placement of a schema are those of the plan."""
    schema = CollectionSchema(
        dense=DenseSchema(size=1024, datatype="float16", quantization="int8", on_disk=True, m=32),
        sparse=SparseSchema(datatype="float16", on_disk=True),
        colbert=ColbertSchema(size=1024, quantization="binary"),
        payload_indexes={"topic": "keyword"},
        tenant_key="tenant",
        payload_on_disk=False,
        placement=Placement(shards=6, replication=2),
    )
    assert StoredVectors.of(schema) == StoredVectors(
        dense=StoredDense(datatype="float16", quantization="int8", on_disk=True, m=32),
        sparse=StoredSparse(datatype="float16", on_disk=True),
        colbert=StoredColbert(quantization="binary"),
        payload_on_disk=False,
        payload_indexes=2,
        shards=6,
        replication=2,
    )


def test_the_collection_config_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is of the user's own collections; options change single fields of it."""
    config = {"kinds": ["dense"], "dense": {"datatype": "float16", "onDisk": True}, "shards": 3, "replication": 2}
    monkeypatch.setenv("QDRANT_COLLECTION_CONFIG", json.dumps(config))
    monkeypatch.setenv("QDRANT_URL", "http://127.0.0.1:6333")
    arguments = ("--passages", "1M", "--tokens", "100")
    result = planned(*arguments)
    assert result["kinds"] == ["dense"]
    assert result["parts"][0]["name"] == "dense vectors, float16, on disk"
    assert (result["servers"]["shards"], result["servers"]["replication"]) == (3, 2)
    changed = planned(*arguments, "--datatype", "float32", "--quantization", "turbo4", "--vectors", "dense,sparse")
    assert changed["parts"][0]["diskBytes"] == 2 * result["parts"][0]["diskBytes"]
    assert "does not create the dense quantization turbo4" in " ".join(changed["assumptions"])


def test_costs_are_those_of_given_prices() -> None:
    """No price is built in; a given one is multiplied by what is used."""
    arguments = ("--passages", "50M", "--tokens", "512")
    assert planned(*arguments)["costs"] == {"embedding": None, "ramMonth": None, "diskMonth": None}
    result = planned(*arguments, "--gpu-hour-price", "4", "--tokens-per-s", "100000", "--gpus", "8")
    assert result["costs"]["embedding"] == pytest.approx(4 * 50e6 * 512 / 100_000 / 3600)
    assert result["embedding"]["hours"] == pytest.approx(result["embedding"]["gpuHours"] / 8, rel=1e-3)
    table = invoke("plan", *arguments, "--disk-gb-month-price", "0.1").out
    assert "costs      disk per month 6" in table


def test_a_person_reads_a_table() -> None:
    """Parts, servers, hours, network and assumptions with their sources are in the output."""
    ended = invoke("plan", "--passages", "1.5B", "--tokens", "200")
    assert ended.status == 0
    for words in (
        "1 500 000 000 passages of 200 tokens: dense, sparse, colbert",
        "ColBERT rows, float16, on disk",
        "300 billion tokens",
        "without ColBERT",
        "docs/benchmarks-gpu.md",
        "docs/planning.md",
    ):
        assert words in ended.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --passages and --tokens, or files to sample"),
        (("--passages", "5M"), "give --passages and --tokens"),
        (("--passages", "many", "--tokens", "9"), "'many' is not a number such as 250000, 50M or 1.5B"),
        (("--passages", "0", "--tokens", "9"), "'0' must be from 1 to 1000000000000"),
        (("--passages", "5M", "--tokens", "9000"), "9000.0 is not in the range 2<=x<=8192"),
        (("--passages", "5M", "--tokens", "nan"), "nan must be a finite number"),
        (("--passages", "5M", "--tokens", "9", "--ram-gb-month-price", "inf"), "inf must be a finite number"),
        (("--passages", "5M", "--tokens", "9", "--chunk-tokens", "64"), "--chunk-tokens needs files"),
        (("--chunk-overlap", "9", "x.jsonl"), "--chunk-overlap needs --chunk-tokens"),
        (("--passages", "5M", "--tokens", "9", "--quantization", "int4"), "'int4' is not one of"),
        (
            ("--passages", "5M", "--tokens", "9", "--vectors", "sparse", "--datatype", "float16"),
            "--datatype: no dense vectors are stored; name dense in --vectors",
        ),
        (("missing.jsonl",), "missing.jsonl: there is no such file"),
    ],
)
def test_mistakes_are_said_in_words(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wrong option or file ends with one line and status 2."""
    monkeypatch.setenv("MODEL_ID", "mini")
    monkeypatch.chdir(tmp_path)
    ended = invoke("plan", *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err
    assert ended.err.count("\n") == 1


def _documents(number: int) -> list[dict[str, Any]]:
    return [
        {"id": index, "text": f"passage {index} about rsync and backups", "payload": {"topic": "b" * (index % 7)}}
        for index in range(number)
    ]


def test_files_are_counted_and_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that is read to its end gives its exact number of documents; wrong lines are not documents."""
    monkeypatch.setenv("MODEL_ID", "mini")
    path = tmp_path / "passages.jsonl"
    lines = [json.dumps(document) for document in _documents(50)]
    path.write_text("\n".join([*lines, '{"text": 7}']), encoding="utf-8")
    result = planned(str(path))
    assert result["passages"] == 50
    assert result["sample"] == {
        "files": 1,
        "documents": 50,
        "readDocuments": 50,
        "tokenized": 50,
        "badLines": 1,
        "exact": True,
    }
    payload = next(part for part in result["parts"] if part["name"].startswith("text and payload"))
    assert payload["bytesPerPassage"] > 0
    assert planned(str(path), "--passages", "1M")["passages"] == 1_000_000
    assert planned(str(path), "--tokens", "300")["tokensPerPassage"] == 300


def test_fields_of_files_are_named_as_for_a_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """--text-field, --id-field and --payload-fields decide what is text and what is payload."""
    monkeypatch.setenv("MODEL_ID", "mini")
    path = tmp_path / "articles.csv"
    path.write_text("key,title,body,note\n1,rsync,copies files," + "n" * 3000, encoding="utf-8")
    fields = ("--text-field", "title", "--text-field", "body", "--id-field", "key")
    rest, chosen = planned(str(path), *fields), planned(str(path), *fields, "--payload-fields", "key")
    sizes = [
        next(part["bytesPerPassage"] for part in plan["parts"] if part["owner"] == "payload") for plan in (rest, chosen)
    ]
    assert sizes[0] > 2000
    assert sizes[1] < 200


def test_files_are_read_as_a_load_reads_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the same options for the encoding of text and for columns without a header."""
    monkeypatch.setenv("MODEL_ID", "mini")
    path = tmp_path / "rows.csv"
    path.write_bytes("naïve;7\nœuvre;8\n".encode("utf-16-le"))
    report = planned(str(path), "--encoding", "utf-16-le", "--columns", "text,id")
    assert (report["sample"]["documents"], report["sample"]["badLines"]) == (2, 0)


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        (1e-9, "less than 1 second"),
        (1 / 3600, "1 second"),
        (119.6 / 3600, "120 seconds"),
        (1 / 20, "3 minutes"),
        (2.5, "2.5 hours"),
        (999.7, "1 000 hours"),
        (12_345.6, "12 346 hours"),
    ],
)
def test_a_time_is_in_units_that_a_person_reads(hours: float, words: str) -> None:
    """Without exponents."""
    assert duration(hours) == words


def test_chunks_of_files_are_passages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With --chunk-tokens the passages are the chunks that a load would store."""
    monkeypatch.setenv("MODEL_ID", "mini")
    path = tmp_path / "long.jsonl"
    text = " ".join(f"Sentence number {index} is about backups." for index in range(200))
    path.write_text(json.dumps({"text": text}), encoding="utf-8")
    whole, chunks = planned(str(path)), planned(str(path), "--chunk-tokens", "64")
    assert whole["passages"] == 1
    assert chunks["passages"] > 10
    assert chunks["tokensPerPassage"] <= 64
    assert chunks["passages"] == planned(str(path), "--chunk-tokens", "64", "--chunk-overlap", "8")["passages"]
    assert "--chunk-tokens must be at least 32, got 5" in invoke("plan", str(path), "--chunk-tokens", "5").err


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_beginning_of_a_large_file_says_how_many_documents_there_are(
    form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a large file only the beginning is read, and its number of documents is an estimate."""
    monkeypatch.setenv("MODEL_ID", "mini")
    path = tmp_path / f"large.{form}"
    texts = [f"{index:06d} " + "word " * 400 for index in range(2000)]
    if form == "parquet":
        pyarrow.parquet.write_table(pa.table({"text": texts}), path, row_group_size=100)
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    result = planned(str(path), "--sample-mb", "1")
    assert result["sample"]["readDocuments"] < 1000
    assert not result["sample"]["exact"]
    assert result["passages"] == pytest.approx(2000, rel=0.02)


def test_many_files_are_sampled_evenly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a folder with more files than are read, the others are assumed to be like those."""
    monkeypatch.setenv("MODEL_ID", "mini")
    for index in range(300):
        (tmp_path / f"{index:03d}.txt").write_text(f"text number {index}", encoding="utf-8")
    result = planned(str(tmp_path))
    assert (result["passages"], result["sample"]["readDocuments"], result["sample"]["exact"]) == (300, 200, False)


def test_no_model_is_loaded(tmp_path: Path) -> None:
    """A plan of files imports no torch and no transformers."""
    path = tmp_path / "one.jsonl"
    path.write_text('{"text": "rsync copies files"}', encoding="utf-8")
    program = (
        "import sys; from service.transports.cli.main import cli\n"
        "try: cli.main(['plan', sys.argv[1]])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'qdrant_edge'} & set(sys.modules), 'a model or a store was loaded'"
    )
    subprocess.run([sys.executable, "-c", program, path], check=True, env=_mini(), capture_output=True)


def _mini() -> dict[str, str]:
    return os.environ | {"MODEL_ID": "mini"}


def test_the_choices_of_the_options_are_those_of_the_code() -> None:
    """The lists that --help shows are complete."""
    options = {option.name: option.type for option in command.command.params}
    for name, values in (
        ("datatype", STORAGE_TYPES),
        ("colbert_datatype", STORAGE_TYPES),
        ("quantization", QUANTIZED_TYPES),
        ("colbert_quantization", QUANTIZED_TYPES),
        ("format", FORMATS),
    ):
        choice = options[name]
        assert isinstance(choice, click.Choice)
        assert tuple(choice.choices) == tuple(values)
