"""The search page in a browser: hits, explanations, and safety against stored markup."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from embedder import NotFound
from qdrant_sink import BranchRank, Disagreement, Hit
from service.memory_budget import MemoryBudget
from service.metrics import Metrics
from service.operations import (
    ColbertMatch,
    CollectionsRequest,
    CollectionsResult,
    HitExplanation,
    ModelWarning,
    SearchRequest,
    SearchResult,
    SparseMatch,
)
from service.settings import Settings
from service.transports.http.page import Page
from tests.service.chromium import PROGRAM, Chromium
from tests.service.client import ENVIRONMENT, Json
from tests.service.served import Served

in_a_browser = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed (apt-get install chromium)")

KEY = "k3y-0123456789"
HOSTILE = '<img src=x onerror="hacked=1"><script>hacked=1</script>'
TEXT = "\U0001d4b3 rsync copies only the changed parts."
"""A text whose first character has two UTF-16 code units."""

HIT: Json = {
    "id": "790dd20f-6aa9-57ca-90e3-1926c19dac9b",
    "score": 3.8173,
    "payload": {"text": TEXT, "topic": "backup", "title": "rsync, a copier"},
    "explain": {
        "branches": {"dense": {"rank": 3, "score": 0.61}, "sparse": None},
        "fusion": {"dense": 0.0159, "sparse": 0},
        "sparse": [
            {"token": "rsync", "id": 12, "query": 0.21, "passage": 0.33, "contribution": 0.0693, "spans": [[2, 7]]},
            {"token": "only", "id": 13, "query": 0.1, "passage": 0.1, "contribution": 0.01, "spans": [[15, 19]]},
        ],
        "colbert": [
            {"query": "copy", "token": "copies", "row": 3, "span": [8, 14], "score": 0.81},
            {"query": "</s>", "token": "\u2581", "row": 9, "span": None, "score": 0.5},
            {"query": None, "token": None, "row": 9, "span": None, "score": 0.25},
        ],
    },
}
EVIL: Json = {
    "id": HOSTILE,
    "score": 1.0,
    "payload": {"text": HOSTILE, HOSTILE: HOSTILE},
    "explain": {
        "branches": {HOSTILE: {"rank": HOSTILE, "score": 1}},
        "sparse": [
            {"token": HOSTILE, "id": 1, "query": 1, "passage": 1, "contribution": 1, "spans": [[0, 4], [-3, 900]]}
        ],
        "colbert": [{"query": HOSTILE, "token": HOSTILE, "row": 0, "span": [0, 4], "score": 1}],
    },
}


class CannedSearches:
    """Operations with a list of collections, and a search that returns these hits or fails for the query `fail`."""

    max_length = 512
    hidden_size = 192
    colbert_size = 192
    model_name = "mini"
    model_label = "canned"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(lambda: 0)
        self.memory = MemoryBudget(settings.memory_budget_bytes)
        self.hits = [HIT]
        self.warnings: list[ModelWarning] = []
        self.requests: list[SearchRequest] = []
        self.unranked = 0

    async def inventory(self, _request: CollectionsRequest) -> CollectionsResult:
        """See `Operations.inventory`."""
        return CollectionsResult(["notes"], {"papers": "notes"}, self.settings.qdrant_collection, {})

    async def search(self, request: SearchRequest, _admit: object) -> SearchResult:
        """See `Operations.search`."""
        self.requests.append(request)
        if list(request.queries) == ["fail"]:
            raise NotFound(HOSTILE)
        hits = [Hit(hit["id"], hit["score"], hit["payload"]) for hit in self.hits]
        explanations = [[explanation(hit["explain"]) for hit in self.hits]]
        return SearchResult(
            [hits], tokens=3, explanations=explanations, unranked=[self.unranked], warnings=self.warnings
        )


def explanation(explain: Json) -> HitExplanation:
    """Convert an `explain` object to its value."""
    return HitExplanation(
        branches={kind: None if rank is None else BranchRank(**rank) for kind, rank in explain["branches"].items()},
        fusion=explain.get("fusion"),
        sparse=[SparseMatch(**match) for match in explain["sparse"]],
        colbert=[ColbertMatch(**match) for match in explain["colbert"]],
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One browser for all tests."""
    with Chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture
