"""An endpoint as a teacher, asked over a real connection: answers, limits, retries, spending and the key."""

from __future__ import annotations

import asyncio
import logging
import pickle
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest

from largeforge_ray.config.teaching import Endpoint, Price
from largeforge_ray.errors import BudgetError, ConfigError
from largeforge_ray.models import rate
from largeforge_ray.models.endpoint import EndpointEngine
from largeforge_ray.types import GenerateRequest, Generation, Sampling
from tests.unit._endpoint import Reply, ScriptedServer, Serve, completion, refusal, servers

KEY_ENV, KEY = "TEACHER_KEY", "sk-not-to-be-told-4711"
PRICE = Price(per_1k_prompt=0.5, per_1k_completion=2.0)
ANSWER_USD = 12 * 0.5 / 1000 + 5 * 2.0 / 1000
MOST_USD = (len("prompt 0") + 16 + 64) * 0.5 / 1000 + 50 * 2.0 / 1000

HANGS = Reply(after_s=60.0)


@pytest.fixture
def serve() -> Iterator[Serve]:
    with servers() as start:
        yield start


@pytest.fixture(autouse=True)
def _retries_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(rate, "FIRST_WAIT_S", 0.01)


def config(server: ScriptedServer | str, **more: Any) -> Endpoint:
    url = server if isinstance(server, str) else server.url
    return Endpoint(**{"url": url, "model": "big", "key_env": KEY_ENV, "retries": 2, "timeout_s": 5.0} | more)


def requests(n: int) -> list[GenerateRequest]:
    return [
        GenerateRequest(
            f"r{i}", ({"role": "user", "content": f"prompt {i}"},), Sampling(0.5, 0.9, 50, seed=i)
        )
        for i in range(n)
    ]


def ask(server: ScriptedServer | str, n: int = 1, **more: Any) -> list[Generation]:
    """What one call of ``generate`` with ``n`` requests returns."""
    return calls(server, [n], **more)[0]


def calls(server: ScriptedServer | str, sizes: Sequence[int], **more: Any) -> list[list[Generation]]:
    """What calls of ``generate`` that are made at once return."""

    async def run() -> list[list[Generation]]:
        engine = EndpointEngine(config(server, **more))
        try:
            return list(await asyncio.gather(*(engine.generate(requests(n)) for n in sizes)))
        finally:
            await engine.close()

    return asyncio.run(run())


def gaps(server: ScriptedServer) -> list[float]:
    times = sorted(a.at for a in server.asked)
    return [b - a for a, b in pairwise(times)]


def test_an_answer_comes_with_its_tokens_reason_time_and_cost(serve: Serve) -> None:
    server = serve(Reply(body=completion("Paris"), after_s=0.05))
    (made,) = ask(server, price=PRICE)
    assert (made.request_id, made.text, made.finish_reason, made.error) == ("r0", "Paris", "stop", None)
    assert (made.prompt_tokens, made.completion_tokens) == (12, 5)
    assert made.usd == pytest.approx(ANSWER_USD)
    assert made.seconds >= 0.05


def test_the_server_is_asked_for_the_model_with_the_sampling_and_the_key(serve: Serve) -> None:
    server = serve()
    ask(server)
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.authorization == f"Bearer {KEY}"
    assert asked.payload == {
        "model": "big",
        "messages": [{"role": "user", "content": "prompt 0"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 50,
        "seed": 0,
    }


def test_answers_keep_the_order_of_their_requests_and_no_more_than_concurrency_are_under_way(
    serve: Serve,
) -> None:
    server = serve(slow_s=0.15)
    made = calls(server, [5, 7], concurrency=3)
    assert [[g.text for g in call] for call in made] == [
        [f"echo prompt {i}" for i in range(n)] for n in (5, 7)
    ]
    assert server.most_at_once == 3


def test_a_minutes_requests_are_spread_over_the_minute(serve: Serve) -> None:
    server, started = serve(), time.monotonic()
    ask(server, 4, requests_per_minute=120)  # two at once, then one every half second
    assert time.monotonic() - started >= 1.0


def test_tokens_that_were_counted_and_not_used_are_given_back(serve: Serve) -> None:
    server = serve()
    # 138 tokens are counted for each, 17 are used: 3 x 138 would take over four seconds of the 100 a second.
    ask(server, 4, tokens_per_minute=6000, concurrency=1)
    assert sum(gaps(server)) < 3.0


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_server_that_is_busy_or_broken_is_asked_again(serve: Serve, status: int) -> None:
    failure = Reply(status, refusal("not now"))
    server = serve(failure, failure)
    (made,) = ask(server)
    assert (made.text, made.error) == ("echo prompt 0", None)
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("headers", "least_s"),
    [({"retry-after": "1"}, 1.0), ({"retry-after-ms": "250", "retry-after": "9"}, 0.25)],
)
def test_it_is_left_alone_for_as_long_as_it_asks(
    serve: Serve, headers: dict[str, str], least_s: float
) -> None:
    server = serve(Reply(429, refusal("slow down"), headers))
    assert ask(server)[0].error is None
    assert least_s <= gaps(server)[0] < 5.0


def test_a_server_that_asks_for_too_long_a_wait_is_not_waited_for(serve: Serve) -> None:
    server = serve(Reply(429, refusal("daily quota"), {"retry-after": "3600"}))
    (made,) = ask(server)
    assert made.error == "HTTP 429: daily quota; the wait it asks for, 3600 s, exceeds 120; ask less of it"
    assert len(server.asked) == 1


def test_a_row_whose_attempts_are_used_up_tells_the_last_reason_and_what_to_change(serve: Serve) -> None:
    server = serve(*[Reply(500, "<html>oops</html>", {"content-type": "text/html"})] * 3)
    (made,) = ask(server, price=PRICE)
    assert made.error == (
        "HTTP 500: <html>oops</html>; attempt 3 of 3; raise retries or timeout_s, or lower concurrency"
    )
    assert (made.text, made.usd) == ("", 0.0)
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [400, 402, 404, 422])
def test_a_refused_request_is_an_error_of_its_row_alone(serve: Serve, status: int) -> None:
    server = serve(Reply(status, refusal("maximum context length is 4096 tokens")))
    made = ask(server, 3, concurrency=1)
    assert [g.error for g in made] == [f"HTTP {status}: maximum context length is 4096 tokens", None, None]
    assert len(server.asked) == 3


