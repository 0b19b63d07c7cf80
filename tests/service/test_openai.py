"""OpenAI's embeddings API on the queue, whose answer is a list with one object."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
import pytest

from embedder.checkpoint import MINI
from embedder.tokenizer import Tokenizer
from service.operations import Operations
from tests.embedder.oracle import TOLERANCE
from tests.service.client import CODES, Client, Json, unpacked, until
from tests.service.conftest import Serve
from tests.service.doubles import Watched

OTHER = "model must be 'mini', as GET /v1/models lists it, got 'text-embedding-3-small'"
TOO_LONG = "must have at most 512 tokens (PASSAGE_MAX_LENGTH), got"
IDS_ALLOWED = {"ALLOW_TOKEN_IDS": "true"}
TEXTS = ["rsync copies only the changed parts of files.", "", "a query"]


def job(worker: Client, route: str = "/v1/embeddings", **fields: Any) -> Json:
    """Answer a job of the queue, and return OpenAI's object."""
    answer: Any = asyncio.run(worker.job({"openai_route": route, "openai_input": fields}))
    assert isinstance(answer, list)
    (body,) = answer
    assert isinstance(body, dict)
    return body


def good(worker: Client, **fields: Any) -> Json:
    """Answer a job, and check that it succeeds."""
    answer = job(worker, **fields)
    assert "error" not in answer, answer
    return answer


def refused(worker: Client, route: str = "/v1/embeddings", **fields: Any) -> Json:
    """Answer a job, check that it fails, and return the error object."""
    answer = job(worker, route, **fields)
    assert set(answer) == {"error"}
    error: Json = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] in CODES
    return error


def test_texts_get_the_dense_vectors_of_embed(worker: Client) -> None:
    """The same model answers both APIs, in the order of the texts, and counts the same tokens."""
    answer = good(worker, input=TEXTS, model="mini", user="somebody")
    wanted = worker.good({"texts": TEXTS, "isPassage": True, "vectors": ["dense"]})
    assert (answer["object"], answer["model"]) == ("list", "mini")
    assert answer["usage"] == {"prompt_tokens": wanted["usage"]["tokens"], "total_tokens": wanted["usage"]["tokens"]}
    assert [embedding["index"] for embedding in answer["data"]] == [0, 1, 2]
    for mine, theirs in zip(answer["data"], wanted["results"], strict=True):
        assert mine["object"] == "embedding"
        assert mine["embedding"] == pytest.approx(theirs["dense"], abs=TOLERANCE)


def test_the_operator_names_the_model(serve: Serve) -> None:
    """A single `SERVED_MODEL_NAME` is the only name of the model in requests and answers."""
    worker = serve(SERVED_MODEL_NAME="BAAI/bge-m3")
    assert good(worker, input="a", model="BAAI/bge-m3")["model"] == "BAAI/bge-m3"
    assert refused(worker, input="a", model="mini")["code"] == "not_found"
    (listed,) = job(worker, "/v1/models")["data"]
    assert listed == job(worker, "/v1/models/BAAI/bge-m3")
    assert (listed["id"], listed["owned_by"]) == ("BAAI/bge-m3", "BAAI")
    notes = {"collection": "notes"}
    for raw in (
        {"texts": ["a"]},
        {"texts": ["a"], "qdrant": notes},
        {"operation": "search", "queries": ["a"], **notes},
        {"operation": "score", "pairs": [["a", "a"]]},
    ):
        assert worker.good(raw)["model"] == "BAAI/bge-m3"
    assert worker.operations.model_label.startswith("BAAI/bge-m3 (packed, ")


