"""`bge-m3-qdrant ask`: a question on the command line, its hits and why they were found."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from service.transports.cli.ask import (
    COLBERT_STYLE,
    EXCERPT_MAX_CHARACTERS,
    SPARSE_STYLE,
    Answer,
    excerpt,
    request_of,
)
from tests.command_line import PROGRAM, ask_options, invoke
from tests.service.client import ENVIRONMENT, Client, Json
from tests.service.conftest import Serve

ROOT = Path(__file__).parents[2]
TEXTS = ["rsync copies only the changed parts of files.", "word " * 200 + "RSYNC is here. " + "word " * 200]
NOTES = {"collection": "notes", "ids": ["first", "second"], "payloads": [{"title": "rsync"}, {}]}


def asked(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, with its store at `path`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("QDRANT_", "MODEL_"))}
    environment = {**clean, **ENVIRONMENT, "QDRANT_PATH": str(path), "COLUMNS": "100"}
    return subprocess.run(
        [*PROGRAM, "ask", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def shown(answer: Json, query: str = "rsync", width: int = 100) -> str:
    """What a terminal shows of the first question's hits, without colours."""
    terminal = io.StringIO()
    result = answer["results"][0]
    shower = Answer(Console(file=terminal, width=width, highlight=False), "plain", "text")
    shower.show(query, result["hits"], result.get("unranked", 0))
    return terminal.getvalue()


