"""A command whose Qdrant server does not answer says so within seconds, before it loads the model."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from qdrant_sink import StoreUnavailable
from service.operations import Operations
from service.operations.store_access import check_contact
from service.settings import Settings
from tests.command_line import invoke
from tests.loopback import free_port
from tests.service.client import ENVIRONMENT
from tests.sink.grpc_double import GrpcDouble
from tests.sink.rest_double import RestDouble, refusal, result

pytestmark = pytest.mark.usefixtures("signals")

PATH = "GET /collections/first-contact/exists"


@pytest.fixture
def lines(tmp_path: Path) -> str:
    """A file of one line."""
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "rsync copies files"}\n', encoding="utf-8")
    return str(path)


@pytest.fixture
def rest() -> Iterator[RestDouble]:
    """A server that speaks REST alone."""
    double = RestDouble()
    yield double
    double.stop()


def no_model(_settings: Settings) -> Operations:
    """Fail if the command loads the model."""
    raise AssertionError("the model is not needed to say that the server does not answer")


def at_port(port: int) -> Settings:
    """The settings of a server at a port."""
    return Settings.from_environment({**ENVIRONMENT, "QDRANT_URL": f"http://127.0.0.1:{port}"})


@pytest.mark.parametrize("grpc_port", [None, "free"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", "hello", "--collection", "notes"),
        ("bulk", "--collection", "notes"),
        ("bulk", "--collection", "notes", "--finish"),
        ("complete", "notes", "--kinds", "sparse"),
        ("reindex", "notes-v1", "notes-v2"),
        ("reindex", "notes-v1", "notes-v2", "--embed", "dense"),
    ],
)
def test_a_server_that_does_not_answer_is_one_line(
    lines: str, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], grpc_port: str | None
) -> None:
    """It names the setting and not the host, without the warnings of retries; the status is 2."""
    port = free_port()
    monkeypatch.setenv("QDRANT_URL", f"http://127.0.0.1:{port}")
    if grpc_port is not None:
        monkeypatch.setenv("QDRANT_GRPC_PORT", str(free_port()))
    files = (lines,) if arguments[0] == "bulk" and "--finish" not in arguments else ()
    ended = invoke(*arguments, *files, build=no_model)
    assert (ended.status, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith(f"bge-m3-qdrant {arguments[0]}: Qdrant does not answer: ")
    assert line.endswith("; check QDRANT_URL and, if it is set, QDRANT_GRPC_PORT, and that the server runs")
    assert str(port) not in line


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, result({"exists": False})),
        (403, {}, refusal("forbidden")),
        (429, {"Retry-After": "30"}, refusal("Rate limiting exceeded")),
        (404, {}, "no Qdrant"),
    ],
)
def test_a_server_that_answers_anything_is_there(rest: RestDouble, answer: tuple[int, dict[str, str], object]) -> None:
    """What a key may do, and how busy the server is, are for the calls that follow."""
    rest.answers[PATH] = [answer]
    check_contact(at_port(rest.port))
    assert [call for call, _ in rest.requests] == [PATH]


def test_a_failure_of_the_server_is_not_repeated(rest: RestDouble) -> None:
    """One attempt is made, which a person can repeat."""
    rest.answers[PATH] = [(503, {}, "")]
    with pytest.raises(StoreUnavailable, match="HTTP 503; check QDRANT_URL"):
        check_contact(at_port(rest.port))
    assert len(rest.requests) == 1


def test_grpc_alone_is_enough(tmp_path: Path) -> None:
    """The port of REST is not asked where that of gRPC answers."""
    double = GrpcDouble(tmp_path)
    try:
        settings = {"QDRANT_URL": f"http://127.0.0.1:{free_port()}", "QDRANT_GRPC_PORT": str(double.port)}
        check_contact(Settings.from_environment({**ENVIRONMENT, **settings}))
    finally:
        double.stop()


def test_a_silent_server_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that takes connections and says nothing ends the command after the time limit."""
    monkeypatch.setattr("service.operations.store_access.CONTACT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(StoreUnavailable, match="check QDRANT_URL"):
        check_contact(at_port(silent.getsockname()[1]))


def test_an_embedded_store_needs_no_contact(tmp_path: Path) -> None:
    """Its directory is opened when it is needed."""
    check_contact(Settings.from_environment({**ENVIRONMENT, "QDRANT_PATH": str(tmp_path / "edge")}))
    assert not (tmp_path / "edge").exists()