def test_the_model_may_have_several_names(serve: Serve) -> None:
    """Every name of `SERVED_MODEL_NAME` is accepted and listed, and answers carry the first."""
    worker = serve(SERVED_MODEL_NAME="bge-m3,BAAI/bge-m3")
    for name in ("bge-m3", "BAAI/bge-m3", None):
        assert good(worker, input="a", model=name)["model"] == "bge-m3"
    message = "model must be one of 'bge-m3', 'BAAI/bge-m3', as GET /v1/models lists them, got 'mini'"
    assert refused(worker, input="a", model="mini")["message"] == message
    assert refused(worker, "/v1/models/mini")["message"] == message
    listed = job(worker, "/v1/models")["data"]
    owners = {model["id"]: model["owned_by"] for model in listed}
    assert owners == {"bge-m3": "bge-m3-qdrant", "BAAI/bge-m3": "BAAI"}
    assert [job(worker, f"/v1/models/{model['id']}") for model in listed] == listed


@pytest.mark.parametrize(("names", "own"), [("*", "mini"), ("*,bge-m3", "bge-m3"), ("bge-m3,*", "bge-m3")])
def test_any_name_may_be_accepted(serve: Serve, names: str, own: str) -> None:
    """With `*` clients keep the name of the model that they were written for; answers still carry the own name."""
    worker = serve(SERVED_MODEL_NAME=names)
    for name in ("text-embedding-3-small", own, "any name"):
        assert good(worker, input="a", model=name)["model"] == own
    assert [model["id"] for model in job(worker, "/v1/models")["data"]] == [own]
    assert job(worker, "/v1/models/text-embedding-3-small")["id"] == own
    assert worker.good({"texts": ["a"]})["model"] == own


def test_a_string_is_a_list_of_one(worker: Client) -> None:
    """Both forms of a single text give the same vector."""
    one, many = good(worker, input=TEXTS[0]), good(worker, input=TEXTS[:1])
    assert one["data"][0]["embedding"] == pytest.approx(many["data"][0]["embedding"], abs=TOLERANCE)


@pytest.mark.parametrize("framed", [False, True])
def test_token_ids_are_those_of_the_model(serve: Serve, framed: bool) -> None:
    """Where the operator allows token ids, they equal their text, with or without `<s>` and `</s>`, in any form."""
    worker = serve(**IDS_ALLOWED)
    ids = Tokenizer(MINI).encode(TEXTS[:1], 512)[0].ids.tolist()
    given = ids if framed else ids[1:-1]
    wanted = good(worker, input=TEXTS[0])
    for value in (given, [given], [given, given]):
        answer = good(worker, input=value)
        assert answer["data"][-1]["embedding"] == pytest.approx(wanted["data"][0]["embedding"], abs=TOLERANCE)
        assert answer["usage"]["total_tokens"] == len(ids) * len(answer["data"])


@pytest.mark.parametrize("ids", [[9906, 1917], [[9906, 1917], [3]]])
def test_token_ids_are_refused_unless_they_are_allowed(worker: Client, ids: list[Any]) -> None:
    """Ids of another tokenizer would give wrong vectors; the error names the option of the client, and the setting."""
    error = refused(worker, input=ids)
    assert (error["code"], error["param"]) == ("invalid_request", "input")
    for named in ("check_embedding_ctx_length=False", "ALLOW_TOKEN_IDS=true", "this model's tokenizer"):
        assert named in error["message"]


@pytest.mark.parametrize("limit", [-1, 3, 8, 512])
def test_a_request_may_have_its_texts_truncated(serve: Serve, limit: int) -> None:
    """`truncate_prompt_tokens` keeps the first tokens, special ones included; -1 stands for `PASSAGE_MAX_LENGTH`."""
    worker = serve(PASSAGE_MAX_LENGTH="16", **IDS_ALLOWED)
    wanted = 16 if limit == -1 else limit
    short, long = "word", "some words " * 400
    answer = good(worker, input=[short, long], truncate_prompt_tokens=limit, truncation_side="right")
    embedded = worker.good({"texts": [short, long], "maxLength": wanted, "vectors": ["dense"]})
    for mine, theirs in zip(answer["data"], embedded["results"], strict=True):
        assert mine["embedding"] == pytest.approx(theirs["dense"], abs=TOLERANCE)
    assert answer["usage"]["total_tokens"] == embedded["usage"]["tokens"]
    ids = Tokenizer(MINI).encode([long], 512)[0].ids.tolist()
    same = good(worker, input=[ids], truncate_prompt_tokens=limit)["data"][0]["embedding"]
    assert same == pytest.approx(answer["data"][1]["embedding"], abs=TOLERANCE)


