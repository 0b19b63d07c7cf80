"""The public object turns texts into vectors from any thread and any event loop."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from embedder import QUICK, BatchReport, Embedder, ModelOptions, Priority, Result
from embedder.checkpoint import MINI
from embedder.engines import Engine
from embedder.errors import Cancelled, ConfigurationError, InvalidRequest, ModelFailure, Overloaded
from embedder.scheduling.pool import ModelPool
from embedder.tokenizer import EncodedText, Tokenizer
from embedder.vectors import KINDS, Embedding, Kind, Outputs
from tests.embedder.bench import Bench
from tests.embedder.checkpoints import as_bin, edit
from tests.embedder.fakes import WAIT_MAX_S, CountingEngine
from tests.embedder.oracle import assert_same, embed

TEXTS = ["one library", "", "a tool that reads many files"]


def facade(texts_to_ids: Tokenizer, engine: Engine, *, queue_tokens: int = 10_000) -> Embedder:
    """Return an embedder over one engine with one worker thread and small batches."""
    return Embedder(
        texts_to_ids, [engine], ModelPool([engine], batches_per_gpu=1, token_budget=16, queue_tokens=queue_tokens)
    )


@pytest.fixture(scope="module")
def embedder(mini: Bench) -> Iterator[Embedder]:
    """The miniature model as an `Embedder`."""
    instance = facade(mini.tokenizer, mini.packed)
    yield instance
    instance.close()


def run(embedder: Embedder, texts: list[str], max_length: int = 512) -> list[Embedding]:
    """Embed in a new event loop."""
    results = asyncio.run(embedder.embed(texts, Outputs(), max_length=max_length, priority=Priority.QUERY))
    embeddings = [result for result in results if isinstance(result, Embedding)]
    assert len(embeddings) == len(texts)
    return embeddings


def test_one_event_loop_after_another(mini: Bench, embedder: Embedder) -> None:
    """The model outlives an event loop: a second `asyncio.run` gets the same results."""
    expected = embed(mini.packed, mini.tokenizer, TEXTS, 512)
    for _ in range(2):
        assert_same(run(embedder, TEXTS), expected)


def test_two_threads_share_an_embedder(mini: Bench, embedder: Embedder) -> None:
    """Two threads with an event loop each share the model."""
    expected = embed(mini.packed, mini.tokenizer, TEXTS, 512)
    with ThreadPoolExecutor(2) as threads:
        for embeddings in threads.map(lambda _: run(embedder, TEXTS), range(6)):
            assert_same(embeddings, expected)


def test_no_texts(embedder: Embedder) -> None:
    """An empty list gets an empty list."""
    assert run(embedder, []) == []


@pytest.mark.parametrize("max_length", [-1, 0, 2, 513, 8192])
def test_a_limit_that_the_model_lacks_is_refused(embedder: Embedder, max_length: int) -> None:
    """`maxLength` outside 3 to the model's limit is refused, naming the field, the limit and the value."""
    with pytest.raises(InvalidRequest, match=rf"maxLength .* 3 .* 512, got {max_length}"):
        run(embedder, ["text"], max_length)


@pytest.mark.parametrize("max_length", [3, 512])
def test_the_ends_of_the_range_are_limits(embedder: Embedder, max_length: int) -> None:
    """`maxLength` may be 3 or the model's limit."""
    (embedding,) = run(embedder, ["library data " * 400], max_length)
    assert (embedding.tokens, embedding.truncated) == (max_length, True)


def test_a_lone_surrogate_is_an_invalid_request(embedder: Embedder) -> None:
    """A text with a lone surrogate is refused as invalid, and the error does not quote it."""
    with pytest.raises(InvalidRequest, match="surrogate") as caught:
        run(embedder, ["fine", "secret \udfff"])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["secret \ud800", "A long text of words. " * 400 + "\udfff"], ids=["short", "long"])
def test_every_entry_refuses_a_lone_surrogate_in_the_same_words(embedder: Embedder, text: str) -> None:
    """Tokenizing, locating tokens and cutting raise the same error for any tokenizer library."""
    entries: list[Callable[[], object]] = [
        lambda: embedder.tokenize([text], 64),
        lambda: embedder.tokenize([text], 64, at_once=True),
        lambda: embedder.place([text], 64),
        lambda: embedder.split(text, max_tokens=64, overlap=0),
    ]
    for entry in entries:
        with pytest.raises(InvalidRequest, match=r"^a text is not valid Unicode \(a lone surrogate\)$"):
            entry()


