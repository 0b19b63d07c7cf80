"""Bodies are counted before they are parsed, and all requests together hold a bounded memory."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder import Embedder, InvalidRequest, Overloaded
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from service.transports.http import body as body_module
from service.transports.http.body import BODY_MAX_BYTES, Received
from service.wire import Codec, json_parts
from service.wire.json_limits import JSON_MAX_DEPTH, JsonLimits
from service.wire.json_parts import parse_json
from service.wire.json_scan import PORTION_BYTES, scan
from service.wire.json_values import size_of
from tests.hostile.raw_client import RawClient, head
from tests.service.client import ENVIRONMENT, PATIENCE, until
from tests.service.served import Served

NO_LIMITS: Final = JsonLimits(10**12, 10**15)
LIMITS: Final = JsonLimits.of(2_000_000, BODY_MAX_BYTES)
BUDGET_BYTES: Final = 64_000_000

strings = st.text() | st.text(st.sampled_from('\\"[]{},: \n\té😀\u4e2da'))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | strings,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(strings, inner, max_size=6),
    max_leaves=30,
)
styles = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])
portions = st.integers(4, 60)


def nodes(value: Any) -> int:
    """The number of values and field names."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(nodes, value.values()))
    return 1 + sum(map(nodes, value)) if isinstance(value, list) else 1


def depth(value: Any) -> int:
    """The levels of lists and objects."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def outcome(parse: Callable[[], Any]) -> str:
    """The JSON that a parser reads, or that it reads none."""
    try:
        return json.dumps(parse())
    except (ValueError, InvalidRequest):
        return "invalid"


def refuse_constant(name: str) -> None:
    """Refuse what Python's parser takes beside JSON."""
    raise ValueError(name)


ANNOUNCED: Final = 20
"""Number of clients that announce a body."""


@given(value=values, style=styles, portion=portions, mark=st.booleans())
def test_a_scan_counts_what_a_parser_creates(value: Any, style: dict[str, Any], portion: int, *, mark: bool) -> None:
    """Nodes and depth are those of the values, whatever is in strings and wherever a portion ends."""
    body = (b"\xef\xbb\xbf" if mark else b"") + json.dumps(value, **style).encode("utf-8", "replace")
    read = json.loads(body.decode("utf-8-sig"))
    scanned = scan(body, NO_LIMITS, portion_bytes=portion)
    assert (scanned.size.nodes, scanned.size.depth) == (nodes(read), depth(read))
    parsed = parse_json(body, scanned)
    assert parsed == read
    assert json.dumps(parsed) == json.dumps(read)
    counted = asyncio.run(size_of(read, NO_LIMITS))
    assert (counted.nodes, counted.depth) == (nodes(read), depth(read))


@given(
    value=values,
    style=styles,
    portion=portions,
    damage=st.tuples(st.integers(0, 200), st.integers(0, 3), st.text('\\"[]{},: 1n\n', max_size=3)),
)
def test_parts_are_parsed_as_the_whole(
    value: Any, style: dict[str, Any], portion: int, damage: tuple[int, int, str]
) -> None:
    """Damaged JSON is as valid, or as invalid, in parts as in one step, and its count is never too low."""
    text, (at, cut, more) = json.dumps(value, **style), damage
    body = (text[:at] + more + text[at + cut :]).encode("utf-8", "replace")
    expected = outcome(lambda: json.loads(body, parse_constant=refuse_constant))
    scanned = scan(body, NO_LIMITS, portion_bytes=portion)
    assert outcome(lambda: parse_json(body, scanned)) == expected
    if expected != "invalid":
        assert scanned.size.nodes >= nodes(json.loads(body))


SURROGATES: Final = (r"\ud83d", r"\uDE00", r"\ud83d\ude00")
PIECES: Final = st.sampled_from(
    ["a" * 15, "é", "\u4e2d", "😀", r"\\", r"\"", r"\n", r"\u00e9", r"\u4E2d", *SURROGATES, r"\ud83d\\", r"\\ud83d"]
)
BROKEN: Final = st.sampled_from(["\n", r"\x", r"\u12", r"\ud8", '" ', '"', "\\"])


@given(
    pieces=st.lists(PIECES, max_size=40),
    broken=st.none() | st.tuples(st.integers(0, 40), BROKEN),
    portion=portions,
    form=st.sampled_from(['"{}"', '["{}"]', '{{"{}": 1}}', '{{"a": "{}", "b": 2}}']),
)
def test_strings_are_parsed_in_parts_as_the_whole(
    pieces: list[str], broken: tuple[int, str] | None, portion: int, form: str
) -> None:
    """A long string has the same characters wherever a part ends: within an escape, a pair or the bytes of one."""
    if broken is not None:
        pieces = [*pieces[: broken[0]], broken[1], *pieces[broken[0] :]]
    body = form.format("".join(pieces)).encode()
    expected = outcome(lambda: json.loads(body))
    assert outcome(lambda: parse_json(body, scan(body, NO_LIMITS, portion_bytes=portion))) == expected