def test_the_operator_may_have_texts_truncated(serve: Serve) -> None:
    """With `OPENAI_TRUNCATE` a text is cut at `PASSAGE_MAX_LENGTH`, and a request may cut it shorter."""
    worker = serve(PASSAGE_MAX_LENGTH="16", OPENAI_TRUNCATE="true")
    assert good(worker, input="word " * 40)["usage"]["total_tokens"] == 16
    assert good(worker, input="word " * 40, truncate_prompt_tokens=5)["usage"]["total_tokens"] == 5


def test_a_text_that_is_too_long_names_both_ways_out(worker: Client) -> None:
    """The error names the field for the request and the setting for the operator."""
    message = refused(worker, input=["a", "word " * 9000])["message"]
    assert message.startswith(f'input[1] {TOO_LONG} more; shorten it, send "truncate_prompt_tokens": -1')
    assert "OPENAI_TRUNCATE=true" in message


@pytest.mark.parametrize("strict", [False, True])
def test_unknown_fields_are_ignored_unless_the_operator_is_strict(serve: Serve, strict: bool) -> None:
    """Clients add fields of other servers; with `OPENAI_STRICT` each is an error that names what was meant."""
    worker = serve(OPENAI_STRICT=str(strict))
    extra: Json = {"input": "a", "dimension": 192, "timings": True}
    if not strict:
        assert good(worker, **extra) == good(worker, input="a")
        return
    error = refused(worker, **extra)
    assert error["message"] == "unknown field 'dimension': did you mean 'dimensions'?; unknown field 'timings'"
    assert error["param"] == "dimension"


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("kinds", [["dense"], ["sparse"], ["dense", "colbert"], ["dense", "sparse", "colbert"]])
def test_the_other_vectors_stand_beside_the_dense_one(worker: Client, encoding: str, kinds: list[str]) -> None:
    """`vectors` adds the other kinds as `embed` gives them, in the same encoding; `embedding` is always there."""
    answer = good(worker, input=TEXTS, vectors=kinds, encoding_format=encoding)
    ours = "list" if encoding == "float" else encoding
    wanted = worker.good({"texts": TEXTS, "isPassage": True, "encoding": ours})["results"]
    for mine, theirs in zip(answer["data"], wanted, strict=True):
        more = {f"{kind}_embedding" for kind in kinds if kind != "dense"}
        assert mine.keys() == {"object", "index", "embedding"} | more
        if "sparse" in kinds:
            assert mine["sparse_embedding"]["indices"] == theirs["sparse"]["indices"]
            assert mine["sparse_embedding"]["values"] == pytest.approx(theirs["sparse"]["values"], abs=TOLERANCE)
        if "colbert" in kinds:
            pair = mine["colbert_embedding"], theirs["colbert"]
            rows, others = pair if encoding == "float" else map(unpacked, pair)
            assert np.shape(rows) == np.shape(others)
            assert np.allclose(rows, others, atol=TOLERANCE)


def test_colbert_rows_that_cannot_fit_are_refused_before_the_model_runs(serve: Serve, watched: Watched) -> None:
    """The size of the answer is known from the lengths of the texts, and the error says what to leave out."""
    operations = Operations(serve(MAX_RESPONSE_MB="0.1").operations.settings, watched.embedder)
    watched.engine.batches.clear()
    error = refused(Client(operations), input=["word " * 400], vectors=["colbert"])
    assert error["code"] == "response_too_large"
    assert 'leave "colbert" out of vectors' in error["message"]
    assert not watched.engine.batches