def test_a_server_that_hangs_is_given_up_in_time_and_asked_again(serve: Serve) -> None:
    server = serve(HANGS)
    (made,) = ask(server, timeout_s=1.0)
    assert (made.text, made.error) == ("echo prompt 0", None)
    assert gaps(server)[0] < 30.0


def test_an_answer_that_trickles_in_has_no_more_time_than_one_that_hangs(serve: Serve) -> None:
    server = serve(Reply(body=completion("slow"), trickle_s=0.05))
    (made,) = ask(server, timeout_s=0.3, retries=0)
    assert made.error is not None
    assert made.error.startswith("no answer within 0.3 s; attempt 1 of 1")


def test_a_lost_connection_is_tried_again(serve: Serve) -> None:
    server = serve(Reply(drops=True))
    assert ask(server)[0].text == "echo prompt 0"


def test_where_nobody_listens_the_row_says_so_and_costs_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    (made,) = ask(url, price=PRICE, retries=1)
    assert made.error is not None
    assert made.error.startswith(f"connection to {url} failed: ConnectError(")
    assert "attempt 2 of 2" in made.error
    assert made.usd == 0.0


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply(body=refusal("upstream is gone")), "the reply holds no answer: .*upstream is gone"),
        (
            Reply(body="<p>hi</p>", headers={"content-type": "text/html"}),
            "the reply holds no answer: <p>hi</p>",
        ),
        (Reply(body='{"choices": [{"me'), "the answer is no JSON: Unterminated string"),
        (Reply(body=completion("x") | {"choices": []}), "the reply holds no answer"),
        (Reply(body=completion("x") | {"choices": [{}]}), "the reply holds no answer"),
    ],
    ids=["error", "html", "cut off", "no choices", "no message"],
)
def test_a_reply_without_an_answer_is_an_error_of_its_row(serve: Serve, reply: Reply, told: str) -> None:
    (made,) = ask(serve(reply))
    assert made.error is not None
    assert re.match(told, made.error), made.error


@pytest.mark.parametrize(
    ("status", "told"), [(401, r"\(HTTP 401\)"), (403, r"\(HTTP 403: bad key \[key\]\)")], ids=str
)
def test_a_refused_key_ends_the_stage_and_is_named_by_its_variable(
    serve: Serve, status: int, told: str
) -> None:
    server = serve(Reply(status, refusal(f"bad key {KEY}")))
    with pytest.raises(
        ConfigError, match=f"{told}; set {KEY_ENV} to a key that may use model 'big'"
    ) as caught:
        ask(server)
    assert KEY not in str(caught.value)
    assert len(server.asked) == 1


def test_a_server_that_wants_a_key_and_was_given_none_says_which_field_names_it(serve: Serve) -> None:
    with pytest.raises(ConfigError, match="it asks for a key: set key_env"):
        ask(serve(Reply(401, refusal("who are you?"))), key_env=None)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "is not set"),
        (" \n", "is not set"),
        ("sk-1\nsk-2", "holds no key"),
        ("schlüssel", "holds no key"),
    ],
)
def test_a_variable_without_a_key_is_an_error_before_anything_is_sent(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, value: str | None, told: str
) -> None:
    server = serve()
    monkeypatch.delenv(KEY_ENV) if value is None else monkeypatch.setenv(KEY_ENV, value)
    with pytest.raises(ConfigError, match=f"key_env '{KEY_ENV}' {told}") as caught:
        ask(server)
    assert server.asked == []
    assert "sk-1" not in str(caught.value)