def canned() -> CannedSearches:
    """Operations behind a key, with two collections."""
    more = {"API_KEY": KEY, "QDRANT_COLLECTIONS": "notes,papers", "QDRANT_COLLECTION": "notes"}
    return CannedSearches(Settings.from_environment({**ENVIRONMENT, **more}))


@pytest.fixture
def served(canned: CannedSearches) -> Iterator[Served]:
    """An HTTP server over these operations."""
    operations: Any = canned
    with Served(operations) as opened:
        yield opened


def search(browser: Chromium, query: str, *, key: str = KEY) -> str:
    """Search in the page, and return its state and status text."""
    script = f"""new Promise((done) => {{
        const status = () => `${{document.body.dataset.state}}: ${{document.getElementById("status").textContent}}`;
        new MutationObserver((_, watch) => {{
            if (document.body.dataset.state === "busy") return;
            watch.disconnect();
            done(status());
        }}).observe(document.body, {{ attributeFilter: ["data-state"] }});
        document.getElementById("key").value = {key!r};
        document.getElementById("query").value = {query!r};
        document.getElementById("go").click();
    }})"""
    return str(browser.run(script))


@in_a_browser
def test_a_search_shows_hits_and_why(browser: Chromium, served: Served, canned: CannedSearches) -> None:
    """The page shows the text, the score, the ranks, the shared tokens and the alignment of a hit."""
    browser.open(served.url)
    assert search(browser, "copy rsync").startswith("done: 1 hit in ")
    (request,) = canned.requests
    assert (request.queries, request.explain) == (["copy rsync"], True)
    assert (request.options.limit, request.options.rerank) == (10, "colbert")
    assert browser.run("document.querySelector('.hit div.text').textContent") == TEXT
    assert browser.run("document.querySelector('.hit .title').textContent") == "rsync, a copier"
    assert browser.run("document.querySelector('.hit .score').textContent") == "MaxSim 3.82"
    assert browser.run("[...document.querySelectorAll('.chip')].map((one) => one.textContent)") == [
        "dense #3 · 0.610, adds 0.0159",
        "sparse: not among its candidates",
    ]
    marks = "[...document.querySelectorAll('mark')].map((one) => [one.textContent, one.className])"
    assert browser.run(marks) == [["rsync", "w3"], ["only", "w1"]]
    rows = "[...document.querySelectorAll('.{} tbody tr')].map((row) => [...row.cells].map((one) => one.textContent))"
    assert browser.run(rows.format("sparse"))[0] == ["rsync", "0.210", "0.330", "0.0693"]
    assert browser.run(rows.format("colbert")) == [
        ["copy", "copies", "0.810", ""],
        ["</s> ends the text", "\u2581 begins a word", "0.500", ""],
        ["\u2013", "\u2013", "0.250", ""],
    ]


@in_a_browser
def test_a_warning_stands_beside_the_number_of_hits(browser: Chromium, served: Served, canned: CannedSearches) -> None:
    """The page shows the warnings of an answer, as text."""
    canned.warnings = [ModelWarning(HOSTILE, Disagreement("sparse", 0.0, 8))]
    browser.open(served.url)
    status = search(browser, "copy rsync")
    assert status.startswith("done: 1 hit in ")
    assert status.endswith(f" Warning: {canned.warnings[0].message}.")


