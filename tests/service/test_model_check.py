"""Collections with the vectors of another model: refused for ingests, and named in the warnings of searches."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from embedder import KINDS, Embedder, Embedding, Outputs, Priority, SparseVector
from qdrant_sink import LimitExceeded, ModelIdentity, Point, Store, StoreRejected, StoreUnavailable
from qdrant_sink.edge import EdgeStore
from service.operations import Operations, model_check, text_comparison
from service.settings import Settings
from tests.command_line import invoke
from tests.service.client import ENVIRONMENT, Client, Json
from tests.service.doubles import RaisingStore, Watched
from tests.service.ingests import CHUNK, LONG, NOTES, count, job
from tests.sink.samples import schema_for
from tests.sink.stores import EMBEDDED_FIRST, opened

TEXTS: Final = tuple(
    f"{subject} number {n}." for n in range(5) for subject in ("A note on rsync", "The weather in May")
)
SEARCH: Final[Json] = {"operation": "search", "collection": NOTES, "queries": ["rsync"], "limit": 3}
QUERY_TOKENS: Final = 3
MESSAGE: Final = "collection 'notes' has vectors of another model"
UNCHECKED: Final = '{"verifyModel": false}'
UNSAMPLED: Final = '{"textKey": "text"}'
"""Config by which no point is read to recognise the key of the text, so that only the check reads points."""


@pytest.fixture(params=EMBEDDED_FIRST)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Each kind of store, empty."""
    with opened(request.param, tmp_path) as empty:
        yield empty


def worker_of(embedder: Embedder, store: Store, model: str = "mini", **variables: str) -> Client:
    """A worker with this model."""
    return Client(
        Operations(Settings.from_environment({**ENVIRONMENT, "MODEL_ID": model, **variables}), embedder, store)
    )


def fill(
    store: Store,
    embedder: Embedder,
    texts: Sequence[str] = TEXTS,
    *,
    embedded: Sequence[str] | None = None,
    payload: Callable[[str], Json] = lambda text: {"text": text},
    change: Callable[[Point], Point] = lambda point: point,
) -> None:
    """Make the collection as another program does, without metadata, with the vectors of a model.

    Args:
        store: the store.
        embedder: the model.
        texts: texts of the points.
        embedded: texts that are embedded, by default the same.
        payload: makes the payload of a text.
        change: changes a point before it is stored.
    """
    store.ensure(NOTES, schema_for(embedder.hidden_size, embedder.colbert_size))
    results = asyncio.run(embedder.embed(list(embedded or texts), Outputs(), max_length=512, priority=Priority.PASSAGE))
    points = []
    for number, (text, result) in enumerate(zip(texts, results, strict=True)):
        assert isinstance(result, Embedding)
        points.append(change(Point(number, payload(text), result.dense, result.sparse, result.colbert)))
    store.upsert(NOTES, points)


def warned(answer: Json) -> list[str]:
    """The kinds that an answer warns of."""
    return [warning["details"]["kind"] for warning in answer.get("warnings", ())]


def test_an_ingest_beside_vectors_of_another_model_is_refused(
    store: Store, embedder: Embedder, other: Embedder
) -> None:
    """The error names the kinds with their cosine and the way out, and no point is stored."""
    fill(store, other)
    worker = worker_of(embedder, store)
    error = worker.error(job("A new note."), "schema_mismatch")
    assert error["error"].startswith(f"{MESSAGE}: dense has a median cosine of ")
    assert "verifyModel" in error["error"]
    assert error["retryable"] is False
    details = error["details"]
    assert details["collection"] == NOTES
    assert [part["kind"] for part in details["vectors"]] == list(KINDS)
    assert all(part["cosine"] < 0.98 for part in details["vectors"])
    assert [part["texts"] for part in details["vectors"]] == [8, 8, 3]
    assert details["upsert"]["stored"] == 0
    assert count(worker) == len(TEXTS)


def test_vectors_of_a_text_with_a_title_are_not_called_another_models(store: Store, embedder: Embedder) -> None:
    """Where more was embedded than is stored, the message says that it may be so, and an ingest is refused as well."""
    fill(store, embedder, embedded=[f"The title of this entry. {text}" for text in TEXTS])
    worker = worker_of(embedder, store)
    [first, *_] = worker.good({**SEARCH, "using": ["dense"]})["warnings"]
    assert 0.5 < first["details"]["cosine"] < 0.98
    assert "a similar model, or of other texts than the stored ones" in first["message"]
    assert first["message"].endswith("scores of dense can be wrong")
    assert "such as with a title or a prefix" in worker.error(job("A new note."), "schema_mismatch")["error"]