def test_base64_is_little_endian_float32(worker: Client) -> None:
    """`encoding_format: "base64"`, which OpenAI's own client asks for, is little-endian float32."""
    data = good(worker, input=TEXTS[0], encoding_format="base64")["data"][0]["embedding"]
    floats = np.frombuffer(base64.b64decode(data), dtype="<f4")
    assert floats.tolist() == pytest.approx(good(worker, input=TEXTS[0])["data"][0]["embedding"], abs=TOLERANCE)
    assert np.linalg.norm(floats) == pytest.approx(1, abs=1e-5)


def test_null_is_absence(worker: Client) -> None:
    """Optional fields may be null, as clients write those that are not set, and unknown ones, too."""
    nulls = dict.fromkeys(["model", "encoding_format", "dimensions", "user", "unknown"])
    assert good(worker, input=TEXTS[0], **nulls) == good(worker, input=TEXTS[0])
    assert "results" in worker.good({"texts": ["a"], "openai_route": None, "openai_input": None})


def test_the_model_is_listed(worker: Client) -> None:
    """`/v1/models` lists the model, and its own path returns it."""
    listed = job(worker, "/v1/models")
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"]) == ("mini", "model")
    assert job(worker, "/v1/models/mini") == model


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({}, "invalid_request", "input is required"),
        ({"input": []}, "invalid_request", "of lists of token ids, got an empty list"),
        ({"input": {"a": 1}}, "invalid_request", "of lists of token ids, got an object"),
        ({"input": ["a", 1]}, "invalid_request", "input[1] must be a string like the other items, got an integer"),
        ({"input": ["a", "b", None]}, "invalid_request", "input[2] must be a string like the other items, got null"),
        ({"input": [1, "a", "b"]}, "invalid_request", "input[0] must be a string like the other items, got an integer"),
        ({"input": [7, 8, "a"]}, "invalid_request", "input[2] must be a token id like the other items, got a string"),
        ({"input": [7, True, 8]}, "invalid_request", "input[1] must be a token id like the other items, got a boolean"),
        ({"input": [[7], "a", [8]]}, "invalid_request", "input[1] must be a list of token ids like the other items"),
        ({"input": [[7, 8], [9, None]]}, "invalid_request", "input[1][1] must be a token id, got null"),
        ({"input": [None, {}]}, "invalid_request", "input[0] must be a string, a token id or a list of token ids, got"),
        ({"input": [[1], []]}, "invalid_request", "input[1] must have at least 1 token id, got 0"),
        ({"input": [[1], [True]]}, "invalid_request", "input[1][0] must be a token id, got a boolean"),
        ({"input": None}, "invalid_request", "input is required"),
        ({"input": "\ud800"}, "invalid_request", "input is not valid Unicode"),
        ({"input": ["a", "\ud800"]}, "invalid_request", "input[1] is not valid Unicode"),
        (
            {"input": "word " * 9000},
            "invalid_request",
            f"input {TOO_LONG} more",
        ),
        (
            {"input": "a", "dimensions": 64},
            "invalid_request",
            "dimensions must be 192, the size of the model's vectors, got 64",
        ),
        ({"input": "a", "encoding_format": "hex"}, "invalid_request", "encoding_format must be 'float' or 'base64'"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "invalid_request", "tokens must be -1 or at least 3, got 0"),
        ({"input": "a", "truncate_prompt_tokens": 9000}, "invalid_request", "must be at most 512 tokens, the limit of"),
        ({"input": "a", "truncate_prompt_tokens": "8"}, "invalid_request", "tokens must be an integer, got a string"),
        ({"input": "a", "truncation_side": "left"}, "invalid_request", "truncation_side must be 'right', got 'left'"),
        ({"input": "a", "vectors": ["dense", "dense"]}, "invalid_request", "vectors must not repeat a kind"),
        ({"input": "a", "vectors": []}, "invalid_request", "vectors must have at least 1 item, got 0"),
        ({"input": "a", "vectors": ["splade"]}, "invalid_request", "vectors[0] must be 'dense', 'sparse' or 'colbert'"),
        ({"input": "a", "model": "text-embedding-3-small"}, "not_found", OTHER),
    ],
)
def test_invalid_requests_are_openais_errors(worker: Client, fields: Json, code: str, said: str) -> None:
    """The message names the field and the limit, `param` is the field, and `code` is the worker's error code."""
    error = refused(worker, **fields)
    assert error["param"].partition("[")[0] in {"input", *fields}
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert said in error["message"]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([[5, 10**9]], "input[0][1] must be a token id from 0 to"),
        ([-1], "input[0] must be a token id from 0 to"),
        ([5, 6, 10**9], "input[2] must be a token id from 0 to"),
        ([7] * 511, f"input {TOO_LONG} 513"),
        ([[5]] * 3, "at most 2 items (MAX_TEXTS), got 3"),
    ],
)
def test_invalid_token_ids_are_named(serve: Serve, ids: list[Any], said: str) -> None:
    """Where token ids are allowed, the message names the one that is not in the vocabulary, and the limits hold."""
    assert said in refused(serve(MAX_TEXTS="2", **IDS_ALLOWED), input=ids)["message"]