@in_a_browser
def test_a_filter_restricts_the_search(browser: Chromium, served: Served, canned: CannedSearches) -> None:
    """The page sends a filter in Qdrant's JSON, which collections with tenants require; other text is an error."""
    browser.open(served.url)
    condition = {"must": [{"key": "tenant", "match": {"value": "acme"}}]}
    for written, sent in ((f" {json.dumps(condition)}\\n", condition), ("", None), ("null", None)):
        browser.run(f"document.getElementById('filter').value = '{written}'")
        assert search(browser, "copy").startswith("done: 1 hit in ")
        assert canned.requests.pop().options.where == sent
    browser.run("document.getElementById('filter').value = 'tenant = acme'")
    assert search(browser, "copy").startswith("failed: The filter must be JSON, such as")
    browser.run("document.getElementById('filter').value = '[]'")
    assert search(browser, "copy") == "failed: filter must be an object, got a list"
    assert not canned.requests


@in_a_browser
def test_the_page_says_what_was_searched(browser: Chromium, served: Served, canned: CannedSearches) -> None:
    """The name of a score depends on the search, and hits that were not reranked are told apart and counted."""
    canned.hits = []
    browser.open(served.url)
    assert search(browser, "a") == "done: Nothing found."
    canned.hits, canned.unranked = [{**HIT, "score": None}], 12
    status = search(browser, "a")
    assert status.startswith("done: 1 hit in ")
    assert status.endswith("; 12 candidates without ColBERT rows")
    assert browser.run("document.querySelector('.hit .score').textContent") == "no ColBERT rows"
    canned.hits, canned.unranked = [], 0
    browser.run("document.getElementById('rerank').checked = false")
    assert search(browser, "a") == "done: Nothing found."
    canned.hits = [HIT, EVIL]
    assert search(browser, "a").startswith("done: 2 hits in ")
    assert browser.run("document.querySelector('.hit .score').textContent") == "RRF 3.82"


@in_a_browser
def test_the_page_fits_a_phone(browser: Chromium, served: Served, canned: CannedSearches) -> None:
    """At a width of 320 pixels nothing overflows, and no word in a table is broken."""
    endless: Json = {**HIT["explain"]["sparse"][0], "token": "x" * 500}
    long = {**HIT, "payload": {"text": "x" * 5000}, "explain": {**HIT["explain"], "sparse": [endless]}}
    canned.hits = [HIT, long]
    browser.open(served.url)
    with browser.width(320):
        search(browser, "copy")
        browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert browser.run("document.documentElement.scrollWidth") <= 320
        lines = """[...document.querySelectorAll('li:first-child :is(th, .sparse td)')].filter((one) => {
            const range = document.createRange();
            range.selectNodeContents(one);
            return !/\\s/.test(one.textContent) && range.getClientRects().length > 1;
        }).map((one) => one.textContent)"""
        assert browser.run(lines) == []


@in_a_browser
def test_a_row_of_the_alignment_highlights_its_span_in_the_text(browser: Chromium, served: Served) -> None:
    """A focused row highlights its span, which counts characters, not UTF-16 code units."""
    browser.open(served.url)
    search(browser, "copy rsync")
    lit = "[...document.querySelectorAll('.lit')].map((one) => one.textContent)"
    browser.run("document.querySelector('.colbert').open = true")
    browser.run("document.querySelector('.colbert tbody tr').focus()")
    assert browser.run(lit) == ["copies"]
    browser.run("document.querySelector('.colbert tbody tr').blur()")
    assert browser.run(lit) == []


@in_a_browser
def test_a_distant_span_is_scrolled_into_view(browser: Chromium, served: Served, canned: CannedSearches) -> None:
    """A long text scrolls in its own box to the aligned span, and the page does not scroll."""
    far = {"query": "copy", "token": "copies", "row": 3, "span": [5000, 5006], "score": 0.81}
    text = "word " * 1000 + "copies" + " word" * 1000
    canned.hits = [{**HIT, "payload": {"text": text}, "explain": {**HIT["explain"], "colbert": [far]}}]
    browser.open(served.url)
    search(browser, "copy")
    browser.run("document.querySelector('.colbert').open = true")
    browser.run("document.querySelector('.colbert tbody tr').dispatchEvent(new Event('mouseenter'))")
    seen = """(() => {
        const [box, lit] = ['div.text', '.lit'].map((one) => document.querySelector(one).getBoundingClientRect());
        return [lit.top >= box.top, lit.bottom <= box.bottom, scrollY];
    })()"""
    assert browser.run(seen) == [True, True, 0]


