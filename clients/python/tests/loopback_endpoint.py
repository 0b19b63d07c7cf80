"""An endpoint on a loopback port that speaks RunPod's API for serverless endpoints in front of a handler.

POST /v2/EP/run           200 {"id", "status": "IN_QUEUE"}
POST /v2/EP/runsync       200 the state of the job after at most `sync_s` seconds
GET  /v2/EP/status/ID     200 {"id", "status", "output", "error"}; 404 for an unknown job
POST /v2/EP/cancel/ID     200 {"id", "status": "CANCELLED"}
GET  /v2/EP/health        200 {"jobs": {...}, "workers": {...}}
any  /v2/EP/openai/PATH   200 the only item of the answer to the input {"openai_route": "/PATH", "openai_input": body}

The state of a job that has ended is also posted to its `webhook`. A wrong key is 401, and a body beyond 10 MB (`/run`)
or 20 MB (`/runsync`) is 400. As on the platform, an answer of the handler with an `error` is the status FAILED, with
the other keys under `output`.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import httpx

from loopback_server import Answer, LoopbackServer, Request

KEY: Final = "rp-key-of-the-test"
ENDPOINT: Final = "ep1"
RUN_MAX_BYTES: Final = 10_000_000
RUNSYNC_MAX_BYTES: Final = 20_000_000

Report = Callable[[dict[str, int]], None]
Handler = Callable[[Any, Report], Any]
"""The answer to the input of a job; the second argument reports progress."""


class RunPodEndpoint(LoopbackServer):
    """The endpoint.

    Args:
        handler: answers the input of a job, in a thread of its own.
        sync_s: seconds after which `/runsync` answers with the state of a job that has not ended.

    Attributes:
        jobs: the states of the jobs by id.
        base_url: the address for `Client.runpod`.
    """

    def __init__(self, handler: Handler, *, sync_s: float = 5.0) -> None:
        super().__init__(self._respond)
        self.base_url = f"{self.url}/v2"
        self.jobs: dict[str, dict[str, Any]] = {}
        self._handler = handler
        self._sync_s = sync_s
        self._numbers = itertools.count(1)

    @property
    def paths(self) -> list[str]:
        """The paths of the requests so far, without the endpoint and without the ids of jobs."""
        return [request.path.split("/")[3] for request in self.requests]

    def wait_for(self, status: str) -> None:
        """Wait until a job has this status."""
        deadline = time.monotonic() + 30
        while not any(job["status"] == status for job in list(self.jobs.values())):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no job is {status}: {self.jobs}")
            time.sleep(0.005)

    def _respond(self, request: Request) -> Answer | None:  # noqa: PLR0911 - a return for each path
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return Answer(b"", 401)
        _, _, endpoint, action, *rest = request.path.split("/")
        if endpoint != ENDPOINT:
            return Answer({"error": "endpoint not found"}, 404)
        match action, rest:
            case "run" | "runsync", []:
                return self._submit(request, sync=action == "runsync")
            case "openai", route:
                body = request.json if request.content else None
                proxied = {"openai_route": "/".join(("", *route)), "openai_input": body}
                identity = self._start({"input": proxied}, wait_s=None)
                (answer,) = self.jobs[identity]["output"]
                return Answer(answer)
            case "status", [job] if job in self.jobs:
                return Answer(self.jobs[job])
            case "cancel", [job] if job in self.jobs:
                self.jobs[job].update(status="CANCELLED")
                return Answer(self.jobs[job])
            case "health", []:
                running = sum(job["status"] == "IN_PROGRESS" for job in self.jobs.values())
                counts = {"completed": len(self.jobs) - running, "inProgress": running, "inQueue": 0}
                return Answer({"jobs": counts, "workers": {"idle": 1, "running": running}})
        return Answer({"error": "job not found"}, 404)

    def _submit(self, request: Request, *, sync: bool) -> Answer:
        if len(request.content) > (RUNSYNC_MAX_BYTES if sync else RUN_MAX_BYTES):
            return Answer({"error": "request body too large"}, 400)
        identity = self._start(request.json, wait_s=self._sync_s if sync else 0.0)
        return Answer(self.jobs[identity] if sync else {"id": identity, "status": "IN_QUEUE"})

    def _start(self, request: Any, *, wait_s: float | None) -> str:
        """Start a job, wait at most this time for its end (None: without a limit), and return its id."""
        identity = f"job-{next(self._numbers)}"
        self.jobs[identity] = {"id": identity, "status": "IN_QUEUE"}
        thread = threading.Thread(target=self._run, args=(identity, request), daemon=True)
        thread.start()
        thread.join(wait_s)
        return identity

    def _run(self, identity: str, request: Any) -> None:
        self._work(identity, request["input"])
        if webhook := request.get("webhook"):
            httpx.post(webhook, json=self.jobs[identity], trust_env=False).raise_for_status()

    def _work(self, identity: str, raw: Any) -> None:
        job = self.jobs[identity]
        job["status"] = "IN_PROGRESS"

        def report(progress: dict[str, int]) -> None:
            if job["status"] == "IN_PROGRESS":
                job["output"] = progress

        output = self._handler(raw, report)
        if job["status"] != "IN_PROGRESS":
            return
        if isinstance(output, dict) and "error" in output:
            rest = {key: value for key, value in output.items() if key != "error"}
            job.update(error=output["error"], output=rest, status="FAILED")
        else:
            job.update(output=output, status="COMPLETED")
