"""Large texts delay no small request, are bounded while they wait, and are dropped with their client."""

from __future__ import annotations

import ast
import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embedder as embedder_package
from embedder import BODIES, PLANS, InvalidRequest, Outputs, Overloaded, Priority, Threads, check_cancelled, chunking
from embedder.checkpoint import MINI
from embedder.threads import QUICK_TEXT_MAX_CHARACTERS, TEXTS, plan_threads
from embedder.tokenizer import Tokenizer
from qdrant_sink.edge import EdgeStore
from service.operations import IngestRequest, Operations
from service.operations.ingest_values import Chunking
from service.settings import Settings
from service.wire.work import CHARACTERS_PER_UNIT, LIGHT_MAX_UNITS, is_light
from tests.service.client import ENVIRONMENT, PATIENCE, Client
from tests.service.doubles import Watched

ROOT = Path(embedder_package.__file__).parents[1]
SENTENCE = "The library number 7 parses configuration files, and writes them again. "
LONG = SENTENCE * (2 * QUICK_TEXT_MAX_CHARACTERS // len(SENTENCE))


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """A model that records its batches."""
    loaded = Watched.loaded()
    yield loaded
    loaded.embedder.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EdgeStore]:
    """Qdrant Edge in an empty directory."""
    opened = EdgeStore(tmp_path / "edge")
    yield opened
    opened.close()


@pytest.fixture
def operations(watched: Watched, store: EdgeStore) -> Operations:
    """Operations over the watched model."""
    watched.engine.batches.clear()
    return Operations(Settings.from_environment(ENVIRONMENT), watched.embedder, store)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, with a timeout."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - other threads fulfil the condition
            await asyncio.sleep(0.005)


@contextmanager
def occupied(*pools: Threads) -> Iterator[None]:
    """Occupy every thread of pools, and have as many calls wait, until the block ends."""
    release = threading.Event()
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(pool.run(lambda: release.wait(PATIENCE))) for pool in pools for _ in range(8)]
    try:
        yield
    finally:
        release.set()
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize(
    "job",
    [
        {"texts": ["word"]},
        {"texts": ["word"] * 20},
        {"operation": "search", "collection": "notes", "queries": ["word"]},
        {"operation": "search", "collection": "notes", "queries": ["word"], "explain": True},
        {"operation": "score", "pairs": [["word", "other word"]]},
        {"texts": ["another word"], "qdrant": {"collection": "notes"}},
        {"operation": "points", "collection": "notes", "limit": 3},
        {"operation": "count", "collection": "notes"},
    ],
    ids=lambda job: job.get("operation", "embed") + ("" if len(job) < 4 else " more"),
)
def test_a_small_request_never_waits_for_large_ones(operations: Operations, job: dict[str, object]) -> None:
    """However many large requests are parsed, planned, tokenized or rendered, a small one is answered."""
    client = Client(operations)
    client.good({"texts": ["a word"], "qdrant": {"collection": "notes"}})

    async def scenario() -> None:
        with occupied(PLANS, TEXTS, BODIES):
            async with asyncio.timeout(PATIENCE):
                answer = await client.answer(job)
        assert "error" not in answer

    asyncio.run(scenario())


def test_plans_leave_a_processor_to_queries() -> None:
    """On two processors large ingests are planned by one thread, and on more by two."""
    assert [plan_threads(processors) for processors in (1, 2, 3, 64)] == [1, 1, 2, 2]


def large(texts: Sequence[str] = (LONG,), *, chunk: bool = True) -> IngestRequest:
    """An ingest request of large texts."""
    options = Chunking(max_tokens=64, overlap=8) if chunk else None
    return IngestRequest(texts=texts, vectors=("dense",), collection="big", chunk=options)