@in_a_browser
def test_stored_markup_is_shown_as_text(browser: Chromium, served: Served, canned: CannedSearches) -> None:
    """Markup in ids, payloads, tokens and errors neither runs nor becomes an element."""
    canned.hits = [EVIL, HIT]
    browser.open(served.url)
    assert search(browser, HOSTILE).startswith("done: 2 hits")
    assert search(browser, "fail") == f"failed: {HOSTILE}"
    assert search(browser, "again").startswith("done: 2 hits")
    assert browser.run("document.querySelector('.hit div.text').textContent") == HOSTILE
    assert browser.run("document.querySelector('.hit .id').textContent") == HOSTILE
    assert browser.run("document.images.length + document.scripts.length") == 1  # the page's own script
    assert browser.run("typeof hacked") == "undefined"


@in_a_browser
def test_injected_markup_does_not_run(browser: Chromium, served: Served) -> None:
    """The policy blocks injected handlers, scripts and connections to other hosts."""
    browser.open(served.url)
    browser.console.clear()
    browser.run(f"document.body.insertAdjacentHTML('beforeend', {HOSTILE!r})")
    browser.run("document.head.append(Object.assign(document.createElement('script'), {textContent: 'hacked = 1'}))")
    outside = "fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')"
    assert browser.run(outside) == "refused"
    assert browser.run("typeof hacked") == "undefined"
    assert any("Content Security Policy" in entry for entry in browser.console)


@in_a_browser
def test_the_key_is_not_stored(browser: Chromium, served: Served) -> None:
    """A wrong key is an error, the right one lists the collections, and a reload forgets it."""
    browser.open(served.url)
    assert search(browser, "a", key="wrong").startswith("failed: Authorization must be")
    assert search(browser, "a").startswith("done")
    offered = """new Promise((done) => {
        const list = document.getElementById("collections");
        new MutationObserver(() => done([...list.options].map((one) => one.value))).observe(list, { childList: true });
        document.getElementById("key").dispatchEvent(new Event("change"));
    })"""
    assert browser.run(offered) == ["notes", "papers"]
    assert browser.run("document.getElementById('collection').placeholder") == "notes"
    browser.open(served.url)
    assert browser.run("document.getElementById('key').value") == ""
    kept = "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
    assert KEY not in browser.run(kept)


@in_a_browser
def test_the_page_loads_without_an_error(browser: Chromium, served: Served) -> None:
    """The page's own script and style have the hashes that the policy names, and it loads nothing else."""
    browser.console.clear()
    browser.open(served.url)
    assert browser.run("getComputedStyle(document.querySelector('form')).display") == "grid"
    loaded = browser.run("performance.getEntriesByType('resource').map((one) => new URL(one.name).pathname)")
    assert set(loaded) <= {"/collections", "/favicon.ico"}
    assert not [entry for entry in browser.console if "401" not in entry]


def test_the_page_needs_no_key_and_forbids_what_it_does_not_use(served: Served) -> None:
    """The page is served without a key, since the key is entered there, and it must not be framed."""
    with httpx.Client(base_url=served.url, trust_env=False) as client:
        response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy
    for part in ("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"):
        assert part in policy.split("; ")
    assert response.headers["referrer-policy"] == "no-referrer"


def test_the_page_reranks_only_where_collections_have_rows() -> None:
    """Without ColBERT rows the box for reranking is off and disabled, because a request with it would be an error."""
    box = re.compile(rb'<input id="rerank" type="checkbox" (\w+)>')
    assert box.findall(Page.search().body) == [b"checked"]
    settings = Settings.from_environment({**ENVIRONMENT, "QDRANT_COLLECTION_CONFIG": '{"kinds": ["dense"]}'})
    with Served(None, settings=settings) as served, httpx.Client(base_url=served.url, trust_env=False) as client:
        response = client.get("/")
    assert box.findall(response.content) == [b"disabled"]
    assert response.headers["content-security-policy"] == Page.search().policy