def test_a_key_file_s_line_end_is_no_part_of_the_key(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, f"{KEY}\n")
    server = serve()
    ask(server)
    assert server.asked[0].authorization == f"Bearer {KEY}"


def test_another_services_key_in_the_environment_is_not_sent(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve()
    ask(server, key_env=None)
    assert KEY not in str(server.asked)


def test_the_key_is_in_no_log_error_repr_or_pickle(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echo = refusal(f"{'x' * 470} invalid key {KEY} in request")
    server = serve(Reply(500, echo), Reply(400, echo))
    (made,) = ask(server)
    assert made.error is not None
    assert "invalid" in made.error
    assert KEY[:8] not in made.error
    assert "request r0 retry=1 waits 0.0 s: HTTP 500" in caplog.text
    assert KEY not in caplog.text
    engine = EndpointEngine(config(server))
    assert KEY not in repr(vars(engine))
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(engine)


def test_without_room_for_the_worst_case_nothing_is_sent(serve: Serve) -> None:
    server = serve()
    with pytest.raises(BudgetError, match="raise max_usd and run again; finished rows are kept") as caught:
        ask(server, 2, price=PRICE, max_usd=MOST_USD * 1.9)
    assert f"0.000000 of max_usd {MOST_USD * 1.9:g} is spent" in str(caught.value)
    assert f"the next 2 requests may cost {MOST_USD * 2:.6f}" in str(caught.value)
    assert server.asked == []
    assert len(ask(server, 2, price=PRICE, max_usd=MOST_USD * 2.001)) == 2


def test_what_earlier_runs_spent_counts(serve: Serve) -> None:
    server = serve()
    engine = EndpointEngine(config(server, price=PRICE, max_usd=1.0), spent_usd=1.0 - MOST_USD / 2)
    with pytest.raises(BudgetError, match=f"{1.0 - MOST_USD / 2:.6f} of max_usd 1 is spent"):
        asyncio.run(engine.generate(requests(1)))
    assert server.asked == []


def test_requests_wait_for_what_others_under_way_may_give_back(serve: Serve) -> None:
    server = serve(slow_s=0.05)
    made = calls(server, [1, 1, 1], price=PRICE, max_usd=MOST_USD + 2.5 * ANSWER_USD)
    assert [len(call) for call in made] == [1, 1, 1]
    assert server.most_at_once == 1


def test_a_stage_never_spends_more_than_its_cap(serve: Serve) -> None:
    server = serve(*[Reply(drops=True)] * 2, *[Reply(500, refusal("no"))] * 2)
    capped = config(server, price=PRICE, max_usd=8 * MOST_USD, concurrency=4)
    made: list[Generation] = []

    async def caller(engine: EndpointEngine) -> None:
        with suppress(BudgetError):
            while True:
                made.extend(await engine.generate(requests(2)))

    async def run() -> None:
        engine = EndpointEngine(capped)
        await asyncio.gather(*(caller(engine) for _ in range(3)))
        await engine.close()

    asyncio.run(run())
    spent = sum(g.usd for g in made)
    assert 6 * MOST_USD < spent <= 8 * MOST_USD
    answered = sum(g.error is None for g in made)
    lost = 2  # attempts whose connection was dropped
    assert spent == pytest.approx(answered * ANSWER_USD + lost * MOST_USD)
    again = EndpointEngine(capped, spent_usd=spent)
    with pytest.raises(BudgetError):
        asyncio.run(again.generate(requests(2)))


@pytest.mark.parametrize("lost", [Reply(drops=True), Reply(504, refusal("gateway")), HANGS])
def test_an_attempt_that_was_lost_may_have_been_billed(serve: Serve, lost: Reply) -> None:
    (made,) = ask(serve(lost), price=PRICE, timeout_s=1.5)
    assert made.error is None
    assert made.usd == pytest.approx(MOST_USD + ANSWER_USD)


def test_a_lost_attempt_is_not_repeated_beyond_the_cap(serve: Serve) -> None:
    server = serve(Reply(drops=True))
    (made,) = ask(server, price=PRICE, max_usd=MOST_USD * 1.5)
    assert made.error is not None
    assert made.error.endswith("leaves too little for another attempt; raise it")
    assert made.usd == pytest.approx(MOST_USD)
    assert len(server.asked) == 1


def test_an_answer_without_usage_costs_the_most_it_can(serve: Serve) -> None:
    (made,) = ask(serve(Reply(body=completion("hi", usage=False))), price=PRICE)
    assert (made.text, made.completion_tokens) == ("hi", 0)
    assert made.usd == pytest.approx(MOST_USD)
