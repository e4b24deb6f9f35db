"""The router's page in a real browser, before a router whose answers the test gives piece by piece."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.local_ray._browser import DESKTOP, TEXT_COLOURS, Tab, contrast, luminance
from tests.local_ray._scripted_router import EXPERTS, ScriptedRouter, scripted_router

NARROW = (360, 740)
WAIT_S = 10
HOSTILE = "<img src=x onerror=alert(1)><script>document.title='gone'</script> & 'quotes' "
QUESTION = "Where is order 4711?"
ERROR = {
    "message": "expert 'orders' has no healthy engine at the moment; try again in 5 s",
    "type": "server_error",
    "param": None,
    "code": "expert_unavailable",
}
ANSWERS = "[...document.querySelectorAll('.turn.expert .text')].map(one => one.textContent)"
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, "")}
OUTSIDE = """[...document.querySelectorAll("body *")].filter(one => {
  const r = one.getBoundingClientRect();
  return r.width > 1 && (r.left < 0 || r.right > innerWidth);
}).map(one => one.outerHTML.slice(0, 80))"""


class Page:
    """The page as its user has it: by keyboard, and by what stands on it."""

    def __init__(self, tab: Tab, router: ScriptedRouter) -> None:
        self.tab, self.router = tab, router

    def open(self, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> None:
        self.tab.open(self.router.url, size, scheme)

    def until(self, script: str, value: Any = True) -> None:
        deadline = time.monotonic() + WAIT_S
        while (found := self.tab.run(script)) != value:
            assert time.monotonic() < deadline, f"{script} is {found!r}, not {value!r}"
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        return self.tab.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def press(self, key: str) -> None:
        code, text = KEYS[key]
        facts = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.tab.call("Input.dispatchKeyEvent", type="keyDown", text=text, **facts)
        self.tab.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def type(self, text: str) -> None:
        """Into whatever has the focus."""
        self.tab.call("Input.insertText", text=text)

    def send(self, text: str = QUESTION) -> None:
        self.type(text)
        self.press("Enter")

    def shows(self, *selectors: str) -> list[bool]:
        visible = "one => document.querySelector(one).getClientRects().length > 0"
        return self.tab.run(f"{json.dumps(selectors)}.map({visible})")

    def noise(self, *expected: str) -> list[Any]:
        """What the console says, but for the browser's own lines on replies with an expected status."""
        entries = [event["entry"] for event in self.tab.named("Log.entryAdded")]
        odd = [one for one in entries if not any(status in one["text"] for status in expected)]
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening")
        return odd + [event for kind in kinds for event in self.tab.named(kind)]


@pytest.fixture
def page(browser: str) -> Iterator[Page]:
    with scripted_router() as router, connect(browser, max_size=None) as wire:
        yield Page(Tab(wire), router)


def test_an_answer_appears_piece_by_piece_with_its_expert_and_the_reason(page: Page) -> None:
    page.open()
    page.send()
    page.router.pieces.put("It left ")
    page.until(ANSWERS, ["It left "])
    assert page.shows("#stop", "#send") == [True, False]
    assert page.text(".turn.expert h3") == "orders"
    assert page.text(".turn.expert summary") == page.router.decision["reason"]
    page.router.pieces.put("on Tuesday.\n\n  Grüße ✓")
    page.until(ANSWERS, ["It left on Tuesday.\n\n  Grüße ✓"])
    page.router.pieces.put(ScriptedRouter.END)
    page.until("document.getElementById('stop').hidden")
    assert page.text("#status").startswith("2 tokens · first word after ")
    page.tab.run("document.querySelector('summary').click()")
    why = page.text(".turn.expert details")
    for word in ("0.82", "0.50", "keyword", "120 ms", "1f2e3d4c5b6a7980", "chatcmpl-1"):
        assert word in why
    path, body = page.router.asked[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["stream"]) == ("auto", True)
    assert page.noise() == []


