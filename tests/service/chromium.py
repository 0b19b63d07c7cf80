"""A headless Chromium, controlled over the DevTools protocol."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from websockets.sync.client import connect

from tests.service.client import PATIENCE

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""Path of the browser; None if it is not installed."""


class Chromium:
    """A browser with one tab.

    Args:
        profile: an empty directory for its profile.
    """

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._ids = count(1)
        self.console: list[str] = []
        """Errors and policy violations of the page."""

    def __enter__(self) -> Self:
        """Start the browser and open an empty tab."""
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-proxy-server"]
        arguments += ["--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={self._profile}"]
        environment = {**os.environ, "HOME": str(self._profile)}
        self._process = subprocess.Popen(
            [PROGRAM or "chromium", *arguments, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
        )
        guard = threading.Timer(PATIENCE, self._process.kill)
        guard.start()
        assert self._process.stderr is not None
        address = next(
            (line.split(b"ws://")[1].split(b"/")[0] for line in self._process.stderr if b"DevTools listening" in line),
            None,
        )
        guard.cancel()
        assert address is not None, "Chromium ended before it listened"
        self._reader = threading.Thread(
            target=self._process.stderr.read, daemon=True
        )  # so that the browser never blocks on a full pipe
        self._reader.start()
        with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
            tabs = client.get(f"http://{address.decode()}/json/list").json()
        tab = next(target for target in tabs if target["type"] == "page")
        self._socket = connect(tab["webSocketDebuggerUrl"], max_size=None, proxy=None)
        self._send("Runtime.enable")
        self._send("Log.enable")
        self._send("Page.enable")
        self._send("Emulation.setFocusEmulationEnabled", enabled=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the browser."""
        self._socket.close()
        self._process.kill()
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        if self._process.stderr is not None:
            self._process.stderr.close()

    @contextmanager
    def width(self, pixels: int) -> Iterator[None]:
        """Set the width of the window within the block."""
        self._send("Emulation.setDeviceMetricsOverride", width=pixels, height=700, deviceScaleFactor=1, mobile=True)
        yield
        self._send("Emulation.clearDeviceMetricsOverride")

    def open(self, url: str) -> None:
        """Load a page, and wait until it is complete."""
        self._send("Page.navigate", url=url)
        self.run("new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def run(self, script: str) -> Any:
        """Evaluate an expression and return its JSON value; a promise is awaited."""
        sent = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self._send("Runtime.evaluate", **sent)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def _send(self, method: str, **parameters: Any) -> Any:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(PATIENCE))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.console.append(message["params"]["entry"]["text"])
            if message.get("method") == "Runtime.exceptionThrown":
                self.console.append(str(message["params"]["exceptionDetails"]))