def test_too_many_inputs_and_too_large_an_answer_are_refused(serve: Serve) -> None:
    """The limits of the worker on texts and on the size of an answer hold for OpenAI's API too."""
    assert "at most 2 items (MAX_TEXTS), got 3" in refused(serve(MAX_TEXTS="2"), input=["a"] * 3)["message"]
    small = serve(MAX_RESPONSE_MB="0.002")
    assert refused(small, input=["a"] * 3, encoding_format="base64")["code"] == "response_too_large"


def test_an_unknown_route_is_not_found(worker: Client) -> None:
    """An unknown route or model is `not_found`."""
    assert refused(worker, "/v1/chat/completions")["code"] == "not_found"
    assert refused(worker, "/v1/models/gpt")["code"] == "not_found"


def test_a_job_with_more_than_a_route_and_its_input_is_refused(worker: Client) -> None:
    """An unknown field beside the route and its input is an error."""
    raw = {"openai_route": "/v1/embeddings", "openai_input": {"input": "a"}, "operation": "embed"}
    answer: Any = asyncio.run(worker.job(raw))
    assert answer[0]["error"]["message"] == "unknown field 'operation'"


def test_a_failed_text_fails_the_request(serve: Serve, watched: Watched) -> None:
    """The failure of one text is the error of the request, since OpenAI's answer has no field for it."""
    worker = Client(Operations(serve().operations.settings, watched.embedder))
    error = refused(worker, input=["fine", "a zebra"])
    assert (error["code"], error["type"]) == ("model_failure", "server_error")
    assert error["message"].startswith("input[1]: ")


def test_one_short_text_goes_before_passages(serve: Serve, watched: Watched) -> None:
    """A single short text has the priority of queries."""
    worker = Client(Operations(serve().operations.settings, watched.embedder))

    async def embed(texts: str | list[str]) -> None:
        await worker.job({"openai_route": "/v1/embeddings", "openai_input": {"input": texts}})

    async def both() -> None:
        watched.engine.gate.clear()
        watched.engine.batches.clear()
        first = asyncio.create_task(embed(["one", "two"]))  # occupies the only worker thread
        await until(lambda: bool(watched.engine.batches))
        passages = asyncio.create_task(embed(["three and more", "four and more"]))
        await until(lambda: watched.pool.waiting_tokens >= 8)
        query = asyncio.create_task(embed("q"))
        await until(lambda: watched.pool.waiting_tokens >= 11)
        watched.engine.gate.set()
        await asyncio.gather(first, passages, query)

    asyncio.run(both())
    assert [len(batch) for batch in watched.engine.batches] == [2, 1, 2]