def test_a_conversation_is_sent_along_until_a_new_chat(page: Page) -> None:
    page.open()
    for question, answer in (("one", "first"), ("two", "second")):
        page.router.pieces.put(answer)
        page.router.pieces.put(ScriptedRouter.END)
        page.send(question)
        page.until(f"{ANSWERS}.at(-1) == '{answer}' && document.getElementById('stop').hidden")
    roles = [(one["role"], one["content"]) for one in page.router.asked[1][1]["messages"]]
    assert roles == [("user", "one"), ("assistant", "first"), ("user", "two")]
    page.tab.run("document.getElementById('clear').click()")
    page.until(ANSWERS, [])
    page.send("three")
    page.until(ANSWERS, [""])
    page.router.pieces.put(ScriptedRouter.END)
    page.until("document.getElementById('stop').hidden")
    assert [one["content"] for one in page.router.asked[2][1]["messages"]] == ["three"]


@pytest.mark.parametrize("way", ["Escape", "Stop"])
def test_stop_closes_the_connection_and_keeps_what_came(page: Page, way: str) -> None:
    page.open()
    page.send()
    page.router.pieces.put("It left")
    page.until(ANSWERS, ["It left"])
    assert not page.router.left.is_set()
    if way == "Escape":
        page.press("Escape")
    else:
        page.tab.run("document.getElementById('stop').focus()")
        page.press("Enter")
    assert page.router.left.wait(WAIT_S), "the router still holds the connection"
    page.until("document.getElementById('status').textContent", "Stopped")
    assert page.tab.run(ANSWERS) == ["It left"]
    assert page.shows("#stop", "#send") == [False, True]
    assert page.text(".turn.expert .error") == ""
    assert page.tab.run("document.activeElement.id") == "message"
    assert page.noise() == []


def test_a_stream_that_breaks_never_looks_finished(page: Page) -> None:
    page.open()
    page.router.pieces.put("It le")
    page.router.pieces.put({"error": ERROR})
    page.send()
    page.until("document.getElementById('status').textContent", "Failed")
    assert page.text(".turn.expert .error") == f"{ERROR['message']}\n{ERROR['code']}"
    page.router.pieces.put("It ")
    page.router.pieces.put(ScriptedRouter.BREAK)
    page.send("Again?")
    page.until("document.querySelectorAll('.turn.expert .error').length", 2)
    assert "broke off" in page.text(".turn:last-child .error")
    assert page.tab.run(ANSWERS) == ["It le", "It "]
    assert page.noise() == []


@pytest.mark.parametrize(
    ("status", "body", "shown"),
    [
        (429, json.dumps({"error": ERROR | {"code": "queue_full"}}), f"{ERROR['message']}\n429 · queue_full"),
        (502, "<h1>Bad Gateway</h1>", "<h1>Bad Gateway</h1>\n502"),
        (504, "", "an empty reply\n504"),
        (500, '{"error": null}', '{"error": null}\n500'),
    ],
)
def test_a_refusal_reads_as_it_was_sent_and_the_question_can_be_sent_again(
    page: Page, status: int, body: str, shown: str
) -> None:
    page.router.refusal = (status, body.encode())
    page.open()
    page.send()
    page.until("document.querySelector('.turn.expert .error')?.innerText", shown)
    page.until("document.getElementById('message').value", QUESTION)
    assert page.noise(str(status)) == []


