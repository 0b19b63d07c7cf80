"""Collections with names of any language and form, over the transports and the command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from qdrant_sink import text_id
from service.bulk import LoadReport
from service.transports.cli.bulk import described
from tests.command_line import PROGRAM
from tests.service.client import ENVIRONMENT
from tests.service.conftest import Serve
from tests.service.served import Served

ROOT = Path(__file__).parents[2]

NAMES = ["my notes", "日本語, 中文", "mail@example 👍#%20+&=", ".hidden", "it's"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_collection_with_an_odd_name_works_over_http(serve: Serve, name: str) -> None:
    """Points are stored, found, counted, scored by example and deleted under the name; ids are derived from it."""
    allowed = json.dumps([name, "other"])
    with Served(serve(QDRANT_COLLECTIONS=allowed, QDRANT_COLLECTION=name).operations) as server:

        def post(path: str, **body: Any) -> Any:
            answer = httpx.post(f"{server.url}{path}", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        assert post("/embed", texts=["one", "two"], isPassage=True, qdrant={"collection": name})["upsert"] == {
            "collection": name,
            "stored": 2,
            "skipped": 0,
            "rejected": [],
        }
        [result] = post("/search", queries=["one"], limit=1)["results"]
        assert result["hits"][0]["id"] == str(text_id("one", name))
        assert post("/points/count", collection=name)["count"] == 2
        assert post("/points/delete", collection=name, ids=[str(text_id("one", name))])["deleted"] == 1
        assert httpx.get(f"{server.url}/collections").json() == {
            "collections": [name],
            "aliases": {},
            "default": name,
        }
        refused = httpx.post(f"{server.url}/points/count", json={"collection": "it's not"})
        assert refused.status_code == 400
        assert refused.json()["error"] == 'collection must be a collection that this worker serves, got "it\'s not"'


def test_a_name_that_is_too_long_for_the_disk_is_a_bad_request(serve: Serve) -> None:
    """The embedded store cannot keep 255 letters of three bytes each; the error states its limit."""
    answer = serve()({"texts": ["one"], "qdrant": {"collection": "日" * 255}})
    assert answer["error_code"] == "invalid_request"
    assert "at most 255 bytes on the disk of the embedded store, got 765 bytes for 255 characters" in answer["error"]


def test_a_refused_name_cannot_break_the_line_of_a_summary() -> None:
    """The summary of a load names the collection as it was asked for, without its line breaks."""
    summary = LoadReport(failure="the name is invalid").summary("a\nb: 9 of 9 points stored")
    assert described(summary).startswith(r"'a\nb: 9 of 9 points stored': nothing was loaded: ")


@pytest.mark.slow
def test_the_command_line_takes_odd_names(tmp_path: Path) -> None:
    """A load and a question with a name of blanks, letters and signs work, and so does its alias."""
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "one"}\n{"text": "two"}\n')
    settings = {**ENVIRONMENT, "QDRANT_PATH": str(tmp_path / "edge"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    name, alias = "-日本 語 #%1", ".live, now"

    def run(*arguments: str) -> Any:
        done = subprocess.run(
            [*PROGRAM, *arguments], cwd=ROOT, env=settings, capture_output=True, check=False, timeout=100
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    loaded = run("bulk", "--json", f"--collection={name}", "--alias", alias, str(lines))
    assert (loaded["collection"], loaded["stored"], loaded["alias"]) == (name, 2, True)
    for known in (name, alias):
        answer = run("ask", "--json", f"--collection={known}", "one")
        assert answer["results"][0]["hits"][0]["id"] == str(text_id("one", alias))