@pytest.mark.parametrize(("texts", "quick"), [(["a query"], True), (["a query " * 100], False), (["a"] * 9, False)])
def test_only_short_requests_are_tokenized_on_the_event_loop(texts: list[str], quick: bool) -> None:
    """A query is tokenized on the event loop; a longer request uses a thread and blocks no other client."""
    threads: set[int] = set()

    class Watching(Tokenizer):
        def portions(self, texts: Sequence[str], max_length: int, **options: Any) -> Iterator[list[EncodedText]]:
            threads.add(threading.get_ident())
            return super().portions(texts, max_length, **options)

    embedder = facade(Watching(MINI), CountingEngine())
    run(embedder, texts, 64)
    embedder.close()
    assert (threads == {threading.get_ident()}) == quick


def test_cancelling_the_task_drops_its_texts(mini: Bench) -> None:
    """A cancelled caller's texts never reach the model, and other callers are served."""
    engine = CountingEngine()
    embedder = facade(mini.tokenizer, engine)

    async def scenario() -> list[Result]:
        def ask(word: str) -> asyncio.Task[list[Result]]:
            return asyncio.create_task(
                embedder.embed([word] * 20, Outputs(), max_length=64, priority=Priority.QUERY, batch_size=1)
            )

        with engine.held():
            first = ask("library")
            await asyncio.to_thread(engine.wait_for_pass)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            second = ask("tool")
        return await asyncio.wait_for(second, WAIT_MAX_S)

    assert len(asyncio.run(scenario())) == 20
    embedder.close()
    library = int(mini.tokenizer.encode(["library"], 64)[0].ids[1])
    assert engine.seen.count(library) == 1
    assert len(engine.seen) == 21


def test_refusals_reach_the_caller(mini: Bench) -> None:
    """A full queue, a job larger than the queue and a closed worker are three different errors."""
    engine = CountingEngine()
    embedder = facade(mini.tokenizer, engine, queue_tokens=10)

    async def ask(count: int) -> list[Result]:
        return await embedder.embed(
            ["library"] * count, Outputs(), max_length=64, priority=Priority.QUERY, batch_size=1
        )

    async def scenario() -> None:
        with engine.held():
            first = asyncio.create_task(ask(3))
            await asyncio.to_thread(engine.wait_for_pass)
            with pytest.raises(Overloaded):
                await ask(2)
            with pytest.raises(InvalidRequest):
                await ask(4)
        await asyncio.wait_for(first, WAIT_MAX_S)

    asyncio.run(scenario())
    embedder.close()
    with pytest.raises(Cancelled):
        asyncio.run(ask(1))


def test_texts_that_never_fit_are_refused_before_all_are_read() -> None:
    """A request of many megabytes is refused before a core spends half a minute on it."""
    read: list[int] = []

    class Counting(Tokenizer):
        def portions(self, texts: Sequence[str], max_length: int, **options: Any) -> Iterator[list[EncodedText]]:
            for portion in super().portions(texts, max_length, **options):
                read.append(len(portion))
                yield portion

    embedder = facade(Counting(MINI, portion_characters=16), CountingEngine(), queue_tokens=18)  # two texts at a time
    expected = (
        r"^the first 8 of 9 have 24 tokens, more than the queue holds \(QUEUE_TOKENS=18\); send at most 6 at once"
    )
    with pytest.raises(InvalidRequest, match=expected):
        run(embedder, ["library"] * 9, 64)
    assert read == [2, 2, 2, 2]
    assert len(embedder.tokenize(["library"] * 6, 64)) == 6  # a job that is queued in portions may have any size
    embedder.close()


# --- large requests on a GPU ----------------------------------------------------------------------------------------


class Paced(Tokenizer):
    """A tokenizer whose portions after the first one wait for a permit."""

    def __init__(self) -> None:
        super().__init__(MINI, portion_characters=70)  # ten times "library"
        self.permits = threading.Semaphore(0)
        self.given = 0

    def portions(self, texts: Sequence[str], max_length: int, **options: Any) -> Iterator[list[EncodedText]]:
        """See `Tokenizer.portions`."""
        for number, portion in enumerate(super().portions(texts, max_length, **options)):
            if number:
                assert self.permits.acquire(timeout=WAIT_MAX_S)
            self.given += 1
            yield portion