@pytest.mark.parametrize(("method", "chunk"), [("starts", True), ("_heads", False)])
def test_a_cancelled_plan_begins_nothing_new(  # noqa: PLR0917 - fixtures
    operations: Operations,
    watched: Watched,
    store: EdgeStore,
    method: str,
    chunk: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the client goes while texts are cut or tokenized, no further part is, and nothing is embedded or stored."""
    begun, release, calls = threading.Event(), threading.Event(), []
    original = getattr(Tokenizer, method)

    def held(self: Tokenizer, *args: object) -> object:
        calls.append(method)
        begun.set()
        assert release.wait(PATIENCE)
        return original(self, *args)

    monkeypatch.setattr(Tokenizer, method, held)

    async def scenario() -> None:
        texts = [LONG] if chunk else [f"{n} {SENTENCE}" * 20 for n in range(400)]
        task = asyncio.create_task(operations.ingest(large(texts, chunk=chunk)))
        await until(begun.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        await until(lambda: PLANS.characters == 0)

    asyncio.run(scenario())
    assert calls == [method]
    assert watched.engine.batches == []
    assert store.collection_of("big") is None


def test_a_cancelled_window_is_cut_no_further(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of short lines with much overlap, which takes the splitter minutes, is given up within its work."""
    begun, release, calls = threading.Event(), threading.Event(), []
    counter = chunking._counter

    def held(window: str, starts: list[int], widest: int) -> Callable[[str], int]:
        size = counter(window, starts, widest)

        def counted(part: str) -> int:
            calls.append(part)
            begun.set()
            assert release.wait(PATIENCE)
            return size(part)

        return counted

    monkeypatch.setattr(chunking, "_counter", held)

    async def scenario() -> None:
        call = PLANS.run(lambda: watched.embedder.split("ab\n" * 50_000, max_tokens=8192, overlap=4096), characters=1)
        task = asyncio.create_task(call)
        await until(begun.is_set)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        release.set()
        await until(lambda: PLANS.characters == 0)

    asyncio.run(scenario())
    assert len(calls) == 1


def test_work_whose_client_has_gone_does_not_begin() -> None:
    """A call that waits for a thread is dropped with the task that asked for it."""
    threads, release, ran = Threads("one", 1), threading.Event(), []

    async def scenario() -> None:
        first = asyncio.create_task(threads.run(lambda: release.wait(PATIENCE)))
        second = asyncio.create_task(threads.run(lambda: ran.append("second"), characters=5))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert threads.characters == 0
        release.set()
        await first
        await threads.run(lambda: ran.append("third"))

    asyncio.run(scenario())
    assert ran == ["third"]


def test_waiting_texts_are_bounded_by_their_characters() -> None:
    """A text beyond the limit is `overloaded` at once, and accepted when those before it are done."""
    threads, release, ran = Threads("few", 1, waiting_max_characters=10), threading.Event(), []

    async def scenario() -> None:
        first = asyncio.create_task(threads.run(lambda: release.wait(PATIENCE), characters=8))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=r"texts of 8 characters .* \(limit 10\), got 5 more; retry later"):
            await threads.run(lambda: ran.append("refused"), characters=5)
        second = asyncio.create_task(threads.run(lambda: ran.append("second"), characters=2))
        release.set()
        await asyncio.gather(first, second)
        await until(lambda: threads.characters == 0)
        await threads.run(lambda: ran.append("alone"), characters=50)

    asyncio.run(scenario())
    assert ran == ["second", "alone"]


def test_work_that_is_wanted_goes_on() -> None:
    """A call is not disturbed while its task waits, nor is one outside of the threads."""
    check_cancelled()

    def work() -> int:
        check_cancelled()
        return 7

    assert asyncio.run(PLANS.run(work)) == 7


def test_texts_that_cannot_wait_are_not_tokenized(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that are too many for the queue, or come when it is full, are refused before the tokenizer sees them."""
    embedder, queue = watched.embedder, watched.pool.queue_tokens

    async def embed(texts: Sequence[str]) -> None:
        await embedder.embed(texts, Outputs.of(("dense",)), max_length=512, priority=Priority.PASSAGE)

    async def scenario() -> None:
        with pytest.raises(InvalidRequest, match=rf"QUEUE_TOKENS={queue}\); send at most {queue // 2} at once"):
            await embed(["word"] * (queue // 2 + 1))
        watched.engine.batches.clear()
        watched.engine.gate.clear()
        try:
            waiting = asyncio.create_task(embed(["word " * 2000] * (queue * 9 // 10 // 512)))
            await until(lambda: embedder.waiting_tokens > queue * 8 // 10)
            monkeypatch.setattr(Tokenizer, "_heads", lambda *_: pytest.fail("it was tokenized"))
            with pytest.raises(Overloaded, match="retry later"):
                await embed(["word"] * (queue // 8))
        finally:
            monkeypatch.undo()
            waiting.cancel()
            watched.engine.gate.set()
            await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(scenario())


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=3), inner, max_size=30),
    max_leaves=100,
)


@given(JSON, st.integers(0, 4))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_value_beside_a_large_one_is_not_light(value: object, depth: int) -> None:
    """No shape hides a large list or a large text from the choice of threads."""
    text = "x" * CHARACTERS_PER_UNIT * (LIGHT_MAX_UNITS + 1)
    for heavy in ([0] * (LIGHT_MAX_UNITS + 1), [[0] * 1000] * 1000, text, {text: 1}):
        nested: object = heavy
        for _ in range(depth):
            nested = {"a": [value, nested]}
        assert not is_light(nested)


def test_the_default_threads_of_an_event_loop_are_not_used() -> None:
    """No part of the worker uses them, since they mix quick work with slow work."""
    for package in ("embedder", "qdrant_sink", "service"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute):
                    assert node.attr not in {"to_thread", "set_default_executor"}, path
                if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "run_in_executor":
                    assert not (isinstance(node.args[0], ast.Constant) and node.args[0].value is None), path


def test_the_tokenizer_of_the_service_is_portioned() -> None:
    """Texts are tokenized in portions, between which a short text has its turn and a cancellation is noticed."""
    tokenizer = Tokenizer(MINI)
    portions = list(tokenizer.portions([SENTENCE * 100] * 60, 8192))
    assert len(portions) > 3
    assert max(sum(len(SENTENCE * 100) for _ in portion) for portion in portions) <= QUICK_TEXT_MAX_CHARACTERS