@pytest.fixture(scope="module")
def filled(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A worker with two texts, which no test changes."""
    store = EdgeStore(tmp_path_factory.mktemp("asked"))
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), embedder, store))
    worker.good({"texts": TEXTS, "isPassage": True, "qdrant": NOTES})
    yield worker
    store.close()


@pytest.mark.slow
def test_a_question_is_answered_in_a_process(tmp_path: Path, serve: Serve) -> None:
    """The store of the environment is asked; with --json the worker's own answer comes out, for other programs."""
    store = EdgeStore(tmp_path / "asked")
    serve(store=store).good({"texts": TEXTS, "isPassage": True, "qdrant": NOTES})
    store.close()
    done = asked(tmp_path / "asked", "copy files", "--collection", "notes", "--rerank", "--explain", "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert [hit["payload"]["id"] for hit in result["hits"]] == ["first", "second"]
    assert result["hits"][0]["explain"]["colbert"]


def test_a_filter_restricts_the_hits(filled: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """--filter takes a filter in Qdrant's JSON, from a file with a byte order mark too, and null is none."""
    monkeypatch.setattr(filled.operations, "close", lambda: None)

    def ids(condition: str) -> list[str]:
        arguments = ["ask", "files", "--collection", "notes", "--json", "--filter", condition]
        ended = invoke(*arguments, build=lambda _: filled.operations)
        return [hit["payload"]["id"] for hit in json.loads(ended.out)["results"][0]["hits"]]

    assert ids('{"must": [{"key": "title", "match": {"value": "rsync"}}]}') == ["first"]
    assert ids('\ufeff{"must": [{"key": "title", "match": {"value": "rsync"}}]}') == ["first"]
    assert ids("null") == ["first", "second"]


def test_a_question_that_cannot_be_asked_is_one_line(filled: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's own message in terms of the command, on the standard error, with an exit status for scripts."""
    monkeypatch.setattr(filled.operations, "close", lambda: None)
    ended = invoke("ask", "copy files", "--limit", "0", "--json", build=lambda _: filled.operations)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == "bge-m3-qdrant ask: --limit must be at least 1, got 0\n"
    ended = invoke("ask", "copy files", "--collection", "absent", build=lambda _: filled.operations)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "absent" in ended.err


def test_a_setting_that_cannot_work_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the setting; there is no traceback."""
    monkeypatch.setenv("MAX_MODELS", "0")
    ended = invoke("ask", "files")
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("bge-m3-qdrant ask: MAX_MODELS must be at least 1, got '0'")


def test_the_command_line_is_a_search() -> None:
    """Every option is a field of the request, and what is not given is left to the worker."""
    assert request_of(ask_options("a b", "c")) == {
        "operation": "search",
        "queries": ["a b", "c"],
        "limit": 5,
        "explain": False,
    }
    everything = (
        "--collection notes --rerank --explain --limit 3 --text-key body --using sparse,colbert --filter {} --json"
    )
    assert (
        request_of(ask_options("a", *everything.split()))
        == request_of(ask_options(*everything.split(), "a"))
        == {
            "operation": "search",
            "queries": ["a"],
            "collection": "notes",
            "limit": 3,
            "using": ["sparse", "colbert"],
            "rerank": "colbert",
            "explain": True,
            "textKey": "body",
            "filter": {},
        }
    )


def test_hits_are_shown_with_title_score_and_text(filled: Client) -> None:
    """Best first; a title stands for its hit, else the caller's id."""
    answer = filled.good({"operation": "search", "collection": "notes", "queries": ["copy files with rsync"]})
    lines = shown(answer).splitlines()
    assert lines[0] == "? rsync"
    assert re.fullmatch(r"  1  0\.03\d+ +rsync *", lines[1])
    assert TEXTS[0] in lines[2]
    assert re.match(r"  2  0\.03\d+ +second", lines[3])
    assert "nothing found" in shown({"results": [{"hits": []}]})


def test_candidates_that_were_not_reranked_are_counted() -> None:
    """A hit without ColBERT rows has no score, and a line says how many candidates lack them."""
    hits = [{"id": 1, "score": 2.5, "payload": {"text": "a"}}, {"id": 2, "score": None, "payload": {"text": "b"}}]
    lines = shown({"results": [{"hits": hits, "unranked": 12}]}).splitlines()
    assert [line.split() for line in lines[1:5:2]] == [["1", "2.5", "1"], ["2", "-", "2"]]
    assert lines[5] == "  without ColBERT rows, and so not reranked: 12 of the candidates"
    assert "not reranked" not in shown({"results": [{"hits": hits[:1]}]})


def test_an_explanation_is_shown_beside_the_text(filled: Client) -> None:
    """Ranks of the branches, the parts of each score and what they add up to, and the alignment."""
    raw = {"operation": "search", "collection": "notes", "queries": ["copy files"], "explain": True}
    fused = shown(filled.good(raw))
    assert re.search(r"dense #1 \(0\.\d+\)  sparse #1 \(0\.\d+\)", fused)
    assert re.search(r"sparse, 0\.\d{4} in all", fused)
    assert re.search(r"files +0\.\d{3} +0\.\d{3} +0\.\d{4}", fused)
    assert re.search(r"sparse +0\.01639", fused)
    assert "sparse -" in fused, "the second text shares no token with the question"
    assert "ColBERT" not in fused
    reranked = shown(filled.good({**raw, "rerank": "colbert"}))
    assert re.search(r"ColBERT, \d\.\d{4} in all", reranked)
    assert re.search(r"files +files +0\.\d{3}", reranked)
    assert "fused score" not in reranked


def test_tokens_that_are_weighted_by_idf_have_no_part(serve: Serve) -> None:
    """The table of tokens shows their weights, and no sum that is not the score."""
    worker = serve(QDRANT_COLLECTION_CONFIG='{"sparse": {"modifier": "idf"}}')
    worker.good({"texts": TEXTS, "qdrant": {"collection": "idf"}})
    raw = {"operation": "search", "collection": "idf", "queries": ["copy files"], "explain": True}
    text = shown(worker.good(raw))
    assert "sparse, weighted by IDF" in text
    assert re.search(r"files +0\.\d{3} +0\.\d{3} *$", text, re.MULTILINE)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_figure_is_cut(filled: Client, width: int) -> None:
    """However narrow the terminal is, tables stand below each other rather than lose digits."""
    raw = {"operation": "search", "collection": "notes", "queries": ["copy files"], "explain": True, "limit": 1}
    answer = filled.good({**raw, "using": ["dense", "sparse", "colbert"]})
    text = shown(answer, width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    (why,) = (hit["explain"] for hit in answer["results"][0]["hits"])
    for figure in (
        *(f"{part:.5f}" for part in why["fusion"].values()),
        *(f"{match['contribution']:.4f}" for match in why["sparse"]),
        *(f"{match['score']:.3f}" for match in why["colbert"]),
    ):
        assert figure in text
    titles = [lines.index(line) for line in lines if any(t in line for t in ("fused score", "in all"))]
    assert len(set(titles)) == (1 if width == 200 else 3 if width == 40 else 2)
    assert all(line.startswith("     ") for line in lines[2:] if line.strip())


def test_matches_are_highlighted(filled: Client) -> None:
    """The tokens that matched stand out where they are in the text, and what ColBERT aligned is underlined."""
    raw = {"operation": "search", "collection": "notes", "queries": ["copy files"], "explain": True, "limit": 1}
    (hit,) = filled.good({**raw, "rerank": "colbert"})["results"][0]["hits"]
    text = excerpt(TEXTS[0], hit["explain"])
    assert text.plain == TEXTS[0]
    styled = {
        style: [text.plain[s.start : s.end] for s in text.spans if s.style == style]
        for style in (SPARSE_STYLE, COLBERT_STYLE)
    }
    assert "files" in styled[SPARSE_STYLE]
    assert "files" in styled[COLBERT_STYLE]


def test_a_long_text_is_shown_around_its_match(filled: Client) -> None:
    """What matched is in sight, however far into the text, and is marked as a part."""
    raw = {
        "operation": "search",
        "collection": "notes",
        "queries": ["rsync is here"],
        "explain": True,
        "using": ["sparse"],
    }
    hits = filled.good(raw)["results"][0]["hits"]
    (why,) = [hit["explain"] for hit in hits if hit["payload"]["text"] == TEXTS[1]]
    part = excerpt(TEXTS[1], why)
    assert len(part) == EXCERPT_MAX_CHARACTERS + 2
    assert part.plain.startswith("…")
    assert part.plain.endswith("…")
    highlighted = {part.plain[span.start : span.end] for span in part.spans}
    assert {text for text in highlighted if "RSYNC" in text} == {"RSYNC"}


@settings(max_examples=50)
@given(text=st.text(max_size=900), start=st.integers(0, 900))
def test_no_text_moves_the_cursor(text: str, start: int) -> None:
    """Whatever is stored, what is shown of it is printable, and as long as it should be."""
    spans = [[start, start + 1]] if start < len(text) else []
    part = excerpt(text, {"sparse": [{"spans": spans}], "colbert": None})
    assert all(character.isprintable() for character in part.plain)
    assert len(part.plain.strip("…")) <= EXCERPT_MAX_CHARACTERS