async def ask(embedder: Embedder, texts: Sequence[str]) -> list[Result]:
    """Embed passages."""
    return await embedder.embed(texts, Outputs(), max_length=64, priority=Priority.PASSAGE)


def test_the_model_starts_before_a_large_request_is_tokenized(mini: Bench) -> None:
    """A GPU starts before the last text is tokenized, and the results are the same."""
    tokenizer, engine = Paced(), CountingEngine(device="cuda:0")
    embedder = facade(tokenizer, engine)
    texts = ["library", "tool", "data"] * 10

    async def scenario() -> list[Result]:
        task = asyncio.create_task(ask(embedder, texts))
        await asyncio.to_thread(engine.wait_for_pass)
        assert tokenizer.given == 1
        for _ in range(len(texts)):
            tokenizer.permits.release()
        return await asyncio.wait_for(task, WAIT_MAX_S)

    results = asyncio.run(scenario())
    embedder.close()
    embeddings = [result for result in results if isinstance(result, Embedding)]
    assert_same(embeddings, embed(engine, mini.tokenizer, texts, 64))


def test_cancelling_a_large_request_ends_its_tokenization() -> None:
    """After a client cancels, the rest of its texts is neither tokenized nor embedded."""
    tokenizer, engine = Paced(), CountingEngine(device="cuda:0")
    embedder = facade(tokenizer, engine)

    async def scenario() -> None:
        with engine.held():
            task = asyncio.create_task(ask(embedder, ["library"] * 1000))
            await asyncio.to_thread(engine.wait_for_pass)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for _ in range(1000):
                tokenizer.permits.release()

    asyncio.run(scenario())
    embedder.close()
    deadline = time.monotonic() + WAIT_MAX_S
    while QUICK.characters and time.monotonic() < deadline:  # the thread that tokenizes ends by itself
        time.sleep(0.001)
    assert QUICK.characters == 0
    assert tokenizer.given == 2
    assert len(engine.batches) == 1


@pytest.mark.parametrize("queue_tokens", [10_000, 300])
def test_a_large_request_on_a_gpu_is_refused_as_ever(queue_tokens: int) -> None:
    """Invalid text, an invalid limit and too many tokens are refused before anything is computed."""
    engine = CountingEngine(device="cuda:0")
    embedder = facade(Tokenizer(MINI, portion_characters=16), engine, queue_tokens=queue_tokens)
    with pytest.raises(InvalidRequest, match="surrogate"):
        asyncio.run(ask(embedder, ["library"] * 20 + ["\udfff"]))
    with pytest.raises(InvalidRequest, match="maxLength"):
        run(embedder, ["library"] * 20, 65)
    if queue_tokens == 300:
        with pytest.raises(InvalidRequest, match=r"^the 200 texts have at least 400 tokens, more than the queue holds"):
            asyncio.run(ask(embedder, ["library"] * 200))
    assert engine.batches == []
    embedder.close()


@pytest.mark.parametrize(("device", "overlaps"), [("cuda:0", True), ("cpu", False)])
def test_a_cpu_tokenizes_first(device: str, overlaps: bool) -> None:
    """On a CPU all texts are tokenized before the model starts, as both would compete for the same cores."""
    embedder = facade(Tokenizer(MINI), CountingEngine(device=device))
    assert embedder.overlaps(["library"] * 100, 64) == overlaps
    assert not embedder.overlaps(["library"], 64)
    embedder.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["packed", "flagembedding"])
def test_weights_that_are_not_finite_are_never_a_silent_gap(small_checkpoint: Path, engine: str, kind: Kind) -> None:
    """A text whose states overflow is an error in each kind of vector, sparse too; its neighbours are unharmed."""
    bench = Bench(small_checkpoint)
    (encoded,) = bench.tokenizer.encode(["library"], 64)
    weights = as_bin(small_checkpoint)
    weights["embeddings.word_embeddings.weight"][int(encoded.ids[1])] = torch.nan
    torch.save(weights, small_checkpoint / "pytorch_model.bin")
    embedder = facade(bench.tokenizer, getattr(bench, engine))
    results = asyncio.run(
        embedder.embed(["tool", "library", "data"], Outputs.of((kind,)), max_length=64, priority=Priority.QUERY)
    )
    embedder.close()
    assert [isinstance(result, ModelFailure) for result in results] == [False, True, False]


# --- streams --------------------------------------------------------------------------------------------------------


