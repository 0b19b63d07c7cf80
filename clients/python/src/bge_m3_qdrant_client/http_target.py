"""A worker over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from bge_m3_qdrant_client.calls import Call, Deadline, encoded
from bge_m3_qdrant_client.credentials import authorization, carried, shown_url
from bge_m3_qdrant_client.errors import InvalidOption, NotFound, UnexpectedAnswer, worker_error
from bge_m3_qdrant_client.exchange import TIDY_UP_TIMEOUT_S, polled, report_progress, tidied
from bge_m3_qdrant_client.replies import parsed, retry_after_s
from bge_m3_qdrant_client.report import Health
from bge_m3_qdrant_client.steps import Reply, Send, Steps, Wait

PATHS: Final[Mapping[str, str]] = {
    "embed": "/embed",
    "ingest": "/points",
    "search": "/search",
    "score": "/score",
    "rerank": "/v1/rerank",
    "count": "/points/count",
    "delete": "/points/delete",
    "points": "/points/get",
    "load": "/loads",
}

REQUEST_MAX_BYTES: Final = 30_000_000
"""Maximum request body of the worker in bytes."""

_POLL_INTERVAL_S: Final = 1.0
"""Seconds between two questions for a job, unless the answer has a `Retry-After`."""


class HttpTarget:
    """A worker over HTTP.

    Args:
        url: its address, with the prefix of a proxy if there is one.
        api_key: the key, for `Authorization: Bearer`.
        headers: further headers, such as `api-key` behind a proxy that has a key of its own.

    Raises:
        InvalidOption: the address is not one of HTTP, or HTTP cannot carry the key or a header.
    """

    def __init__(self, url: str, *, api_key: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        self._url = url.rstrip("/")
        self.name = shown_url(self._url)
        self._headers = {**carried(headers), **authorization(api_key)}
        self.request_max_bytes = REQUEST_MAX_BYTES // 2

    def answer(self, call: Call, attempt: int, deadline: Deadline) -> Steps[Any]:  # noqa: ARG002 - see `Target`
        """See `Target.answer`."""
        if call.operation == "collections":
            name = call.body.get("collection")
            path = "/collections" if name is None else f"/collections/{quote(str(name), safe='')}"
            return parsed((yield self._send("GET", path, deadline)))
        content = encoded(call.body)
        if len(content) > REQUEST_MAX_BYTES:
            raise InvalidOption(
                f"the request has {len(content)} bytes, more than {REQUEST_MAX_BYTES}; send less at once"
            )
        path = PATHS[call.operation]
        if not call.job:
            return parsed((yield self._send("POST", path, deadline, content)))
        preference = {"Prefer": "respond-async"}
        reply: Reply = yield self._send("POST", path, deadline, content, preference)
        if reply.status != 202:
            return parsed(reply)
        answer = yield from self._job(call, parsed(reply), retry_after_s(reply), deadline)
        if answer is not None:
            return answer
        # The worker was restarted, or another one behind the same address answers.
        return parsed((yield self._send("POST", path, deadline, content)))

    def health(self, deadline: Deadline) -> Steps[Health]:
        """See `Target.health`."""
        reply: Reply = yield self._send("GET", "/readyz", deadline)
        if reply.status == 503:
            reply = Reply(200, reply.headers, reply.content)
        state = parsed(reply)
        if not isinstance(state, dict) or not isinstance(state.get("status"), str):
            raise UnexpectedAnswer("the address answers, but not as a worker", status=reply.status)
        return Health(
            ready=state["status"] == "ready",
            status=state["status"],
            reason=state.get("reason"),
            model=state.get("model"),
            store=state.get("store"),
        )

    def _job(self, call: Call, accepted: Any, seconds: float | None, deadline: Deadline) -> Steps[Any]:
        """The steps to the answer of an accepted job, or to None if it is not known any more."""
        job = _state(accepted)
        path = f"/jobs/{quote(str(job.get('id')), safe='')}"

        def forget() -> Send:
            return self._send("DELETE", path, Deadline(TIDY_UP_TIMEOUT_S))

        try:
            while job["state"] in {"queued", "running"}:
                yield Wait(min(seconds or _POLL_INTERVAL_S, deadline.timeout_s()))
                job = _state((yield from polled(lambda: self._send("GET", path, deadline), deadline)))
                report_progress(call, job)
        except NotFound:
            return None
        except GeneratorExit:
            raise
        except BaseException:
            yield from tidied(forget())
            raise
        yield from tidied(forget())
        answer, status = job.get("answer"), job.get("status")
        if status != 200 and isinstance(answer, dict) and "error_code" in answer:
            raise worker_error(answer, status=status)
        return answer

    def _send(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Send:
        more = {**self._headers, **(headers or {}), **({"Content-Type": "application/json"} if content else {})}
        return Send(method, self._url + path, deadline.timeout_s(), deadline.limit_s, content, more)


def _state(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("state"), str):
        raise UnexpectedAnswer("the answer is not the state of a job")
    return value
