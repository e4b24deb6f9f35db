"""The report in a real browser: it loads by itself, shows its pictures, and fits a phone and a desktop."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from largeforge_ray.observe import write_report
from largeforge_ray.store import open_store
from tests.unit.test_report_example import make_run

DESKTOP, PHONE = (1280, 900), (390, 844)
SCHEMES = ("light", "dark")
PICTURES = {
    "accuracy": "before and after, with intervals",
    "loss": "loss curve",
    "funnel": "the teacher's yield",
    "timeline": "stage timeline",
    "lineage": "lineage",
}
START_S, REPLY_S = 20, 10
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-port=0", "about:blank"),
]


class Tab:
    """One page, driven through the DevTools protocol. ``events`` are kept from its start."""

    def __init__(self, wire: ClientConnection) -> None:
        self._wire, self._ids = wire, count(1)
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        self._wire.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while (found := self._receive()).get("id") != number:
            pass
        assert "error" not in found, f"{method}: {found['error']}"
        return found["result"]

    def _receive(self) -> dict[str, Any]:
        message = json.loads(self._wire.recv(timeout=REPLY_S))
        if message.get("sessionId") == self._session and "method" in message:
            self.events.append(message)
        return message

    def open(self, url: str, size: tuple[int, int], scheme: str) -> None:
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=size == PHONE,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call("Page.navigate", url=url)
        while not self.named("Page.loadEventFired"):
            self._receive()

    def named(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] == method]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, by way of JSON."""
        reply = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def screenshot(self) -> bytes:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])