def test_a_router_with_keys_is_asked_again_with_the_key_that_is_typed(page: Page) -> None:
    page.router.key = "lf-right"
    page.open()
    page.until("document.getElementById('key-dialog').open")
    assert "no API key was given" in page.text("#key-why")
    page.type("lf-wrong")
    page.press("Enter")
    page.until("document.getElementById('key-why').textContent.includes('unknown')")
    page.tab.run("document.getElementById('key').select()")
    page.type("lf-right")
    page.press("Enter")
    page.until("document.querySelectorAll('#experts li').length", len(EXPERTS))
    assert page.tab.run("document.getElementById('key-dialog').open") is False
    assert page.tab.run("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    page.tab.run("document.getElementById('message').focus()")
    page.router.pieces.put("yes")
    page.router.pieces.put(ScriptedRouter.END)
    page.send()
    page.until(ANSWERS, ["yes"])
    assert page.noise("401") == []


def test_without_a_key_it_asks_once_and_leaves_the_router_alone(page: Page) -> None:
    page.router.key = "lf-right"
    page.open()
    page.until("document.getElementById('key-dialog').open")
    page.press("Escape")
    page.until("document.querySelector('#experts-note .error small')?.textContent", "401 · missing_api_key")
    asked = page.tab.named("Network.requestWillBeSent")
    time.sleep(2.5)
    assert page.tab.run("document.getElementById('key-dialog').open") is False
    assert page.tab.named("Network.requestWillBeSent") == asked


def test_texts_of_others_stay_text(page: Page) -> None:
    page.router.decision |= {"reason": HOSTILE, "scores": {HOSTILE: 1.0}, "policy": HOSTILE}
    page.router.experts = [{**EXPERTS[0], "name": HOSTILE, "reason": HOSTILE, "artifact": HOSTILE}]
    page.router.models = [{"id": name, "object": "model"} for name in ("auto", HOSTILE)]
    page.open()
    page.until("document.querySelectorAll('#experts li').length")
    elements = "document.querySelectorAll('img, script:not([src])').length + document.scripts.length"
    page.router.pieces.put(HOSTILE)
    page.router.pieces.put({"error": ERROR | {"message": HOSTILE, "code": HOSTILE}})
    page.send(HOSTILE)
    page.until("document.querySelectorAll('.turn.expert .error').length", 1)
    page.tab.run("document.getElementById('prompt').value = 'x'; document.getElementById('decide').click()")
    page.until("document.querySelectorAll('#decision .decision').length", 1)
    for place in ("#experts", "#log", "#decision", "#model"):
        assert "<img src=x" in page.tab.run(f"document.querySelector('{place}').textContent")
    assert page.tab.run(elements) == 1
    assert page.tab.run("document.title") == "LargeForge"
    assert page.noise() == []


def test_nothing_is_asked_of_anyone_else_and_the_browser_would_refuse(page: Page) -> None:
    page.open()
    page.until("document.querySelectorAll('#experts li').length", len(EXPERTS))
    page.router.pieces.put(ScriptedRouter.END)
    page.send()
    page.until("document.getElementById('stop').hidden && document.querySelectorAll('.end').length == 1")
    asked = [event["request"]["url"] for event in page.tab.named("Network.requestWillBeSent")]
    own = ["", "page.css", "page.js", "views.js", "wire.js", "v1/experts", "v1/models", "v1/chat/completions"]
    assert {url for url in asked if not url.startswith("data:")} == {page.router.url + path for path in own}
    assert page.noise() == []
    page.tab.run("onsecuritypolicyviolation = one => { document.title = one.violatedDirective }; 0")
    page.tab.run("fetch('http://localhost:9/').catch(() => {}); 0")
    page.until("document.title", "connect-src")
    page.tab.run("try { document.body.innerHTML = '<p>' } catch {}")
    page.until("document.title", "require-trusted-types-for")


def test_the_experts_list_follows_the_router_and_offers_who_is_live(page: Page) -> None:
    page.open()
    page.until("document.querySelectorAll('#experts li').length", len(EXPERTS))
    first = page.text("#experts li")
    for words in ("base", "live", "2 replicas · 3 running", "speculation on, 62% of the draft accepted"):
        assert words in first
    assert "5% of the requests for 10 minutes" in page.text("#experts li:last-child")
    options = "[...document.getElementById('model').options].map(one => one.value)"
    page.until(options, ["auto", "largeforge/keyword", "largeforge/knn", "base", "orders"])
    page.tab.run("document.getElementById('model').value = 'orders'")
    page.tab.run("document.querySelector('#experts li:nth-child(2)').id = 'same'")
    page.router.experts = [EXPERTS[0] | {"up": False}, EXPERTS[1], EXPERTS[2] | {"state": "live"}]
    page.router.models = [*page.router.models, {"id": "poems", "object": "model"}]
    page.until(f"{options}.includes('poems')")
    page.until("document.querySelector('#experts .error')?.textContent", "no healthy engine")
    assert page.tab.run("document.getElementById('model').value") == "orders"
    assert page.tab.run("document.querySelector('#experts li:nth-child(2)').id") == "same"


def test_a_hidden_tab_leaves_the_router_alone_and_a_shown_one_goes_on(page: Page) -> None:
    page.open()
    page.until("document.querySelectorAll('#experts li').length", len(EXPERTS))
    page.until("document.querySelectorAll('#policy option').length", 3)
    turn = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true}); "
    turn += "document.dispatchEvent(new Event('visibilitychange'))"
    page.tab.run(turn % "true")
    asked = len(page.tab.named("Network.requestWillBeSent"))
    time.sleep(2.5)
    page.router.experts = EXPERTS[:1]
    assert page.tab.run("document.querySelectorAll('#experts li').length") == len(EXPERTS)
    assert len(page.tab.named("Network.requestWillBeSent")) == asked
    page.tab.run(turn % "false")
    page.until("document.querySelectorAll('#experts li').length", 1)