@pytest.mark.parametrize("text", [b"\xc3\xc3", b"\\n\x80", b"\xe4\xb8", b"\xff", b"a\xed\xa0\x80", b"\x80" * 40])
def test_bytes_that_are_no_characters_are_invalid_in_parts(text: bytes) -> None:
    """Invalid UTF-8 within a long string is refused wherever a part ends."""
    for before in range(20):
        body = b'["' + rb"\n" * before + b"a" * (before % 3) + text + b'"]'
        with pytest.raises(InvalidRequest, match=r"is not valid UTF-8 \(byte \d+\)"):
            parse_json(body, scan(body, NO_LIMITS, portion_bytes=8))


@pytest.mark.parametrize("damage", [b"x", b"]", b"}", b",", b'"', b"1 2", b"nul", b":"])
@pytest.mark.parametrize("place", [b"?1", b"?2", b"?3"])
def test_an_error_in_parts_has_its_line_and_column(damage: bytes, place: bytes) -> None:
    """The place of an error in a large body is that of a parser of the whole."""
    body = b'{"texts": ["\xc3\xa9", ?1 "b"],\n "n": [[1, 2, ?2 3], {"a": "\xc3\xa9", "b": {"c": [4, 5 ?3]}}]}'
    body = body.replace(place, damage)
    for other in (b"?1", b"?2", b"?3"):
        body = body.replace(other, b"")
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(body.decode())
    with pytest.raises(InvalidRequest) as refusal:
        parse_json(body, scan(body, NO_LIMITS, portion_bytes=8))
    if damage not in (b'"', b"]", b"}"):  # whose first consequence is elsewhere
        place_of_error = f"(line {expected.value.lineno}, column {expected.value.colno})"
        assert refusal.value.message == f"the body is not valid JSON {place_of_error}"


@pytest.mark.parametrize("body", [b"", b"   ", b"[", b'{"a": [1, 2', b'["abc', b"[1,]", b"[,1]", b"[1 2]", b'{"a"}'])
def test_cut_bodies_are_invalid_in_parts(body: bytes) -> None:
    """A large body that ends too early, or lacks an item, is invalid rather than shorter."""
    for portion in (1, 2, 3, 100):
        assert outcome(lambda: parse_json(body, scan(body, NO_LIMITS, portion_bytes=portion))) == "invalid"  # noqa: B023


@pytest.mark.parametrize(
    "item",
    ["[]", "{}", "[[]]", '{"a":{}}', "1.5", "123456789", '"ab"', '"\u00e9"', '"\u4e2d"', '"\U0001f600"',
     '"\\ud83d\\ude00aaaaaaaaaaaaaaaaaaaaaa"', '{"name %d":{"other %d":[1,"%d"]}}', '"%d"', "null"],
)  # fmt: skip
def test_values_take_no_more_memory_than_is_reserved(item: str) -> None:
    """The bound that is computed from the bytes holds for what a parser creates."""
    items = (item.replace("%d", str(number)) for number in range(20_000))
    body = f"[{','.join(items)}]".encode()
    scanned = scan(body, NO_LIMITS)
    tracemalloc.start()
    try:
        value = parse_json(body, scanned)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    heads = 16 * (scanned.size.lists + scanned.size.objects)  # of the garbage collector, which are not traced
    assert held + heads <= scanned.size.max_bytes
    assert asyncio.run(size_of(value, NO_LIMITS)).max_bytes >= held


