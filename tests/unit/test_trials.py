"""Experts on trial behind the front: what clients get, and what is told to the registry."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from largeforge_ray.promote.views import Trials
from largeforge_ray.routing import parse_router
from serve_apps.openai_errors import ReplyHead, expert_unavailable
from serve_apps.ports import Ask
from serve_apps.router import Front
from serve_apps.trials import Answer, agreement, in_canary, read_answer
from tests.unit._front import (
    CHAT,
    DONE,
    EVENTS,
    HELLO,
    LIMITS,
    ORDER,
    STREAM,
    ScriptedEngine,
    Wire,
    completion,
    in_loop,
)
from tests.unit.test_routing import ADAPTER, MODEL, expert, router

NEW = "f" * 64
USUAL, TRIED = completion("one two"), completion("one three")


class TwoVersions(ScriptedEngine):
    """An engine that answers each adapter by a script of its own."""

    def __init__(self, **scripts: tuple[Any, ...]) -> None:
        super().__init__()
        self.scripts = scripts
        self.seen: list[str] = []

    async def answer(self, ask: Ask) -> Any:
        self.seen.append(ask.expert.artifact[:1])
        self.script = self.scripts[ask.expert.artifact[:1]]
        async for part in super().answer(ask):
            yield part


def front(engine: ScriptedEngine, state: str, *, name: str = "tuned", share: float = 1.0) -> Front:
    """The usual experts, and ``name`` on trial with other weights."""
    words = {"order": 0.5, "json": 0.5} if name == "tuned" else {"lamps": 1.0}
    experts = [expert("base"), expert("tuned", ADAPTER, {"order": 0.5, "json": 0.5})]
    made = Front(parse_router(router(*experts)), {MODEL: engine}, LIMITS, canary_share=share)
    trial = parse_router(router(*experts[:1], expert(name, NEW, words, state=state))).experts[-1]
    table = parse_router(router(*experts))
    made.update(type(table)(table.policy, (*table.experts, trial)))
    return made


def trials(made: Front) -> Trials:
    return next(iter(made.trials.trials.values()), Trials())


def ask(made: Front, payload: dict[str, Any] | None = None, model: str = "auto", **more: Any) -> Any:
    return TestClient(made).post(CHAT, json={"model": model, **(payload or ORDER), **more})


@in_loop
async def test_in_shadow_the_client_gets_the_usual_answer_and_the_other_is_compared() -> None:
    engine = TwoVersions(b=(ReplyHead(200), USUAL), f=(ReplyHead(200), TRIED))
    made = front(engine, "shadow")
    wire = Wire({"model": "auto", **ORDER})
    await wire.start(made)
    head, body = wire.received.get_nowait(), wire.received.get_nowait()
    assert body["body"] == USUAL
    assert (b"x-largeforge-artifact", ADAPTER[:16].encode()) in head["headers"]
    while not trials(made).agreement:
        await asyncio.sleep(0.01)
    seen = trials(made)
    assert (seen.asked, seen.failed, seen.finished, seen.baseline_asked, seen.baseline_finished) == (
        1,
        0,
        1,
        1,
        1,
    )
    assert seen.agreement == (1 / 3,)
    assert list(made.trials.trials) == [(f"tuned@{NEW[:8]}", "shadow")]


@pytest.mark.parametrize("model", ["auto", "tuned"])
def test_in_canary_its_share_of_the_clients_gets_its_answer_and_is_told_so(model: str) -> None:
    engine = TwoVersions(a=(ReplyHead(200), USUAL), b=(ReplyHead(200), USUAL), f=(ReplyHead(200), TRIED))
    made = front(engine, "canary")
    reply = ask(made, model=model)
    assert reply.content == TRIED
    assert reply.headers["x-largeforge-artifact"] == NEW[:16]
    assert f"canary of 'tuned@{NEW[:8]}'" in json.loads(reply.headers["x-largeforge-decision"])["reason"]
    assert (trials(made).asked, trials(made).baseline_asked) == (1, 0)
    assert ask(made, HELLO, "base").headers["x-largeforge-expert"] == "base"


def test_the_others_are_what_it_is_compared_with() -> None:
    engine = TwoVersions(b=(STREAM, *EVENTS, DONE), f=())
    made = front(engine, "canary", share=0.0)
    assert ask(made, stream=True).content == b"".join((*EVENTS, DONE))
    assert (trials(made).asked, trials(made).baseline_asked, trials(made).baseline_finished) == (0, 1, 1)


@pytest.mark.parametrize(
    "script", [(expert_unavailable("tuned"),), (ReplyHead(500), b"{}"), (ReplyHead(503), b"{}")], ids=str
)
def test_a_canary_that_fails_before_it_begins_costs_the_client_nothing(script: tuple[Any, ...]) -> None:
    engine = TwoVersions(b=(ReplyHead(200), USUAL), f=script)
    made = front(engine, "canary")
    reply = ask(made)
    assert (reply.status_code, reply.content) == (200, USUAL)
    assert reply.headers["x-largeforge-artifact"] == ADAPTER[:16]
    assert (trials(made).asked, trials(made).failed) == (1, 1)


def test_a_new_name_is_tried_on_what_the_policy_would_give_it_and_cannot_be_asked_by_name() -> None:
    engine = TwoVersions(a=(ReplyHead(200), USUAL), b=(ReplyHead(200), USUAL), f=(ReplyHead(200), TRIED))
    made = front(engine, "canary", name="lights")
    lamps = {"messages": [{"role": "user", "content": "lamps, please"}]}
    assert ask(made, lamps).content == TRIED
    assert ask(made, HELLO).content == USUAL
    assert ask(made, lamps, "lights").status_code == 404
    assert trials(made).asked == 1


def test_what_is_no_longer_on_trial_is_no_longer_counted() -> None:
    engine = TwoVersions(b=(ReplyHead(200), USUAL), f=(ReplyHead(200), TRIED))
    made = front(engine, "canary")
    ask(made)
    assert made.trials.trials
    made.update(parse_router(router(expert("base"))))
    assert made.trials.trials == {}


def test_a_share_of_conversations_is_always_the_same_ones() -> None:
    names = [f"conversation {i}" for i in range(4000)]
    share = [name for name in names if in_canary(name, 0.25)]
    assert 900 < len(share) < 1100
    assert share == [name for name in names if in_canary(name, 0.25)]
    assert not any(in_canary(name, 0.0) for name in names)
    assert all(in_canary(name, 1.0) for name in names)


def chunk(reason: str | None) -> bytes:
    return (
        b'data: {"choices": [{"delta": {"content": "x"}, "finish_reason": %s}]}\n\n'
        % json.dumps(reason).encode()
    )


@pytest.mark.parametrize(
    ("kind", "body", "answer"),
    [
        ("application/json", USUAL, Answer(200, 1.0, "one two", True)),
        ("application/json", USUAL.replace(b"stop", b"length"), Answer(200, 1.0, "one two", False)),
        ("text/event-stream", chunk(None) + chunk("stop") + DONE, Answer(200, 1.0, "xx", True)),
        ("text/event-stream", chunk(None) + chunk("length") + DONE, Answer(200, 1.0, "xx", False)),
        ("text/event-stream", chunk(None) + expert_unavailable("x").event(), Answer(500, 1.0)),
        ("application/json", b'{"choices": [{"text": "plain"}]}', Answer(200, 1.0, "plain", True)),
    ],
)
def test_an_answer_is_read_streamed_or_whole(kind: str, body: bytes, answer: Answer) -> None:
    assert read_answer(200, kind, body, 1.0) == answer


def test_agreement_is_of_words() -> None:
    assert agreement("", "") == 1.0
    assert agreement("a b", "b c") == 1 / 3


def sure(text: str, *logprobs: float) -> bytes:
    """A whole reply whose tokens were so likely."""
    value = json.loads(completion(text))
    value["choices"][0]["logprobs"] = {"content": [{"logprob": each} for each in logprobs]}
    return json.dumps(value).encode()


def streamed(*logprobs: float) -> list[bytes]:
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": {"content": [{"logprob": each}]}}]}
        for each in logprobs
    ]
    return [STREAM, *(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks), DONE]  # type: ignore[list-item]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("logprob", "chosen"), [(-0.1, "base"), (-3.0, "tuned")])
def test_a_cascade_gives_the_cheap_answer_if_it_is_sure_and_the_dear_one_if_not(
    stream: bool, logprob: float, chosen: str
) -> None:
    cheap = streamed(-0.01, logprob) if stream else [ReplyHead(200), sure("cheap", -0.01, logprob)]
    dear = [STREAM, *EVENTS, DONE] if stream else [ReplyHead(200), USUAL]
    engine = TwoVersions(a=tuple(cheap), b=tuple(dear))
    experts = [
        expert("base"),
        expert("tuned", ADAPTER, {"order": 1.0}, price={"per_1k_prompt": 1.0, "per_1k_completion": 1.0}),
    ]
    made = Front(parse_router(router(*experts)), {MODEL: engine}, LIMITS)
    reply = ask(made, HELLO, "largeforge/cascade", stream=stream)
    assert reply.headers["x-largeforge-expert"] == chosen
    assert reply.content == b"".join(part for part in (cheap if chosen == "base" else dear)[1:])
    assert engine.asked[0][1]["logprobs"] is True
    decision = json.loads(reply.headers["x-largeforge-decision"])
    assert decision["policy"] == "cascade"
    assert decision["reason"].startswith(
        "base is 0.90 sure" if chosen == "base" else "base is 0.05 sure; tuned"
    )


def test_a_cascade_passes_over_who_fails() -> None:
    engine = TwoVersions(a=(expert_unavailable("base"),), b=(ReplyHead(200), USUAL))
    made = Front(
        parse_router(router(expert("base"), expert("tuned", ADAPTER, {"order": 1.0}))),
        {MODEL: engine},
        LIMITS,
    )
    reply = ask(made, HELLO, "largeforge/cascade")
    assert (reply.status_code, reply.content) == (200, USUAL)
    assert "base failed; tuned is asked last" in reply.headers["x-largeforge-decision"]