def test_the_form_shows_a_decision_and_asks_no_engine(page: Page) -> None:
    page.open()
    page.until("document.querySelectorAll('#policy option').length", 3)
    page.tab.run("document.getElementById('policy').value = 'largeforge/knn'")
    page.tab.run("document.getElementById('prompt').focus()")
    page.type("refund my invoice")
    page.press("Tab")
    page.press("Tab")
    page.press("Enter")
    page.until("document.querySelector('#decision h3')?.textContent", "orders")
    messages = [{"role": "user", "content": "refund my invoice"}]
    assert page.router.asked == [("/v1/route", {"model": "largeforge/knn", "messages": messages})]
    widths = page.tab.run("[...document.querySelectorAll('#decision .bar')].map(one => one.offsetWidth)")
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 3 * widths[2] > 0


@pytest.mark.parametrize("size", [DESKTOP, NARROW], ids=["desktop", "narrow"])
@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_it_fits_and_is_readable_with_long_names(
    page: Page, size: tuple[int, int], scheme: str, dark: bool
) -> None:
    page.router.decision |= {"chosen": "n" * 64, "reason": "r" * 200, "scores": {"n" * 64: 0.8, "b": 0.1}}
    page.router.experts = [EXPERTS[0] | {"name": "n" * 64, "reason": "r" * 200}, *EXPERTS[1:]]
    page.router.models = [{"id": name, "object": "model"} for name in ("auto", "n" * 64)]
    page.open(size, scheme)
    page.until("document.querySelectorAll('#experts li').length", len(EXPERTS))
    page.router.pieces.put("w" * 300)
    page.router.pieces.put({"error": ERROR | {"message": "e" * 300}})
    page.send("q" * 300)
    page.until("document.querySelectorAll('.turn.expert .error').length", 1)
    page.tab.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.tab.run("document.getElementById('prompt').value = 'x'; document.getElementById('decide').click()")
    page.until("document.querySelectorAll('#decision .decision').length", 1)
    assert page.tab.run("[innerWidth, document.documentElement.scrollWidth]") == [size[0], size[0]]
    assert page.tab.run(OUTSIDE) == []
    colours = page.tab.run(TEXT_COLOURS)
    assert len(colours) > 40
    for text, ink, paper, _ in colours:
        assert contrast(ink, paper) >= 4.5, f"'{text}': {ink} on {paper}"
    assert (luminance(page.tab.run("getComputedStyle(document.body).backgroundColor")) < 0.05) is dark


def test_every_control_has_a_name_for_a_screen_reader(page: Page) -> None:
    page.open(NARROW)
    page.tab.call("Accessibility.enable")
    nodes = page.tab.call("Accessibility.getFullAXTree")["nodes"]
    named = {(one["role"]["value"], one["name"]["value"]) for one in nodes if one.get("name")}
    for role, name in [
        ("textbox", "Message"),
        ("combobox", "Model"),
        ("button", "Send"),
        ("button", "API key"),
        ("log", "Conversation"),
        ("textbox", "Prompt"),
        ("combobox", "Policy"),
        ("region", "Experts"),
        ("heading", "Chat"),
    ]:
        assert (role, name) in named