@pytest.mark.parametrize(
    ("item", "limit"),
    [
        (b"[],", "the values of the body must need at most"),
        (b"1,", r"2000000 values and field names \(JSON_MAX_NODES\)"),
    ],
)
def test_a_body_of_small_values_is_refused_before_it_is_parsed(item: bytes, limit: str) -> None:
    """A body of 30 MB of brackets takes a bounded memory, and is not read to its end."""
    body = b"[" + item * (29_000_000 // len(item)) + b"0]"
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=limit):
            scan(body, LIMITS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000_000


def test_depth_is_limited_before_the_parser_recurses() -> None:
    """Brackets in brackets are refused by their number, and those in strings do not count."""
    with pytest.raises(InvalidRequest, match="the body must be nested at most 128 levels deep, got more"):
        scan(b"[" * (JSON_MAX_DEPTH + 1), LIMITS)
    body = json.dumps(["[" * 1000, '"' + "{" * 1000]).encode()
    assert scan(body, LIMITS).size.depth == 1


def test_no_step_of_the_parser_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body of many values is parsed in steps of bounded size, between which other threads run."""
    steps: list[int] = []

    class Recording(json.JSONDecoder):
        def decode(self, text: str, *more: Any) -> Any:
            steps.append(len(text))
            return super().decode(text, *more)

    monkeypatch.setattr(json_parts, "_DECODER", Recording())
    rows = [{"number": number, "tags": ["a", "b"]} for number in range(20_000)]
    body = json.dumps({"qdrant": {"payloads": rows}, "texts": ["text"] * 20_000}).encode()
    assert parse_json(body, scan(body, LIMITS))["qdrant"]["payloads"] == rows
    assert len(steps) > len(body) // PORTION_BYTES
    assert max(steps) <= PORTION_BYTES + 2


@pytest.mark.parametrize("text", [r"line\n", r"\ud83d\ude00", "word ", "\u4e2d"])
@pytest.mark.parametrize("form", ['{{"texts": ["{}"]}}', '{{"{}": 1}}'])
def test_no_step_of_a_long_string_is_long(monkeypatch: pytest.MonkeyPatch, text: str, form: str) -> None:
    """A long string, and a long field name, is matched and unescaped in steps of bounded size."""
    steps: list[int] = []

    def recorded(pattern: re.Pattern[bytes]) -> Any:
        class Recording:
            def match(self, body: bytes, start: int, end: int) -> re.Match[bytes] | None:
                found = pattern.match(body, start, end)
                steps.append(0 if found is None else found.end() - start)
                return found

        return Recording()

    for name in ("_PLAIN", "_ESCAPED"):
        monkeypatch.setattr(json_parts, name, recorded(getattr(json_parts, name)))
    body = form.format(text * (3_000_000 // len(text.encode()))).encode()
    assert parse_json(body, scan(body, LIMITS)) == json.loads(body)
    assert len(steps) >= len(body) // PORTION_BYTES
    assert max(steps) <= PORTION_BYTES


def test_a_large_string_is_copied_once() -> None:
    """A long text of wide characters takes the memory of its value, and not that of its JSON beside it."""
    body = json.dumps({"texts": ["a" * 5_000_000 + "\U0001f600"]}, ensure_ascii=False).encode()
    scanned = scan(body, LIMITS)
    assert parse_json(body, scanned) == json.loads(body)
    tracemalloc.start()
    try:
        parse_json(body, scanned)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * scanned.size.max_bytes


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operations]:
    """Operations with little memory for requests."""
    settings = Settings.from_environment({**ENVIRONMENT, "MEMORY_BUDGET_MB": "200"})
    embedder = Embedder.load(settings.model_options)
    core = Operations(settings, embedder, EdgeStore(tmp_path_factory.mktemp("store")))
    core.memory.total_bytes = BUDGET_BYTES  # less than any plan leaves, so that few clients fill it
    yield core
    core.close()


@pytest.fixture(scope="module")
def served(operations: Operations) -> Iterator[Served]:
    """A server over them."""
    with Served(operations) as server:
        yield server


def upload(served: Served, announced: int, sent: bytes) -> socket.socket:
    """A connection that announces a body, sends a part of it, and stops."""
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE)
    head = f"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {announced}\r\n\r\n"
    connection.sendall(head.encode() + sent)
    return connection


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def test_a_body_takes_memory_as_it_arrives(served: Served, operations: Operations) -> None:
    """Bodies that are announced but not sent hold nothing, and those that are sent hold what was sent."""
    liars = [upload(served, 29_000_000, b"") for _ in range(8)]
    with served.client() as client:
        assert client.post("/embed", json={"texts": ["a"]}).status_code == 200
    half = upload(served, 29_000_000, b" " * 1_000_000)
    wait_for(lambda: operations.memory.reserved_bytes == 1_000_000)
    for connection in (*liars, half):
        connection.close()
    wait_for(lambda: operations.memory.reserved_bytes == 0)


def test_a_body_that_is_announced_takes_no_memory(served: Served) -> None:
    """Clients that announce a body of 29 MB each, and send a byte of it, do not make the worker hold its memory."""
    begun = head("POST", "/embed", "Content-Type: application/json", "Content-Length: 29000000") + b"{"
    with ExitStack() as clients:
        before = resident_bytes()
        for _ in range(ANNOUNCED):
            clients.enter_context(RawClient(served.port)).send(begun)
        asyncio.run(until(lambda: served.running["/embed"] == ANNOUNCED))
        assert resident_bytes() - before < ANNOUNCED * 2_000_000


def resident_bytes() -> int:
    """The resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_bodies_together_are_bounded(served: Served, operations: Operations) -> None:
    """What does not fit beside the other bodies is told to come again, before it is read to its end."""
    others = [upload(served, 29_000_000, b" " * 28_000_000) for _ in range(2)]
    wait_for(lambda: operations.memory.reserved_bytes == 56_000_000)
    refused = upload(served, 29_000_000, b" " * 10_000_000)
    answer = refused.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 429 ")
    assert "retry-after: 1" in answer.lower()
    assert operations.memory.reserved_bytes <= BUDGET_BYTES
    with served.client() as client:
        bomb = gzip.compress(b" " * 20_000_000)
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        response = client.post("/embed", content=bomb, headers=headers)
        assert (response.status_code, response.json()["error_code"]) == (429, "overloaded")
        assert "(MEMORY_BUDGET_MB)" in response.json()["error"]
    for connection in (refused, *others):
        connection.close()
    wait_for(lambda: operations.memory.reserved_bytes == 0)


def test_a_body_that_trickles_gives_its_memory_back(
    served: Served, operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends a byte now and then, and so never pauses for long, is refused after the time for a body."""
    monkeypatch.setattr(body_module, "BODY_TIMEOUT_S", 0.3)
    connection = upload(served, 29_000_000, b" " * 1_000_000)
    connection.settimeout(0.02)
    answer = b""
    for _ in range(500):
        try:
            if not answer:
                connection.sendall(b" ")
            answer += connection.recv(65536)
        except TimeoutError:
            continue
        except OSError:  # the server has closed the connection
            break
        if answer.endswith(b"}"):  # head and body may come one after the other
            break
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body must arrive within 0.3 seconds" in answer
    connection.close()
    wait_for(lambda: operations.memory.reserved_bytes == 0)


def test_values_are_reserved_before_they_are_created(served: Served, operations: Operations) -> None:
    """A body whose values can never fit is refused, and one whose values do not fit now is told to come again."""

    def body(count: int) -> bytes:
        return b'{"texts": [' + b"{}," * (count - 1) + b"{}]}"

    headers = {"Content-Type": "application/json"}
    with served.client() as client:
        response = client.post("/embed", content=body(400_000), headers=headers)
        assert response.status_code == 400
        assert "must need at most 64000000 bytes of memory (MEMORY_BUDGET_MB)" in response.json()["error"]
        with operations.memory.reserve(40_000_000):
            response = client.post("/embed", content=body(200_000), headers=headers)
            assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        response = client.post("/embed", content=body(200_000), headers=headers)
        assert response.json()["error"] == "texts must have at most 10000 items (MAX_TEXTS), got 200000"
    wait_for(lambda: operations.memory.reserved_bytes == 0)  # the answer is there before it is counted as sent


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda raw: raw, lambda raw: {"openai_route": "/v1/embeddings", "openai_input": raw},
                                  lambda raw: {"openai_route": "/v1/rerank", "openai_input": raw}])  # fmt: skip
def test_jobs_of_the_queue_have_the_same_limits(operations: Operations, wrap: Callable[[Any], Any]) -> None:
    """Values from the queue are counted before they are validated, and share the memory of all requests."""
    codec = Codec(operations)

    def message(raw: Any) -> str:
        answer = json.dumps(asyncio.run(codec.job(wrap(raw))))
        assert len(answer) < 1000
        return answer

    deep: list[Any] = []
    for _ in range(JSON_MAX_DEPTH):
        deep = [deep]
    assert "input must be nested at most 128 levels deep, got more" in message({"texts": deep})
    assert "2000000 values and field names (JSON_MAX_NODES)" in message({"texts": [1] * 2_000_000})
    assert "must need at most 64000000 bytes" in message({"texts": [{}] * 400_000})
    others = operations.memory.reserve(BUDGET_BYTES)  # not in a block, which the job would join
    assert "bytes of memory (MEMORY_BUDGET_MB), and this one needs" in message({"texts": ["a"]})
    others.release()
    assert operations.memory.reserved_bytes == 0


def test_a_job_over_http_comes_again_where_it_finds_no_room(
    served: Served, operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job waits as bytes, for which memory is set aside, and comes again where its values find no room."""
    parsed, turns = Received.parsed, []

    async def crowded(received: Received) -> Any:
        turns.append(operations.memory.reserved_bytes)
        if len(turns) == 2:
            raise Overloaded("no room")
        return await parsed(received)

    monkeypatch.setattr(Received, "parsed", crowded)
    body = {"texts": ["a" * 1000] * 10, "qdrant": {"collection": "notes"}}
    with served.client() as client:
        accepted = client.post("/points", json=body, headers={"Prefer": "respond-async"})
        assert accepted.status_code == 202
        path = accepted.headers["location"]
        wait_for(lambda: client.get(path).json()["state"] == "done")
    assert len(turns) == 3
    assert turns[1:] == [0, 0]
    wait_for(lambda: operations.memory.reserved_bytes == 0)
