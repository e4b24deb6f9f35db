"""A headless chromium of the test's own, and a page in it driven through the DevTools protocol."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

DESKTOP, PHONE = (1280, 900), (390, 844)
START_S, REPLY_S = 30, 20
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
            mobile=width < 500,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call("Page.navigate", url=url)
        while self.run("location.href + ' ' + document.readyState") != f"{url} complete":
            time.sleep(0.01)

    def named(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] == method]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, by way of JSON."""
        reply = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")


@contextmanager
def opens_once(browser: str, pages: Mapping[str, str]) -> Iterator[Callable[..., Tab]]:
    """Opens a page of ``pages``, URLs by name, once for each name, size and scheme."""
    with ExitStack() as wires:

        @cache
        def open_once(name: str, size: tuple[int, int], scheme: str = "light") -> Tab:
            tab = Tab(wires.enter_context(connect(browser, max_size=None)))
            tab.open(pages[name], size, scheme)
            return tab

        yield open_once


@contextmanager
def started_browser(profile: Path) -> Iterator[str]:
    """The address of a fresh browser's DevTools; skips the test where there is none."""
    program = shutil.which("chromium")
    if program is None:
        message = "chromium is not on the PATH"
        (pytest.fail if os.environ.get("LARGEFORGE_REQUIRE_BROWSER") else pytest.skip)(message)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([program, f"--user-data-dir={profile}", *FLAGS], **quiet)
    try:
        address = _devtools(profile / "DevToolsActivePort", process)
        yield address
        with connect(address) as wire:
            wire.send(json.dumps({"id": 1, "method": "Browser.close"}))
        process.wait(10)
    finally:
        process.kill()
        process.wait(10)


def _devtools(file: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if file.exists() and len(lines := file.read_text().splitlines()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        assert process.poll() is None, f"chromium ended with code {process.returncode}"
        time.sleep(0.02)
    pytest.fail(f"chromium did not start in {START_S} s")


# Every element with a text of its own: the text, its colour, the one behind it, and its outline.
TEXT_COLOURS = """[...document.querySelectorAll("body *")].filter(one =>
  one.getClientRects().length && [...one.childNodes].some(node => node.nodeType == 3 && node.data.trim())
).map(one => {
  const drawn = one.closest("svg"), style = getComputedStyle(one), tile = one.closest("g.node");
  let back = one, behind = "rgba(0, 0, 0, 0)";
  while (back && behind == "rgba(0, 0, 0, 0)") {
    behind = getComputedStyle(back).backgroundColor;
    back = back.parentElement;
  }
  if (tile) behind = getComputedStyle(tile.querySelector(".tile")).fill;
  return [one.textContent.trim().slice(0, 40), drawn ? style.fill : style.color, behind,
          drawn ? style.stroke : "none"];
})"""


def luminance(colour: str) -> float:
    """WCAG 2 relative luminance of a CSS rgb() colour, 0 to 1."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast of two colours, 1 to 21."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def loaded_by_itself(tab: Tab, url: str) -> None:
    """Without a word in the console, a script, an image or a request but its own."""
    noise = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert [event for kind in noise for event in tab.named(kind)] == []
    assert tab.named("Page.javascriptDialogOpening") == []
    asked = [event["request"]["url"] for event in tab.named("Network.requestWillBeSent")]
    assert asked[0] == url
    assert all(url.startswith("data:") for url in asked[1:]), asked
    assert tab.run("document.scripts.length + document.images.length") == 0
