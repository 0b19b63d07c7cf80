"""A dry run says what a load would do, and does nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from tests.command_line import invoke
from tests.service.client import ENVIRONMENT
from tests.service.test_bulk import Loader, line

LONG = " ".join(f"Sentence number {number} speaks of topic {number % 7}." for number in range(12))
LINES = [
    line(text="a", id=1),
    line(text="b", id=2, payload={"n": 1}),
    line(text=LONG, id=3),
    line(text="c", id=1),
    line(text="b", id=2, payload={"n": 1}),
    line(text="d", id=-1),
    b"[1]\n",
    line(text="e", payload={"n": float("inf")}),
]


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("options", [(), ("--chunk-tokens", "32"), ("--replace",)], ids=["whole", "chunks", "replace"])
def test_a_dry_run_counts_as_the_load_does(
    embedder: Embedder, store: EdgeStore, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Lines, points, tokens, rejections with their reasons, replaced lines and the status; nothing is stored."""
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b"".join(LINES))
    load = Loader(embedder, store, None)

    def of(*more: str) -> tuple[int, dict[str, object], list[str]]:
        rejects = tmp_path / "rejects.jsonl"
        arguments = ("bulk", "--collection", "notes", "--json", "--rejects", str(rejects), *options, *more)
        ended = invoke(*arguments, str(file), build=load.build)
        reasons = sorted(rejects.read_text(encoding="utf-8").splitlines())
        return ended.status, json.loads(ended.out), reasons

    status, forecast, reasons = of("--dry-run", "--tokens-per-s", "100")
    assert store.collection_of("notes") is None
    loaded_status, report, loaded_reasons = of()
    forecast["seconds"] = report["seconds"] = 0
    assert (status, reasons) == (loaded_status, loaded_reasons)
    assert report == {name: value for name, value in forecast.items() if name in report}
    assert (forecast["dry_run"], forecast["load_seconds"]) == (True, round(int(str(forecast["tokens"])) / 100, 1))


@pytest.mark.usefixtures("signals")
def test_a_dry_run_measures_the_model_and_does_not_ask_the_store(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of Qdrant Edge does not come into being; the rate, the time and the sizes by kind are said."""
    file, folder = tmp_path / "lines.jsonl", tmp_path / "edge"
    file.write_bytes(line(text="a") + line(text="b"))
    for name, value in {**ENVIRONMENT, "QDRANT_PATH": str(folder)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Embedder, "load", lambda _options: embedder)
    monkeypatch.setattr(Operations, "close", lambda _self: None)
    ended = invoke("bulk", "--collection", "notes", "--dry-run", "--vectors", "dense,sparse", str(file))
    assert ended.status == 0, ended.err
    assert not folder.exists()
    said = "dry run, nothing is stored: 2 lines would be 2 points of 8 tokens, 0 rejected; the model would take "
    assert ended.out.startswith(said)
    assert "tokens/s; " in ended.out
    assert "on disk (dense " in ended.out
    assert "colbert" not in ended.out


@pytest.mark.usefixtures("signals")
def test_a_dry_run_counts_sparse_weights_as_a_plan_does(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text that repeats itself has few distinct tokens, however long it is."""
    file = tmp_path / "lines.jsonl"
    file.write_bytes(line(text="fox " * 50) + line(text="dog " * 50))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Embedder, "load", lambda _options: embedder)
    monkeypatch.setattr(Operations, "close", lambda _self: None)
    options = ("--vectors", "sparse", "--json", str(file))
    tried = invoke("bulk", "--collection", "notes", "--dry-run", "--tokens-per-s", "100", *options)
    planned = invoke("plan", *options)
    assert (tried.status, planned.status) == (0, 0), tried.err + planned.err
    parts = [part["diskBytes"] for part in json.loads(planned.out)["parts"] if part["owner"] == "sparse"]
    assert json.loads(tried.out)["kinds_bytes"] == {"sparse": sum(parts)}


def test_a_rate_needs_a_dry_run() -> None:
    """A rate without use is a mistake, and so is one that is not above 0."""
    for options in (["--tokens-per-s", "5"], ["--dry-run", "--tokens-per-s", "0"]):
        ended = invoke("bulk", "--collection", "notes", *options)
        assert ended.status == 2
        assert "--tokens-per-s" in ended.err