def test_a_search_of_vectors_of_another_model_has_warnings(store: Store, embedder: Embedder, other: Embedder) -> None:
    """A search gets its hits, and a warning for each kind that it uses; so do `like` and explanations."""
    fill(store, other)
    worker = worker_of(embedder, store)
    answer = worker.good(SEARCH)
    assert len(answer["results"][0]["hits"]) == 3
    assert warned(answer) == ["dense", "sparse"]
    [first, _] = answer["warnings"]
    assert first["code"] == "model_mismatch"
    assert first["message"].startswith(f"{MESSAGE}: dense has a median cosine of ")
    assert (first["details"]["collection"], first["details"]["texts"]) == (NOTES, 8)
    assert warned(worker.good({**SEARCH, "using": ["dense"]})) == ["dense"]
    assert warned(worker.good({**SEARCH, "rerank": "colbert", "explain": True})) == list(KINDS)
    like = {key: value for key, value in SEARCH.items() if key != "queries"} | {"like": {"positive": [1]}}
    assert warned(worker.good(like)) == ["dense", "sparse"]


def test_the_command_line_shows_warnings(
    embedder: Embedder, other: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ask` prints the warnings of a search on the standard error, and with `--json` in its answer alone."""
    with opened("edge", tmp_path) as store:
        fill(store, other)
        operations = worker_of(embedder, store).operations
        monkeypatch.setattr(operations, "close", lambda: None)
        ended = invoke("ask", "rsync", "--collection", NOTES, build=lambda _: operations)
        lines = [line for line in ended.err.splitlines() if line.startswith("warning")]  # beside lines of the log
        assert [line.split(": ")[:2] for line in lines] == [["warning", MESSAGE]] * 2
        ended = invoke("ask", "rsync", "--collection", NOTES, "--json", build=lambda _: operations)
        assert (ended.err, warned(json.loads(ended.out))) == ("", ["dense", "sparse"])


def test_the_operator_can_vouch_for_the_vectors(store: Store, embedder: Embedder, other: Embedder) -> None:
    """With `verifyModel: false` nothing is compared: searches have no warnings, and ingests are stored."""
    fill(store, other)
    worker = worker_of(embedder, store, QDRANT_COLLECTION_CONFIG=UNCHECKED)
    assert "warnings" not in worker.good(SEARCH)
    assert worker.good(job("A new note."))["upsert"]["stored"] == 1


def test_vectors_of_the_model_are_accepted(store: Store, embedder: Embedder) -> None:
    """A collection that another program filled with this model's vectors is searched and extended."""
    fill(store, embedder)
    worker = worker_of(embedder, store)
    assert "warnings" not in worker.good({**SEARCH, "rerank": "colbert"})
    assert worker.good(job("A new note."))["upsert"]["stored"] == 1


def test_a_collection_names_its_model(store: Store, embedder: Embedder, other: Embedder, stranger: Path) -> None:
    """A collection that a worker made is refused by name to a worker with another model, whatever it holds."""
    theirs = worker_of(other, store, str(stranger))
    theirs.good(job(*TEXTS))
    worker = worker_of(embedder, store)
    for raw in (job("A new note."), SEARCH):
        error = worker.error(raw, "schema_mismatch")
        assert error["error"].startswith(
            "collection 'notes' was made for the model 'stranger', and this worker has 'mini'; use "
        )
        assert "verifyModel" in error["error"]
        assert str(stranger.parent) not in json.dumps(error)
        assert error["details"]["differences"] == [{"field": "model", "found": "stranger", "wanted": "mini"}]
    assert count(worker) == len(TEXTS)
    described = worker.good({"operation": "collections", "collection": NOTES})
    assert described["model"] == {"name": "stranger", "revision": None, "source": "collection"}
    assert "warnings" not in theirs.good(SEARCH)
    vouched = worker_of(embedder, store, QDRANT_COLLECTION_CONFIG=UNCHECKED)
    assert "warnings" not in vouched.good(SEARCH)
    assert vouched.good(job("A new note."))["upsert"]["stored"] == 1
    assert worker.good({"operation": "delete", "collection": NOTES, "ids": [1]})["deleted"] == 0


def test_the_own_model_needs_no_comparison(store: Store, embedder: Embedder) -> None:
    """A collection that names this model and revision is taken without reading a text."""
    worker_of(embedder, store).good(job(*TEXTS))
    unread = RaisingStore(store, scroll=AssertionError("no text is read"))
    assert "warnings" not in worker_of(embedder, unread, QDRANT_COLLECTION_CONFIG=UNSAMPLED).good(SEARCH)


def test_vectors_decide_about_a_model_of_the_same_name(
    store: Store, embedder: Embedder, other: Embedder, tmp_path: Path
) -> None:
    """A directory of the same name can have other weights, which the vectors tell."""
    namesake = tmp_path / "models" / "mini"
    namesake.mkdir(parents=True)
    worker_of(other, store, str(namesake)).good(job(*TEXTS))
    assert store.describe(NOTES).model == ModelIdentity("mini")
    assert warned(worker_of(embedder, store).good(SEARCH)) == ["dense", "sparse"]


def test_weights_of_bm25_are_told_from_those_of_the_model(store: Store, embedder: Embedder) -> None:
    """Only the sparse vectors of a hybrid collection with BM25 disagree: the dense ones are searched and stored."""

    def bm25(point: Point) -> Point:
        hashes = np.arange(2_000_000_000, 2_000_000_000 + 5 * 7919, 7919, dtype=np.uint32)
        return replace(point, sparse=SparseVector(hashes, np.linspace(1, 2, 5, dtype=np.float32)))

    fill(store, embedder, change=bm25)
    worker = worker_of(embedder, store)
    assert warned(worker.good(SEARCH)) == ["sparse"]
    assert "warnings" not in worker.good({**SEARCH, "using": ["dense"], "rerank": "colbert"})
    assert [part["kind"] for part in worker.error(job("New."), "schema_mismatch")["details"]["vectors"]] == ["sparse"]
    assert worker.good({**job("New."), "vectors": ["dense", "colbert"]})["upsert"]["stored"] == 1


def test_nodes_of_llamaindex_are_compared_with_their_metadata(
    store: Store, embedder: Embedder, other: Embedder
) -> None:
    """LlamaIndex embeds a node's metadata in front of its text: such vectors match, those of another model do not."""
    config = json.dumps({"layout": "llamaindex"})

    def node(text: str) -> Json:
        metadata = {"file_name": "a-rather-long-name-of-a-file.md", "author": "Somebody Else", "year": 2020}
        return {
            "_node_content": json.dumps({"text": text, "metadata": metadata, "excluded_embed_metadata_keys": ["year"]})
        }

    header = "file_name: a-rather-long-name-of-a-file.md\nauthor: Somebody Else\n\n"
    fill(store, embedder, embedded=[header + text for text in TEXTS], payload=node)
    worker = worker_of(embedder, store, QDRANT_COLLECTION_CONFIG=config)
    assert "warnings" not in worker.good(SEARCH)
    assert worker.good(job("A new note."))["upsert"]["stored"] == 1
    fill(store, other, embedded=[header + text for text in TEXTS], payload=node)
    assert warned(worker_of(embedder, store, QDRANT_COLLECTION_CONFIG=config).good(SEARCH)) == ["dense", "sparse"]


@pytest.mark.parametrize("fields", [("title",), ("title", "section"), ("title", "section", "page")])
def test_documents_of_haystack_are_compared_with_their_fields(
    embedder: Embedder, other: Embedder, tmp_path: Path, fields: tuple[str, ...]
) -> None:
    """Haystack embeds chosen fields in front of the text: such vectors are accepted, and those of another model not."""
    config = json.dumps({"layout": "haystack"})
    meta = {"title": "Notes", "section": "Of a year", "author": "Ann", "page": 3}
    embedded = ["\n".join((*(str(meta[field]) for field in fields), text)) for text in TEXTS]
    for model in (embedder, other):
        with opened("edge", tmp_path / str(model is embedder)) as store:
            fill(store, model, embedded=embedded, payload=lambda text: {"content": text, "meta": meta})
            worker = worker_of(embedder, store, QDRANT_COLLECTION_CONFIG=config)
            assert bool(warned(worker.good({**SEARCH, "using": ["dense"]}))) == (model is other)


@pytest.mark.parametrize("limit", [128, 512])
def test_texts_that_were_cut_are_unknown(embedder: Embedder, other: Embedder, tmp_path: Path, limit: int) -> None:
    """A collection of long texts that were cut before they were embedded is not held to be another model's."""
    texts = [" ".join(f"{n} sentence {m} of the note." for m in range(limit // 5)) for n in range(8)]
    assert all(encoded.truncated for encoded in embedder.tokenize(texts, limit))
    assert limit > 128 or not any(text.truncated for text in embedder.tokenize(texts, text_comparison.TEXT_MAX_TOKENS))
    cut = asyncio.run(embedder.embed(texts, Outputs(), max_length=limit, priority=Priority.PASSAGE))
    vectors = iter(cut)

    def as_cut(point: Point) -> Point:
        result = next(vectors)
        assert isinstance(result, Embedding)
        return replace(point, dense=result.dense, sparse=result.sparse, colbert=result.colbert)

    with opened("edge", tmp_path) as store:
        fill(store, embedder, texts, embedded=["x"] * len(texts), change=as_cut)
        assert bool(warned(worker_of(other, store).good(SEARCH))) == (limit == 128)
        worker = worker_of(embedder, store)
        assert "warnings" not in worker.good({**SEARCH, "rerank": "colbert"})
        assert worker.good(job("A new note."))["upsert"]["stored"] == 1


def test_chunks_of_a_document_are_compared(embedder: Embedder, other: Embedder, tmp_path: Path) -> None:
    """The chunks that a worker with the same model wrote match; with pooled rows, too."""
    with opened("edge", tmp_path) as store:
        store.ensure(NOTES, schema_for(embedder.hidden_size, embedder.colbert_size))
        worker_of(embedder, store).good(job(LONG, chunk=CHUNK, ids=["d"]))
        assert "warnings" not in worker_of(embedder, store).good({**SEARCH, "rerank": "colbert"})
        assert warned(worker_of(other, store).good(SEARCH)) == ["dense", "sparse"]


@pytest.mark.parametrize("payload", [{}, {"text": " "}, {"body": "A note on rsync."}])
def test_points_without_texts_are_unknown(store: Store, embedder: Embedder, other: Embedder, payload: Json) -> None:
    """Without texts under the key that the operator sets, nothing can be compared, and requests go on."""
    fill(store, other, payload=lambda _text: payload)
    worker = worker_of(embedder, store, QDRANT_COLLECTION_CONFIG=UNSAMPLED)
    assert "warnings" not in worker.good(SEARCH)
    assert worker.good(job("A new note."))["upsert"]["stored"] == 1


def test_a_collection_that_was_empty_is_looked_at_again(
    store: Store, embedder: Embedder, other: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection without texts is looked at again, at most once per interval, until it has some."""
    store.ensure(NOTES, schema_for(embedder.hidden_size, embedder.colbert_size))
    worker = worker_of(embedder, store)
    assert "warnings" not in worker.good(SEARCH)
    fill(store, other)
    assert "warnings" not in worker.good(SEARCH)
    monkeypatch.setattr(model_check, "LOOK_INTERVAL_S", 0.0)
    assert warned(worker.good(SEARCH)) == ["dense", "sparse"]


def test_a_collection_that_was_made_anew_is_accepted(store: Store, embedder: Embedder, other: Embedder) -> None:
    """A refusal is never remembered: the operator replaces the points, and the next ingest is stored."""
    fill(store, other)
    worker = worker_of(embedder, store)
    worker.error(job("A new note."), "schema_mismatch")
    store.delete(NOTES, ids=list(range(len(TEXTS))))
    assert worker.good(job("A new note."))["upsert"]["stored"] == 1
    assert "warnings" not in worker.good(SEARCH)


def test_an_alias_is_followed_to_another_collection(
    embedder: Embedder, other: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an alias has moved, the new collection is compared."""
    with opened("edge", tmp_path) as store:
        fill(store, other)
        worker = worker_of(embedder, store)
        worker.good(job(*TEXTS, collection="right"))
        store.alias("current", "right")
        search = {**SEARCH, "collection": "current"}
        assert "warnings" not in worker.good(search)
        store.alias("current", NOTES)
        monkeypatch.setattr(model_check, "LOOK_INTERVAL_S", 0.0)
        assert warned(worker.good(search)) == ["dense", "sparse"]


@contextmanager
def filled_edge(root: Path, embedder: Embedder) -> Iterator[Store]:
    """Qdrant Edge with a collection of this model's vectors, and without metadata."""
    store = EdgeStore(root)
    fill(store, embedder)
    yield store
    store.close()


def test_a_collection_is_compared_once(watched: Watched, tmp_path: Path) -> None:
    """Many first searches compare one collection once, and later ones compute their query alone."""
    with filled_edge(tmp_path, watched.embedder) as store:
        worker = worker_of(watched.embedder, store)
        before = len(watched.engine.batches)
        answers = worker.together([SEARCH] * 12)
        assert not any(warned(answer) for answer in answers)
        lengths = [length for batch in watched.engine.batches[before:] for length in batch]
        assert sum(length > QUERY_TOKENS for length in lengths) == text_comparison.TEXTS_MAX
        before = len(watched.engine.batches)
        worker.good(SEARCH)
        assert len(watched.engine.batches) == before + 1


@pytest.mark.parametrize(
    "failure",
    [StoreRejected("Limit exceeded"), StoreUnavailable("Qdrant does not answer")],
    ids=lambda e: type(e).__name__,
)
def test_a_comparison_that_fails_stops_nothing(tmp_path: Path, embedder: Embedder, failure: Exception) -> None:
    """If the stored texts cannot be read, searches and ingests go on without the check."""
    with filled_edge(tmp_path, embedder) as store:
        failing = RaisingStore(store, scroll=failure)
        worker = worker_of(embedder, failing, QDRANT_COLLECTION_CONFIG=UNSAMPLED)
        assert "warnings" not in worker.good(SEARCH)
        assert worker.good(job("A new note."))["upsert"]["stored"] == 1


def test_a_comparison_that_fails_is_tried_again_later(
    tmp_path: Path, embedder: Embedder, other: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed comparison is repeated once per interval, so that a store which refuses it is not asked by every job."""
    with opened("edge", tmp_path) as store:
        fill(store, other)
        failing = RaisingStore(store, scroll=StoreRejected("refused"))
        worker = worker_of(embedder, failing, QDRANT_COLLECTION_CONFIG=UNSAMPLED)
        assert "warnings" not in worker.good(SEARCH)
        failing.failures.clear()
        assert "warnings" not in worker.good(SEARCH)
        monkeypatch.setattr(model_check, "LOOK_INTERVAL_S", 0.0)
        assert warned(worker.good(SEARCH)) == ["dense", "sparse"]
        failing.failures["scroll"] = StoreRejected("refused")
        worker.error(job("A new note."), "schema_mismatch")


def test_a_server_with_small_pages_is_compared(embedder: Embedder, other: Embedder, tmp_path: Path) -> None:
    """Where strict mode allows few points per page, these few are compared."""

    class SmallPages(RaisingStore):
        def __getattr__(self, name: str) -> Any:
            if name != "scroll":
                return super().__getattr__(name)

            def scroll(*arguments: Any, limit: int, **more: Any) -> Any:
                if limit > 2:
                    raise LimitExceeded("limit exceeds 2", field="limit", maximum=2.0)
                return self._store.scroll(*arguments, limit=limit, **more)

            return scroll

    with opened("edge", tmp_path) as store:
        fill(store, other)
        answer = worker_of(embedder, SmallPages(store)).good(SEARCH)
        assert [warning["details"]["texts"] for warning in answer["warnings"]] == [2, 2]


def test_a_cancelled_search_does_not_end_the_comparison_of_others(watched: Watched, tmp_path: Path) -> None:
    """Of two first searches one is cancelled; the other gets its answer from the same comparison."""
    with filled_edge(tmp_path, watched.embedder) as store:
        worker = worker_of(watched.embedder, store)

        async def body() -> Json:
            watched.engine.gate.clear()
            first, second = asyncio.ensure_future(worker.answer(SEARCH)), asyncio.ensure_future(worker.answer(SEARCH))
            await asyncio.sleep(0.1)
            first.cancel()
            watched.engine.gate.set()
            return await second

        assert len(asyncio.run(body())["results"][0]["hits"]) == 3