def test_the_page_never_turns_text_into_markup() -> None:
    """The source of the page has no HTML sinks, no inline handlers and no addresses of other sites."""
    source = Page.search().body.decode()
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert sink not in source
    assert not re.search(r"\son\w+\s*=", source)
    assert not re.search(r"https?://", source)


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("path", ["/tools/search/", "/tools/search", "//tools/search", "/"])
def test_the_page_works_behind_a_prefix(browser: Chromium, canned: CannedSearches, path: str) -> None:
    """Below `ROOT_PATH`, with or without a slash at its end, the page asks the worker below the same prefix."""
    canned.settings = canned.settings.model_copy(update={"root_path": "/tools/search"})
    operations: Any = canned
    with Served(operations) as served:
        browser.open(served.url + path)
        assert search(browser, "copy rsync").startswith("done: 1 hit in ")
        loaded = browser.run("performance.getEntriesByType('resource').map((one) => new URL(one.name).pathname)")
    assert f"/{path.strip('/')}/search".replace("//", "/") in loaded


@pytest.mark.slow
@in_a_browser
def test_the_api_is_described_without_a_network(browser: Chromium, served: Served, canned: CannedSearches) -> None:
    """With the key `/docs` lists every operation with its fields, and sends requests; it loads nothing from outside."""
    browser.console.clear()
    browser.open(f"{served.url}/docs")
    shown = """new Promise((done) => {
        const read = () => done([document.body.dataset.state, document.getElementById("status").textContent]);
        if (document.body.dataset.state !== "busy" && !KEY) return read();
        new MutationObserver(read).observe(document.body, { attributeFilter: ["data-state"] });
        if (KEY) {
            document.getElementById("key").value = KEY;
            document.getElementById("key").dispatchEvent(new Event("change"));
        }
    })"""
    assert browser.run(shown.replace("KEY", "''")) == ["failed", "This worker requires its API key."]
    assert browser.run(shown.replace("KEY", repr(KEY))) == ["done", ""]
    with served.client(Authorization=f"Bearer {KEY}") as client:
        described = client.get("/openapi.json").json()
    listed = browser.run("[...document.querySelectorAll('summary code')].map((one) => one.textContent)")
    assert listed == [path for path, methods in described["paths"].items() for _ in methods]
    item = "[...document.querySelectorAll('details')].find((one) => one.textContent.includes('POST/search'))"
    opened = f"""new Promise((done) => {{
        const item = {item};
        item.ontoggle = () => done(item.textContent);
        item.open = true;
    }})"""
    text = browser.run(opened)
    for field in ("queries", "withPayload", "SearchAnswer", "HitAnswer", "schema_mismatch"):
        assert field in text
    sent = f"""new Promise((done) => {{
        const answer = {item}.querySelector(".answer");
        new MutationObserver(() => answer.textContent.length > 1 && done(answer.textContent))
            .observe(answer, {{ childList: true }});
        {item}.querySelector("button").click();
    }})"""
    status, _, body = str(browser.run(sent)).partition("\n")
    assert status == "200"
    assert json.loads(body)["results"][0]["hits"][0]["id"] == HIT["id"]
    loaded = browser.run("performance.getEntriesByType('resource').map((one) => one.name)")
    assert all(url.startswith(served.url) for url in loaded)
    assert not [entry for entry in browser.console if "401" not in entry and "favicon" not in entry]


@pytest.mark.slow
def test_the_description_page_needs_no_key_and_holds_nothing(served: Served) -> None:
    """The page is public as the search page is, and the document that it shows needs the key."""
    with served.client() as client:
        page, document = client.get("/docs"), client.get("/openapi.json")
        head = client.head("/docs")
    assert (page.status_code, document.status_code, head.status_code) == (200, 401, 200)
    assert "unsafe" not in page.headers["content-security-policy"]
    assert b"http" not in page.content.replace(b"HTTP API", b"")