def test_a_stream_gives_what_a_whole_job_gives(mini: Bench, embedder: Embedder) -> None:
    """A stream gives the results of `embed`, each with the index of its text."""
    encoded = embedder.tokenize(TEXTS * 20, 512)
    with embedder.stream(encoded, Outputs(), priority=Priority.PASSAGE, batch_size=4) as stream:
        results: dict[int, Result] = {}
        for portion in stream:
            results |= dict(portion)
            stream.release([index for index, _ in portion])
    ordered = [results[index] for index in range(len(encoded))]
    embeddings = [result for result in ordered if isinstance(result, Embedding)]
    assert_same(embeddings, embed(mini.packed, mini.tokenizer, TEXTS, 512) * 20)


def test_a_stream_of_a_closed_embedder_is_refused(mini: Bench) -> None:
    """After `close` the embedder refuses new streams."""
    closed = facade(mini.tokenizer, CountingEngine())
    closed.close()
    with pytest.raises(Cancelled):
        closed.stream(mini.tokenizer.encode(["library"], 64), Outputs(), priority=Priority.PASSAGE)


def test_batches_are_observed(mini: Bench) -> None:
    """An observer of the embedder receives the tokens, fill and seconds of each batch."""
    reports: list[BatchReport] = []
    watched = facade(mini.tokenizer, CountingEngine())
    watched.observe(reports.append)
    run(watched, ["library"], 64)
    watched.close()
    [report] = reports
    assert (report.tokens, report.fill) == (3, 3 / 16)
    assert report.seconds >= 0


# --- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["packed", "flagembedding"])
def test_loading_by_options(mini: Bench, engine: str) -> None:
    """`MODEL_ID=mini` loads with either engine and describes itself."""
    options = ModelOptions(
        "mini",
        engine="packed" if engine == "packed" else "flagembedding",
        dtype="float32",
        device="cpu",
        token_budget=512,
    )
    embedder = Embedder.load(options)
    assert (embedder.max_length, embedder.hidden_size, embedder.colbert_size) == (512, 192, 192)
    assert embedder.label == f"{engine}, float32, cpu"
    assert_same(run(embedder, TEXTS), embed(mini.packed, mini.tokenizer, TEXTS, 512))
    embedder.close()


def test_loading_spares_the_collector_what_stays() -> None:
    """After loading, the garbage collector skips torch's modules and can still free a second model."""
    options = ModelOptions("mini", dtype="float32", device="cpu", token_budget=512)
    Embedder.load(options).close()
    frozen = gc.get_freeze_count()
    assert frozen > 50_000
    Embedder.load(options).close()
    assert gc.get_freeze_count() <= frozen


def test_loading_reads_the_tokenizers_file_once() -> None:
    """The largest file that Python reads at a start, 17 MB for BGE-M3, is opened once."""
    opened: list[str] = []
    loading = threading.Event()
    loading.set()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and loading.is_set():
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)
    Embedder.load(ModelOptions("mini", dtype="float32", device="cpu", token_budget=512)).close()
    loading.clear()  # a hook cannot be removed
    assert [Path(name).name for name in opened].count("tokenizer.json") == 1


def test_a_tokenizer_larger_than_the_model_is_refused(small_checkpoint: Path) -> None:
    """A tokenizer with more tokens than the model has embeddings is refused, naming both sizes."""
    weights = as_bin(small_checkpoint)
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][:10_000].clone()
    torch.save(weights, small_checkpoint / "pytorch_model.bin")
    edit(small_checkpoint / "config.json", lambda config: config.update(vocab_size=10_000))
    with pytest.raises(ConfigurationError, match=r"11000 tokens, the model has 10000"):
        Embedder.load(ModelOptions(str(small_checkpoint), dtype="float32", device="cpu", token_budget=512))


def test_a_model_that_is_not_there_is_refused() -> None:
    """Loading an unknown model is a refusal to start."""
    with pytest.raises(ConfigurationError, match="MODEL_ID"):
        Embedder.load(ModelOptions("nothing-of-this-name", device="cpu"))


def test_loading_leaves_no_thread_behind() -> None:
    """The threads of a load end with it, so that OpenMP has the workers of its one thread alone."""
    before = set(threading.enumerate())
    embedder = Embedder.load(ModelOptions("mini", dtype="float32", device="cpu", batches_per_gpu=4, token_budget=512))
    remaining = {thread.name for thread in set(threading.enumerate()) - before}
    assert remaining == {"model-cpu-launch", "model-cpu-queries", "model-cpu-passages"}
    embedder.close()
